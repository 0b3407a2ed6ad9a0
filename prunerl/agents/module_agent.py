"""A ``torch.nn.Module`` as an agent: data from which live modules of other widths are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerl import heads
from prunerl.agents import module_file, module_optimizer
from prunerl.agents.module_checks import pairs
from prunerl.agents.module_network import Forward, Network, Step, copied, noise_ties, rebuilt, renumbered, shared_ties
from prunerl.agents.module_optimizer import Recipe
from prunerl.errors import LearnError, RemovalError, TraceError
from prunerl.trace import Trace, trace
from prunerl.trace import forward as computed
from prunerl.types import Critic, EnvSpec, Policy, State, Tie

Rebuild = Callable[[nn.Module, Mapping[str, tuple[int, ...]]], nn.Module]
"""From a copy of the module and the shape of each of its tensors to a module of such shapes."""

Memory = Callable[[nn.Module], tuple[tuple[int, ...], ...]]
"""From a recurrent module to the shape of each tensor of its memory, without the batch: (layers, units)."""

ActionForward = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a module, a batch of observations and one of actions to their values, shape (batch, values)."""

TOLERANCE = 1e-4
"""Largest difference of a rebuilt module to the graph of the given one, relative to the largest output."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """How a module is used, whatever its widths.

    Attributes:
        template: A private copy of the module as it was given.
        policy: What is deployed, with the template as its network.
        example: Inputs of the network, to try a module on.
        critics, action_critics: Functions of the module that give values, by name.
        targets: Prefix of a part of the module → prefix of the part that follows it.
        stacks: See :class:`prunerl.types.Agent`.
        rebuild: Makes modules of other widths; None for :func:`prunerl.agents.resize.resize`.
        optimizers: How to build the optimizers again.
        forward, step, memory: What the module computes, see :func:`from_module`.
        ties: What was found to follow what, by the names of the tensors that there are.
    """

    template: nn.Module
    policy: Policy
    example: Tensor
    forward: Forward
    step: Step | None
    memory: Memory
    critics: Mapping[str, Forward] = field(default_factory=dict)
    action_critics: Mapping[str, ActionForward] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    stacks: tuple[str, ...] = ()
    rebuild: Rebuild | None = None
    optimizers: tuple[Recipe, ...] = ()
    ties: dict[tuple[str, ...], tuple[Tie, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def traced(self) -> Trace | None:
        """The graph of the module as it was given, which says what smaller ones are to compute."""
        try:
            return trace(self.policy.network, self.example)
        except TraceError:  # nothing to compare with; whoever prunes the agent is told
            return None


@dataclass(frozen=True, eq=False)
class ModuleAgent:
    """A ``torch.nn.Module`` that acts, as data; a live module is built from it when it is needed."""

    algorithm: str
    env: EnvSpec
    adapter: Adapter
    state: State
    notes: tuple[str, ...] = ()

    @cached_property
    def policy(self) -> Policy:
        """What is deployed."""
        live = self.module().requires_grad_(False)
        network = Network(live, self.adapter.forward, self.adapter.step).eval()
        return replace(self.adapter.policy, network=network, memory=self.adapter.memory(live))

    @cached_property
    def critics(self) -> tuple[Critic, ...]:
        """The functions that were named as critics."""
        adapter, live = self.adapter, self.module().requires_grad_(False)
        policy = self.policy

        def joined(observations: Tensor) -> Tensor:
            action = heads.executed(policy.head, policy.network(observations))
            return torch.cat([observations.flatten(1).float(), action], dim=1)

        values = [Critic(n, Network(live, f).eval(), _same, n) for n, f in adapter.critics.items()]
        shape = policy.observation_shape
        paired = [
            Critic(name, Network(live, _WithActions(function, shape)).eval(), joined, "action critics")
            for name, function in adapter.action_critics.items()
        ]
        return (*values, *paired)

    @property
    def ties(self) -> tuple[Tie, ...]:
        """Targets follow what they are targets of, noise follows means, critics what they share with the policy."""
        known, names = self.adapter.ties, tuple(self.state.tensors)
        if names not in known:  # it takes a trace, and holds as long as no layer is left out
            tensors = self.state.tensors
            follow = [
                pair for source, target in self.adapter.targets.items() for pair in pairs(tensors, source, target)
            ]
            copies = [Tie(s, d, t, d) for s, t in follow for d in range(tensors[s].dim())]
            known[names] = (*copies, *noise_ties(self.policy.network), *self._shared())
        return known[names]

    def _shared(self) -> tuple[Tie, ...]:
        if not self.critics:
            return ()
        example = self.adapter.example
        acting = trace(self.policy.network, example)
        valuing = [trace(critic.network, critic.inputs(example)) for critic in self.critics]
        return shared_ties(acting, valuing, _shapes(self.state))

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` can train it on."""
        return False

    @property
    def suffix(self) -> str:
        """What the name of a saved file ends in."""
        return ".safetensors"

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks that were named."""
        return self.adapter.stacks

    def simplified(self) -> ModuleAgent:
        """Return the agent itself."""
        return self

    def with_state(self, state: State) -> ModuleAgent:
        """Return the same agent with other tensors; layers left in the stacks are numbered anew.

        Raises:
            RemovalError: The module cannot have these widths, or does not compute with them what it should.
        """
        names = renumbered(state.tensors, _all_stacks(self.adapter))
        renamed = State(
            {names[n]: t for n, t in state.tensors.items()},
            {names[n]: m for n, m in state.moments.items()},
            {names[n]: m for n, m in state.masks.items()},
        )
        changed = replace(self, state=renamed)
        if _shapes(renamed) != _shapes(self.state):
            _check_rebuilt(changed)
        return changed

    def module(self) -> nn.Module:
        """Return a fresh live module of the class that was given, with this agent's widths and tensors.

        Raises:
            RemovalError: The module cannot have these widths.
        """
        adapter, shapes = self.adapter, _shapes(self.state)
        try:
            if adapter.rebuild is None:
                live = rebuilt(adapter.template, shapes, _all_stacks(adapter))
            else:
                live = adapter.rebuild(copied(adapter.template), shapes)
            live.load_state_dict(dict(self.state.tensors), strict=True)
        except (ValueError, RuntimeError) as error:
            raise RemovalError(
                f"{type(adapter.template).__name__} cannot be rebuilt at these widths: {error} Give rebuild=, a "
                "function from (module, shapes) to a module of such shapes."
            ) from error
        return live

    def optimizer(self, module: nn.Module, index: int = 0) -> Optimizer:
        """Return an optimizer over a module from :meth:`module`, with its moments, so that training can go on.

        Args:
            module: The live module.
            index: Which of the optimizers that were given.

        Raises:
            LearnError: No such optimizer was given.
        """
        return module_optimizer.build(self.adapter.optimizers, index, module, self.state.moments)

    def learn(self, steps: int, *, seed: int) -> ModuleAgent:
        """Refuse: a module does not say how it is trained.

        Raises:
            LearnError: Always.
        """
        raise LearnError(
            f"How a {self.algorithm} is trained is not known. Leave 'finetune' out of repair, or train agent.module() "
            "with agent.optimizer(module) in your own script and come back with prunerl.from_module; "
            "prunerl.masks.hold keeps single weights at zero meanwhile."
        )

    def save(self, path: str | Path) -> None:
        """Write the tensors as a safetensors file, which needs three lines and not this package's classes to load.

        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> from prunerl.agents.module import from_module
        >>> from prunerl.agents.resize import resize
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> agent = from_module(network, env="CartPole-v1", head="logits")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     agent.save(f"{folder}/small.safetensors")
        ...     tensors = load_file(f"{folder}/small.safetensors")
        >>> resize(network, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        >>> network.load_state_dict(tensors)
        <All keys matched successfully>

        Raises:
            RunError: The file cannot be written.
        """
        module_file.save(path, self, self.adapter.targets)


def _same(observations: Tensor) -> Tensor:
    return observations


class _WithActions:
    """Takes a vector apart into a flat observation and an action."""

    def __init__(self, function: ActionForward, shape: tuple[int, ...]) -> None:
        self.function, self.shape = function, shape

    def __call__(self, module: nn.Module, joined: Tensor) -> Tensor:
        count = int(np.prod(self.shape))
        return self.function(module, joined[:, :count].reshape(-1, *self.shape), joined[:, count:])


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}


def _all_stacks(adapter: Adapter) -> tuple[str, ...]:
    """Return the stacks and those of their targets, which lose the same layers."""
    found = list(adapter.stacks)
    for source, target in adapter.targets.items():
        found += [target + s[len(source) :] for s in adapter.stacks if f"{s}.".startswith(f"{source}.")]
    return tuple(dict.fromkeys(found))


def _check_rebuilt(agent: ModuleAgent) -> None:
    """Check that the module computes at its new widths what the graph of the given one does with these tensors.

    Raises:
        RemovalError: It does not.
    """
    adapter = agent.adapter
    network = agent.policy.network
    mend = "A width is written in its forward, such as a reshape or a number of heads. Give rebuild=."
    name = type(adapter.template).__name__
    with torch.no_grad():
        try:
            got = network(adapter.example)
        except Exception as error:  # whatever a third party's forward raises
            raise RemovalError(f"{name} does not run at its new widths: {error}. {mend}") from error
        if adapter.traced is None or agent.state.tensors.keys() != adapter.template.state_dict().keys():
            return
        try:
            wanted = computed(adapter.traced, agent.state.tensors, adapter.example)
        except RuntimeError:  # the width is written in the graph too, and ``rebuild`` has mended it in the module
            return
    gap = float((got - wanted).abs().max())
    if not gap <= TOLERANCE * (1.0 + float(wanted.abs().max())):
        raise RemovalError(f"{name} computes something else at its new widths (by {gap:.3g}). {mend}")
