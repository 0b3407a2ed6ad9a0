"""What an agent promises as it stands: its parts, its tensors, its environment and the network that acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from prunerl import environments, heads
from prunerl.errors import CheckError
from prunerl.rollout import rollout
from prunerl.types import Agent, Critic, EnvSpec, Head, Normalizer, Policy, State, Tie
from prunerl.visits import inputs

TOLERANCE = 1e-4
"""Largest difference between two ways to compute the same, relative to the largest output."""
STATES = 64
KINDS: dict[type[gym.Space[Any]], tuple[str, ...]] = {
    gym.spaces.Discrete: ("categorical", "q_values"),
    gym.spaces.MultiDiscrete: ("categorical", "q_values"),
    gym.spaces.MultiBinary: ("bernoulli",),
    gym.spaces.Box: ("gaussian",),
}
"""Kind of an action space → the heads that fit it."""


def broken(what: str, mend: str) -> CheckError:
    """Build the error for a broken promise: what was got, and how to mend it."""
    return CheckError(f"{what} {mend}")


def guarded(what: str, mend: str, call: Callable[[], Any]) -> Any:
    """Call something of the adapter; whatever it raises becomes a CheckError."""
    try:
        return call()
    except Exception as error:  # a third party's adapter can raise anything
        raise broken(f"{what}: {type(error).__name__}: {error}.".replace("..", "."), mend) from error


def members(agent: Any) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "algorithm": str,
        "env": EnvSpec,
        "policy": Policy,
        "state": State,
        "ties": tuple,
        "critics": tuple,
        "stacks": tuple,
        "suffix": str,
        "learns": bool,
        "notes": tuple,
    }
    for name, kind in kinds.items():
        if not hasattr(agent, name):
            raise broken(f"The agent has no {name!r}.", "See prunerl.types.Agent for what it must have.")
        _is(f"agent.{name}", getattr(agent, name), kind)
    for name in ("with_state", "simplified", "learn", "save"):
        if not callable(getattr(agent, name, None)):
            raise broken(f"The agent has no method {name!r}.", "See prunerl.types.Agent for what it must do.")
    entries: dict[str, type] = {"ties": Tie, "critics": Critic, "stacks": str, "notes": str}
    for name, kind in entries.items():
        for entry in getattr(agent, name):
            _is(f"An entry of agent.{name}", entry, kind)
    _is("agent.policy.network", agent.policy.network, nn.Module)
    _is("agent.policy.head", agent.policy.head, Head)
    _is("agent.policy.normalizer", agent.policy.normalizer, (Normalizer, type(None)))


def _is(what: str, got: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(got, kind):
        name = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise broken(f"{what} is a {type(got).__name__}.", f"Make it a {name}.")


def tensors(agent: Agent) -> None:
    state = agent.state
    for name, tensor in state.tensors.items():
        _is(f"state.tensors[{name!r}]", tensor, Tensor)
        if tensor.device.type != "cpu" or tensor.requires_grad:
            raise broken(f"state.tensors[{name!r}] is on {tensor.device} or has a gradient.", "Detach it to the CPU.")
    same_values("policy.network", agent.policy.network, state)
    for name, entries in state.moments.items():
        _known(f"moments[{name!r}]", name, state)
        for key, moment in entries.items():
            if moment.dim() > 0 and moment.shape != state.tensors[name].shape:
                raise broken(
                    f"state.moments[{name!r}][{key!r}] has shape {tuple(moment.shape)}, its parameter has "
                    f"{tuple(state.tensors[name].shape)}.",
                    "Key the optimizer's tensors by the parameter that they belong to.",
                )
    for name, mask in state.masks.items():
        _known(f"masks[{name!r}]", name, state)
        if mask.dtype != torch.bool or mask.shape != state.tensors[name].shape:
            raise broken(f"state.masks[{name!r}] is not a bool tensor of the parameter's shape.", "True means keep.")


def _known(what: str, name: str, state: State) -> None:
    if name not in state.tensors:
        raise broken(f"state.{what} belongs to no tensor.", f"Use the names of state.tensors: {list(state.tensors)}.")


def same_values(what: str, network: nn.Module, state: State) -> None:
    for name, parameter in network.named_parameters():
        if name not in state.tensors:
            raise broken(
                f"{what} has a parameter {name!r}, which is not in state.tensors.",
                "Nest its modules so that named_parameters() gives the names of state.tensors.",
            )
        if not torch.equal(parameter.detach(), state.tensors[name]):
            raise broken(
                f"{what}'s {name!r} differs from state.tensors[{name!r}].", "Build the network from the agent's state."
            )


def environment(policy: Policy, env: EnvSpec) -> None:
    made = guarded(f"Environment {env.id!r} cannot be made", "Mend agent.env.", lambda: environments.make(env))
    observed, actions = made.observation_space, made.action_space
    made.close()
    shape = environments.packed_shape(observed)
    if tuple(policy.observation_shape) != shape:
        raise broken(
            f"policy.observation_shape is {policy.observation_shape}, {env.id!r} observes {shape}.",
            "Give the packed shape, prunerl.environments.packed_shape(space).",
        )
    own = policy.normalizer
    for name, value in {} if own is None else {"mean": own.mean, "var": own.var}.items():
        if np.shape(value) != shape:
            raise broken(
                f"normalizer.{name} has shape {np.shape(value)}, observations have {shape}.",
                "Give one number for each entry of an observation.",
            )
    wrong = _head_problem(policy.head, actions)
    if wrong is not None:
        raise broken(
            f"Head {policy.head.kind!r} does not fit the actions {actions}: {wrong}.", "See prunerl.types.Head."
        )


def _head_problem(head: Head, space: gym.Space[Any]) -> str | None:
    kinds = next((kinds for kind, kinds in KINDS.items() if isinstance(space, kind)), ())
    if head.kind not in kinds:
        return f"its kind must be one of {list(kinds)}"
    if tuple(head.shape) != tuple(space.shape or ()):
        return f"its shape is {head.shape}, an action's {space.shape}"
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        sizes = (int(space.n),) if isinstance(space, gym.spaces.Discrete) else tuple(space.nvec.ravel().tolist())
        return None if tuple(head.sizes) == sizes else f"its sizes are {head.sizes}, they must be {sizes}"
    if isinstance(space, gym.spaces.Box):
        for name, bound, wanted in (("low", head.low, space.low), ("high", head.high, space.high)):
            if bound is None or not np.array_equal(np.ravel(bound), np.ravel(wanted)):
                return f"its {name} is {bound}, it must be {wanted}"
    return None


def visited(agent: Agent, policy: Policy, episodes: int, seed: int) -> Tensor:
    """Return the network's inputs in states that the random policy visits."""
    seeds = range(seed, seed + episodes)
    wandered = guarded(
        f"The random policy cannot play {agent.env.id!r}",
        "Mend the environment or agent.env.",
        lambda: rollout(None, agent.env, seeds, record=True, workers=1),
    )
    return inputs(policy, wandered)[:STATES]


