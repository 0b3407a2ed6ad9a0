"""Policies in ``.keras`` files: read as data, pruned, and written back so that plain Keras loads them.

Keras itself is not needed: the archive holds JSON and HDF5, and is the same for every backend of Keras 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
from torch import Tensor

from prunerl import environments
from prunerl.agents import keras_file, keras_surgery
from prunerl.agents.keras_file import Contents
from prunerl.agents.keras_functions import identity
from prunerl.agents.keras_graph import Graph, Network, attribute
from prunerl.agents.keras_head import HEADS, Reading, choose
from prunerl.errors import LearnError, LoadError, SpaceError
from prunerl.types import Critic, EnvSpec, Policy, State, Tie

CONSTANTS = ("Normalization",)
"""Layers whose tensors belong to the observation: they are kept, and are not part of the state."""

MEANING = "prunerl_head"
"""Key of the metadata under which a saved file says what its output means."""


@dataclass(frozen=True, eq=False)
class KerasAgent:
    """A policy from a ``.keras`` file.

    Attributes:
        env: The environment that it acts in.
        contents: The model's configuration and graph; its tensors are those that nothing may be removed from.
        reading: Which output is the policy and what it means.
        state: Every other tensor, kernels as PyTorch has them: (outputs, inputs, *space).
        notes: What the report should say.
    """

    env: EnvSpec
    contents: Contents
    reading: Reading
    state: State
    notes: tuple[str, ...] = ()

    @property
    def algorithm(self) -> str:
        """``keras``; the file does not say how the policy was trained."""
        return "keras"

    @cached_property
    def policy(self) -> Policy:
        """What is deployed: the layers up to the head, without a final softmax, sigmoid or tanh."""
        network = self._network(self.reading.deployed(self.contents.graph))
        return Policy(network, self.reading.head, self.contents.graph.shape)

    @property
    def critics(self) -> tuple[Critic, ...]:
        """The model's other outputs, such as a value beside the policy."""
        graph = self.contents.graph
        others = [name for name in graph.outputs if name != self.reading.output]
        return tuple(Critic(name, self._network(graph.upto(name)), identity, name) for name in others)

    @cached_property
    def ties(self) -> tuple[Tie, ...]:
        """Layers of the other outputs follow the shared layers that they read."""
        return keras_surgery.ties(self.contents.graph, self.contents.graph.upto(self.reading.output))

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` can train it on."""
        return False

    @property
    def suffix(self) -> str:
        """What the name of a saved file ends in."""
        return ".keras"

    @property
    def stacks(self) -> tuple[str, ...]:
        """The hidden Dense layers of a chain: each can be left out."""
        return keras_surgery.removable(self.contents.graph)

    def simplified(self) -> KerasAgent:
        """Return the agent itself."""
        return self

    def with_state(self, state: State) -> KerasAgent:
        """Return the same agent with other tensors, without the layers that have none any more.

        Raises:
            RemovalError: A layer is missing that cannot be left out.
        """
        contents = keras_surgery.without(self.contents, state.tensors)
        return replace(self, contents=contents, state=state)

    def learn(self, steps: int, *, seed: int) -> KerasAgent:
        """Refuse: Keras has layers and optimizers, but no reinforcement learning of its own.

        Raises:
            LearnError: Always.
        """
        raise LearnError(
            "A .keras file does not say how its policy was trained, so it cannot be trained on here. Leave "
            "'finetune' out of the repairs, save the agent, and go on with your own training script."
        )

    def save(self, path: str | Path) -> None:
        """Write a ``.keras`` file that ``keras.saving.load_model`` reads on every backend, not compiled.

        Raises:
            RunError: The file cannot be written.
        """
        from prunerl.files import write_atomically

        tensors = {**self.contents.tensors, **{n: t.detach().cpu() for n, t in self.state.tensors.items()}}
        config = keras_surgery.resized(self.contents, tensors)
        # Keras ignores what it does not know there; a head that was said once must not be guessed the next time.
        metadata = {**self.contents.metadata, MEANING: self.reading.meaning}
        contents = replace(self.contents, config=config, metadata=metadata, tensors=tensors)
        write_atomically(path, keras_file.write(contents))

    def _network(self, graph: Graph) -> Network:
        tensors = {n: t.clone() for n, t in {**self.contents.tensors, **self.state.tensors}.items()}
        return Network(graph, tensors).eval()


def load(path: str | Path, *, env: EnvSpec, head: str | None = None) -> KerasAgent:
    """Load a policy from a ``.keras`` file of Keras 3, whichever backend wrote it.

    Args:
        path: The file: a Sequential or Functional model from one observation to the policy's output.
        env: The environment to act in; must fit the model's input and output.
        head: What the output means: ``probabilities`` (or ``softmax``), ``logits``, ``q_values``, ``mean`` or
            ``squashed_mean``; by default as an earlier ``save`` wrote it into the file, or read off the last activation
            and the action space.

    Raises:
        LoadError: The file is no such model, or a layer of it is not supported.
        SpaceError: The environment's spaces do not fit.
        NameUnknownError: ``head`` is none of these.
    """
    path = Path(path)
    contents = keras_file.read(path)
    known = contents.metadata.get(MEANING)
    head = known if head is None and known in HEADS else head
    made = environments.make(env)
    spaces = (made.observation_space, made.action_space)
    made.close()
    _check_observation(contents.graph, env, spaces[0])
    try:
        widths = keras_surgery.shapes(contents.graph, contents.tensors)
        reading, notes = choose(contents.graph, widths, spaces[1], head)
        agent = KerasAgent(env, *_split(contents, reading), notes)
        _ = agent.ties  # refuses a graph that cannot follow
    except LoadError as error:
        raise type(error)(f"{path}: {error}") from error
    if "compile_config" in contents.config:
        left = "the optimizer's state and the compile settings are left out when it is saved; compile it anew to train"
        agent = replace(agent, notes=(*notes, left))
    return agent


def _split(contents: Contents, reading: Reading) -> tuple[Contents, Reading, State]:
    fixed = {attribute(node.name) for node in contents.graph.nodes if node.kind in CONSTANTS}
    constants: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in contents.tensors.items():
        (constants if name.rpartition(".")[0] in fixed else tensors)[name] = tensor
    return replace(contents, tensors=constants), reading, State(tensors)


def _check_observation(graph: Graph, env: EnvSpec, space: gym.Space[Any]) -> None:
    got = environments.packed_shape(space)
    if got != graph.shape:
        raise SpaceError(
            f"The model takes observations of shape {graph.shape}, but {env.id!r} gives {got}. "
            "Name the environment that it was trained in, with the wrappers that it was trained with."
        )
