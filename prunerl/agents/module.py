"""Any ``torch.nn.Module`` as an agent, from an environment and a function that says what the network computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerl import environments
from prunerl.agents import module_file, module_optimizer
from prunerl.agents.module_agent import ActionForward, Adapter, Memory, ModuleAgent, Rebuild
from prunerl.agents.module_checks import check_forward, check_normalizer, check_tensors, example_of, pairs
from prunerl.agents.module_head import Meaning, head_of
from prunerl.agents.module_network import Forward, Network, Step, check_stack, copied, unpack
from prunerl.errors import LoadError, RemovalError
from prunerl.types import EnvSpec, Head, Normalizer, Policy, State

__all__ = ["ModuleAgent", "from_module", "load_module", "unpack"]


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
        critics: Name → function from (module, observations) to values, or to whatever else is needed only to train,
            such as the logarithm of a deviation. What it shares with the policy is cut along.
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
