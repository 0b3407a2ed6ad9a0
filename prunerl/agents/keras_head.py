"""What the output of a Keras model means: read off its last activation and the action space, or as it was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from prunerl.agents.keras_builders import variables
from prunerl.agents.keras_graph import Graph
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError, SpaceError, unknown
from prunerl.types import Head

HEADS = ("probabilities", "logits", "q_values", "mean", "squashed_mean")
SQUASHING = {"probabilities": ("softmax", "sigmoid"), "squashed_mean": ("tanh",)}
"""Activations that a meaning leaves out of the network, since the head applies them."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How a model's output becomes an action.

    Attributes:
        head: What the network's output means.
        output: The node that is the policy's output in the model.
        meaning: One of :data:`HEADS`.
        bare: Nodes at its end that the head stands for: their activations are left out of the network.
    """

    head: Head
    output: str
    meaning: str
    bare: frozenset[str]

    def deployed(self, graph: Graph) -> Graph:
        """Return the layers that lead to the head."""
        graph = graph.upto(self.output)
        nodes = [n for n in graph.nodes if n.name not in self.bare or variables(n)]
        if not nodes:
            raise LoadError(f"Output {self.output!r} has no layer with weights. Save a model that has one.")
        last = nodes[-1]
        if last.name in self.bare:
            nodes[-1] = replace(last, config={**last.config, "activation": "linear"})
        return replace(graph, nodes=tuple(nodes), outputs=(last.name,))


@dataclass(frozen=True)
class _End:
    """The end of a model: its last activation, and the scale and offset that come after it."""

    activation: str
    bare: tuple[str, ...]
    scale: float = 1.0
    offset: float = 0.0


def choose(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], space: gym.Space[Any], asked: str | None
) -> tuple[Reading, tuple[str, ...]]:
    """Choose the output that is the policy, and say what it means.

    Args:
        graph: The model.
        shapes: Shape of each node's value.
        space: The environment's actions.
        asked: One of :data:`HEADS`, ``softmax`` for ``probabilities``, or None.

    Returns:
        The choice, and what the report should say of it.

    Raises:
        SpaceError: No output fits the action space.
        LoadError: Several do.
    """
    wanted = "probabilities" if asked == "softmax" else asked
    if wanted is not None and wanted not in HEADS:
        raise unknown("head", str(asked), HEADS)
    found, reasons = [], []
    for output in graph.outputs:
        end = _end(graph, output)
        try:
            head, meaning = _head(end, shapes[output], space, wanted)
        except SpaceError as error:
            reasons.append(f"Output {output!r}: {error}")
            continue
        left_out = end.activation in SQUASHING.get(meaning, ())
        found.append(Reading(head, output, meaning, frozenset(end.bare if left_out else ())))
    if not found:
        raise SpaceError(" ".join(reasons))
    if len(found) > 1:
        raise LoadError(
            f"Outputs {', '.join(repr(r.output) for r in found)} all fit the action space. Say head=..., or save "
            "a model that returns the policy's output alone."
        )
    return found[0], _notes(found[0], guessed=wanted is None)


def _end(graph: Graph, output: str) -> _End:
    """Walk back from an output over scalings to the last activation."""
    known = {node.name: node for node in graph.nodes}
    scale, offset, bare, node = 1.0, 0.0, [], known.get(output)
    while node is not None:
        bare.append(node.name)
        step = _scaling(node)
        if step is None:
            break
        offset += scale * step[1]
        scale *= step[0]
        node = known.get(next(str(i) for i in node.inputs if isinstance(i, str)))
    if node is None:
        return _End("linear", ())
    name = {"Softmax": "softmax", "ops.Tanh": "tanh", "ops.Sigmoid": "sigmoid"}.get(node.kind)
    return _End(str(name or node.config.get("activation") or "linear"), tuple(bare), scale, offset)


def _scaling(node: Node) -> tuple[float, float] | None:
    if node.kind == "Rescaling" and all(isinstance(node.config.get(k), int | float) for k in ("scale", "offset")):
        return float(node.config["scale"]), float(node.config["offset"])
    numbers = [float(i) for i in node.inputs if not isinstance(i, str)]
    if node.kind == "ops.Multiply" and len(node.inputs) == 2 and len(numbers) == 1:
        return numbers[0], 0.0
    return None


def _head(end: _End, shape: tuple[int, ...], space: gym.Space[Any], wanted: str | None) -> tuple[Head, str]:
    meaning = wanted or _guess(end.activation, space)
    width = shape[0] if len(shape) == 1 else 0
    needed = SQUASHING.get(meaning, ())
    if needed and end.activation not in needed:
        raise SpaceError(
            f"{meaning!r} needs {' or '.join(needed)} at the end, which ends in {end.activation!r}. Say another head."
        )
    if meaning not in ("probabilities", "mean") and end.activation == "softmax":
        raise SpaceError(f"It ends in a softmax, so it is not {meaning!r}. Say head='probabilities'.")
    head = _discrete(meaning, end, width, space) or _continuous(meaning, end, width, space)
    if head is None:
        raise SpaceError(
            f"{meaning!r} of shape {shape}, after {end.activation!r}, does not fit the action space {space}. "
            "Say another head, or name the environment that it was trained in."
        )
    return head, meaning


def _guess(activation: str, space: gym.Space[Any]) -> str:
    if isinstance(space, spaces.Box):
        return "squashed_mean" if activation == "tanh" else "mean"
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    return "q_values" if isinstance(space, spaces.Discrete) else "logits"


def _discrete(meaning: str, end: _End, width: int, space: gym.Space[Any]) -> Head | None:
    shape = tuple(space.shape or ())
    scaled = (end.scale, end.offset) != (1.0, 0.0)
    if meaning not in ("probabilities", "logits", "q_values") or (scaled and meaning == "probabilities"):
        return None
    if isinstance(space, spaces.Discrete):
        if meaning == "probabilities" and end.activation == "sigmoid":
            return Head("bernoulli", shape=shape) if width == 1 and space.n == 2 else None
        kind: Any = "q_values" if meaning == "q_values" else "categorical"
        return Head(kind, sizes=(int(space.n),), shape=shape) if width == space.n else None
    if isinstance(space, spaces.MultiDiscrete) and meaning == "logits":
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        return Head("categorical", sizes=sizes, shape=shape) if width == sum(sizes) else None
    fits = isinstance(space, spaces.MultiBinary) and width == int(np.prod(shape)) and meaning != "q_values"
    return Head("bernoulli", shape=shape) if fits and end.activation != "softmax" else None


def _continuous(meaning: str, end: _End, width: int, space: gym.Space[Any]) -> Head | None:
    if (
        not isinstance(space, spaces.Box)
        or meaning not in ("mean", "squashed_mean")
        or width != int(np.prod(space.shape))
    ):
        return None
    low, high = np.asarray(space.low, dtype=np.float32), np.asarray(space.high, dtype=np.float32)
    if meaning == "squashed_mean":
        if len(end.bare) > 1:
            low, high = np.full_like(low, end.offset - end.scale), np.full_like(high, end.offset + end.scale)
        elif not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
    return Head("gaussian", low=low, high=high, squashed=meaning == "squashed_mean", shape=tuple(space.shape))


def _notes(reading: Reading, *, guessed: bool) -> tuple[str, ...]:
    source = "as its last activation and the action space suggest" if guessed else "as it was said"
    notes = [f"output {reading.output!r} is taken as {reading.meaning}, {source}"]
    if reading.meaning == "squashed_mean" and len(reading.bare) == 1:
        notes.append("the tanh at its end is scaled to the bounds of the action space")
    return tuple(notes)