def episodes_repeat(agent: Agent, policy: Policy, episodes: int, seed: int) -> None:
    """Play the same episodes twice."""

    def play() -> Any:
        return rollout(policy, agent.env, range(seed, seed + episodes), workers=1)

    mend = "The policy must take the environment's observations and give its actions."
    first, second = (guarded("The agent cannot play an episode", mend, play) for _ in range(2))
    if first.returns != second.returns:
        raise broken(
            f"The same seeds gave returns {first.returns} and then {second.returns}.",
            "Put the network into eval mode, and let the environment draw from its own seeded generator.",
        )


def network(policy: Policy, seen: Tensor) -> None:
    training = [name or "itself" for name, part in policy.network.named_modules() if part.training]
    if training:
        raise broken(f"policy.network is in training mode ({training[0]}).", "Call eval() on it.")
    with torch.no_grad():
        mend = "It must take a batch of the environment's (normalised) observations."
        output = guarded("policy.network does not run", mend, lambda: policy.network(seen))
        again = policy.network(seen)
        alone = torch.cat([policy.network(seen[i : i + 1]) for i in range(min(4, len(seen)))])
    width = sum(policy.head.sizes) or int(np.prod(policy.head.shape))
    wanted = (*seen.shape[: 2 if policy.memory else 1], width)
    if tuple(output.shape) != wanted:
        raise broken(f"policy.network gives shape {tuple(output.shape)}, not {wanted}.", "Give the head's inputs.")
    if not bool(output.isfinite().all()):
        raise broken("policy.network gives numbers that are not finite.", "Check normalizer and tensors.")
    if not torch.equal(output, again):
        raise broken("policy.network gives two outputs for the same inputs.", "Take the noise out of it.")
    if gap_of(output[:4], alone) > TOLERANCE:
        raise broken(
            f"A row of policy.network's output depends on the other rows (by {gap_of(output[:4], alone):.3g}).",
            "Keep the batch dimension first, and use the running statistics of normalisations.",
        )


def memory(policy: Policy, seen: Tensor) -> None:
    """Check that a recurrent network computes step by step what it does on sequences."""
    if not policy.memory:
        return
    memory = heads.empty_memory(policy, len(seen))
    steps = []
    with torch.no_grad():
        for time in range(seen.shape[1]):
            output, memory = policy.network.step(seen[:, time], memory)  # type: ignore[operator]
            steps.append(output)
        gap = gap_of(policy.network(seen), torch.stack(steps, dim=1))
    if gap > TOLERANCE:
        raise broken(f"policy.network.step() differs from its forward by {gap:.3g}.", "Begin with a memory of zeros.")


def gap_of(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max()) / (1.0 + float(first.abs().max()))
