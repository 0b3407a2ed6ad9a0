"""A Keras model as a graph of layers, and the graph as a PyTorch network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunerl.agents.keras_builders import build, variables
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError

MAX_OUTPUT = 2**24
"""Numbers that one layer may compute for one observation."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The layers that lead from the observation to the outputs, in order of computation.

    Attributes:
        input: Name of the node that is the observation; it is not among ``nodes``.
        shape: Shape of one observation.
        nodes: Every call.
        outputs: Names of the nodes that the model returns.
    """

    input: str
    shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def upto(self, output: str) -> Graph:
        """Return what one output needs."""
        needed = {output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(i for i in node.inputs if isinstance(i, str))
        return replace(self, nodes=tuple(n for n in self.nodes if n.name in needed), outputs=(output,))

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before and nothing else."""
        before = [self.input, *(node.name for node in self.nodes)]
        return all(node.inputs == (name,) for node, name in zip(self.nodes, before, strict=False))


class Network(nn.Module):
    """Computes the first output of a graph; parameters are called ``<layer>.kernel`` and so on."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        for node in graph.nodes:
            name = attribute(node.name)
            own = {v: tensors[f"{name}.{v}"] for v in variables(node)}
            self.add_module(name, build(node, own))

    def forward(self, observations: Tensor) -> Tensor:
        for name, value in self._values(observations):
            if name == self.graph.outputs[0]:
                return value
        return observations

    def shapes(self, observations: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the shape of each node's value, without the batch.

        Raises:
            LoadError: The layers do not fit each other, or a value is far larger than a policy needs.
        """
        found: dict[str, tuple[int, ...]] = {}
        try:
            for name, value in self._values(observations):
                found[name] = tuple(value.shape[1:])
                if value[0].numel() > MAX_OUTPUT:
                    raise LoadError(f"Layer {name!r} computes {found[name]} numbers, too many for a policy.")
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, LoadError):
                raise
            name = next((n.name for n in self.graph.nodes if n.name not in found), self.graph.input)
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(f"Layer {name!r} does not fit those before it: {first}. Save the model again.") from error
        return found

    def _values(self, observations: Tensor) -> Iterator[tuple[str, Tensor]]:
        values = {self.graph.input: observations.to(torch.float32)}
        yield self.graph.input, values[self.graph.input]
        for node in self.graph.nodes:
            arguments = [values[i] if isinstance(i, str) else i for i in node.inputs]
            values[node.name] = self.get_submodule(attribute(node.name))(*arguments)
            yield node.name, values[node.name]


def attribute(name: str) -> str:
    """Return a layer's name as a module may be called.

    >>> attribute("dense_1"), attribute("a.b"), attribute("forward")
    ('dense_1', 'a_b', 'forward_')
    """
    plain = re.sub(r"\W", "_", name) or "_"
    return f"{plain}_" if hasattr(nn.Module, plain) or plain in ("training", "graph") else plain
