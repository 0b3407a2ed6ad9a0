"""Any ``torch.nn.Module`` as an agent, from an environment and a function that says what the network computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerl import environments, heads
from prunerl.agents import module_file, module_optimizer
from prunerl.agents.module_checks import check_forward, check_normalizer, check_tensors, example_of, pairs
from prunerl.agents.module_head import Meaning, head_of
from prunerl.agents.module_network import (
    Forward,
    Network,
    Step,
    check_stack,
    copied,
    noise_ties,
    rebuilt,
    renumbered,
    unpack,
)
from prunerl.agents.module_optimizer import Recipe
from prunerl.errors import LearnError, LoadError, RemovalError, TraceError
from prunerl.trace import Trace, trace
from prunerl.trace import forward as computed
from prunerl.types import Critic, EnvSpec, Head, Normalizer, Policy, State, Tie

Rebuild = Callable[[nn.Module, Mapping[str, tuple[int, ...]]], nn.Module]
"""From a copy of the module and the shape of each of its tensors to a module of such shapes."""

Memory = Callable[[nn.Module], tuple[tuple[int, ...], ...]]
"""From a recurrent module to the shape of each tensor of its memory, without the batch: (layers, units)."""

ActionForward = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a module, a batch of observations and one of actions to their values, shape (batch, values)."""

__all__ = ["Adapter", "ModuleAgent", "from_module", "load_module", "unpack"]

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
        """Targets follow what they are targets of, noise follows means."""
        tensors = self.state.tensors
        follow = [pair for source, target in self.adapter.targets.items() for pair in pairs(tensors, source, target)]
        copies = tuple(Tie(s, d, t, d) for s, t in follow for d in range(tensors[s].dim()))
        return (*copies, *noise_ties(self.policy.network))

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks that were named."""
        return self.adapter.stacks

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


def from_module(
    module: nn.Module,
    *,
    env: str | EnvSpec,
    head: Meaning | Head,
    forward: Forward | None = None,
    normalizer: Normalizer | None = None,
    std: ArrayLike | None = None,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    targets: Mapping[str, str] | None = None,
    critics: Mapping[str, Forward] | None = None,
    action_critics: Mapping[str, ActionForward] | None = None,
    stacks: Sequence[str] = (),
    step: Step | None = None,
    memory: Memory | None = None,
    masked: bool = False,
    rebuild: Rebuild | None = None,
    algorithm: str | None = None,
) -> ModuleAgent:
    """Take over a live module, which is left as it is.

    Args:
        module: The network that acts. Where several networks belong together, put them into an ``nn.ModuleDict``.
        env: Gymnasium id or specification of the environment that it acts in.
        head: What the output means, see :func:`prunerl.agents.module_head.head_of`, or a head.
        forward: From the module and a batch of observations, float or as the environment gives them, to the output;
            by default ``module(observations)``. Dict observations come as one vector: see :func:`unpack`.
        normalizer: Observation statistics that the module was trained with.
        std: Standard deviation of each action, where the output is a mean.
        optimizer: The live optimizer(s), whose moments are cut with the parameters: see :meth:`ModuleAgent.optimizer`.
        targets: Prefix of a part of the module → prefix of its target network.
        critics: Name → function from (module, observations) to values, for parts that are needed only to train.
        action_critics: Name → function from (module, observations, actions) to values; they keep equal widths.
        stacks: Names of Sequentials of Linear and one activation in turn, out of which hidden layers may be left.
        step: Of a recurrent module, from (module, observations, memory) to (output, next memory); ``forward`` then
            maps sequences, (batch, time, *observation) → (batch, time, outputs), from an empty memory.
        memory: Of a recurrent module, its memory's shapes.
        masked: The environment says by ``action_masks()`` which actions are allowed.
        rebuild: From (copy of the module, shapes) to a module of such shapes, for modules whose forward contains
            widths.
        algorithm: Name for the report; by default that of the module's class.

    Raises:
        LoadError: The module cannot be taken over.
        SpaceError: It does not fit the environment.

    >>> network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    >>> agent = from_module(network, env="CartPole-v1", head="logits")
    >>> agent.policy.head.kind
    'categorical'
    """
    check_tensors(module)
    if (step is None) != (memory is None):
        raise LoadError("A recurrent module needs both step= and memory=; another one needs neither.")
    spec = EnvSpec(env) if isinstance(env, str) else env
    made = environments.make(spec)
    observed, actions = made.observation_space, made.action_space
    made.close()
    meant = head if isinstance(head, Head) else head_of(head, actions, spec.id, std)
    template, tried = copied(module), copied(module).requires_grad_(False)
    compute = forward or _call
    for prefix in stacks:
        check_stack(template, prefix)
    network = Network(tried, compute, step).eval()
    shapes = () if memory is None else tuple(tuple(shape) for shape in memory(tried))
    shape = environments.packed_shape(observed)
    check_normalizer(normalizer, shape)
    policy = Policy(network, meant, shape, normalizer, shapes, masked)
    example = example_of(policy, observed)
    check_forward(policy, example, type(module).__name__)
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)
    recipes, moments = module_optimizer.taken(optimizers, module)
    adapter = Adapter(
        template=template,
        policy=policy,
        example=example,
        forward=compute,
        step=step,
        memory=memory or _no_memory,
        critics=dict(critics or {}),
        action_critics=dict(action_critics or {}),
        targets=dict(targets or {}),
        stacks=tuple(stacks),
        rebuild=rebuild,
        optimizers=recipes,
    )
    state = State({n: t.detach().clone() for n, t in module.state_dict().items()}, moments)
    for source, target in adapter.targets.items():
        pairs(state.tensors, source, target)
    return ModuleAgent(algorithm or type(module).__name__, spec, adapter, state)


def load_module(
    path: str | Path,
    module: nn.Module,
    *,
    forward: Forward | None = None,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    critics: Mapping[str, Forward] | None = None,
    action_critics: Mapping[str, ActionForward] | None = None,
    step: Step | None = None,
    memory: Memory | None = None,
    rebuild: Rebuild | None = None,
) -> ModuleAgent:
    """Load an agent that :meth:`ModuleAgent.save` wrote.

    Args:
        path: The file.
        module: A module of the same class, at the widths that it had before it was pruned or at any other.
        optimizer: Live optimizer(s) over ``module``, for their classes and options; the moments come from the file.
        forward, critics, action_critics, step, memory, rebuild: As for :func:`from_module`; functions are not saved.

    Raises:
        LoadError: The file is not such a file, or not of such a module.
    """
    settings, state = module_file.read(path)
    agent = from_module(
        module,
        **settings,
        forward=forward,
        optimizer=optimizer,
        critics=critics,
        action_critics=action_critics,
        step=step,
        memory=memory,
        rebuild=rebuild,
    )
    unknown = sorted(state.tensors.keys() - agent.state.tensors.keys())
    if unknown:
        raise LoadError(
            f"{path} holds {unknown[0]!r}, which {type(module).__name__} does not have. Give its own class."
        )
    # In the module's own order: a file has another, and optimizers go by order.
    known = {n: state.tensors[n] for n in agent.state.tensors if n in state.tensors}
    try:
        return agent.with_state(replace(state, tensors=known))
    except RemovalError as error:
        raise LoadError(f"{path} does not fit {type(module).__name__}: {error}") from error


def _call(module: nn.Module, observations: Tensor) -> Tensor:
    output: Tensor = module(observations)
    return output


def _no_memory(module: nn.Module) -> tuple[tuple[int, ...], ...]:
    return ()


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
