"""Check an adapter of an RL library: run the invariants that the loop relies on, and say what is wrong and how to
mend it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prunerl.errors import LearnError
from prunerl.masks import apply
from prunerl.promises import (
    TOLERANCE,
    broken,
    environment,
    episodes_repeat,
    gap_of,
    guarded,
    members,
    memory,
    network,
    same_values,
    tensors,
    visited,
)
from prunerl.remove import remove
from prunerl.trace import Trace, forward, layer_groups, trace, unit_groups
from prunerl.types import Agent, Critic, Group, Policy, State
from prunerl.visits import trace_policy

LEARNED = 64
"""Environment steps that the agent is asked to train on for; its library may take more, such as a whole rollout."""


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is checked, and what the checks before found out about it."""

    agent: Agent
    policy: Policy
    seen: Tensor
    seed: int


def check_agent(agent: Agent, *, episodes: int = 2, seed: int = 0) -> tuple[str, ...]:
    """Check that an agent keeps what :class:`prunerl.types.Agent` promises.

    The checks build on each other, so the first promise that is broken is raised. The agent is played, cut, saved and
    trained on for a moment; it is left as it is.

    Args:
        agent: What an adapter made.
        episodes: How many episodes it plays.
        seed: Seed of the episodes and of what is drawn.

    Returns:
        What is allowed, but should be known: nothing of it can be pruned, or its library cannot train it on.

    Raises:
        CheckError: A promise is broken; the message says which, what was got and how to mend it.

    >>> from prunerl.agents.module import from_module
    >>> from torch import nn
    >>> agent = from_module(nn.Linear(4, 2), env="CartPole-v1", head="logits")
    >>> for note in check_agent(agent):
    ...     print(note[:34])
    No units can be removed: {'weight'
    It cannot be trained on: How a Lin
    """
    members(agent)
    tensors(agent)
    policy = agent.policy
    environment(policy, agent.env)
    subject = _Subject(agent, policy, visited(agent, policy, episodes, seed), seed)
    network(policy, subject.seen)
    memory(policy, subject.seen)
    episodes_repeat(agent, policy, episodes, seed)
    _unchanged(subject)
    _ties(agent)
    _critics(agent, subject.seen)
    _twins(agent, subject.seen)
    notes = [*_cut(subject), *_layers(subject)]
    _saved(agent)
    return (*notes, *_learned(subject))


def _unchanged(subject: _Subject) -> None:
    agent, state = subject.agent, subject.agent.state
    same = guarded(
        "with_state(agent.state) fails", "It must take any state of fitting shapes.", lambda: agent.with_state(state)
    )
    _carried("with_state(agent.state)", same, state)
    with torch.no_grad():
        if not torch.equal(same.policy.network(subject.seen), subject.policy.network(subject.seen)):
            raise broken(
                "with_state(agent.state) gives other outputs.", "Rebuild the network the same way from the state."
            )
    own = {t.untyped_storage().data_ptr() for t in state.tensors.values() if t.numel()}
    for made in (subject.policy, same.policy):
        shared = [n for n, p in made.network.named_parameters() if p.untyped_storage().data_ptr() in own]
        if shared:
            raise broken(f"The network's {shared[0]!r} shares its memory with agent.state.", "Copy it: clone().")
    moved = replace(state, tensors={n: t + 1 if t.is_floating_point() else t for n, t in state.tensors.items()})
    same_values("with_state(other).policy.network", agent.with_state(moved).policy.network, moved)
    same_values("After with_state(other) the first agent's policy.network", agent.policy.network, state)


def _carried(what: str, made: Agent, state: State) -> None:
    """Check that an agent's state is the one that it was given."""
    got = made.state
    parts: tuple[tuple[str, Mapping[str, Tensor], Mapping[str, Tensor]], ...] = (
        ("tensors", got.tensors, state.tensors),
        ("masks", got.masks, state.masks),
        ("moments", _flat(got.moments), _flat(state.moments)),
    )
    for name, have, want in parts:
        wrong = [n for n in want if n not in have or not torch.equal(have[n], want[n])]
        if wrong or len(have) != len(want):
            first = (wrong or sorted(have.keys() - want.keys()))[0]
            raise broken(f"{what}.state.{name} is not what was given: {first!r}.", "Carry the whole state over.")
    same_values(f"{what}.policy.network", made.policy.network, got)


def _flat(moments: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{n} {k}": m for n, entries in moments.items() for k, m in entries.items()}


def _ties(agent: Agent) -> None:
    tensors = agent.state.tensors
    for tie in agent.ties:
        for name, dim in ((tie.source, tie.source_dim), (tie.target, tie.target_dim)):
            if name not in tensors or not 0 <= dim < tensors[name].dim():
                raise broken(f"{tie}: there is no dimension {dim} of {name!r}.", "Name tensors of the state.")
        source, target = tensors[tie.source].shape[tie.source_dim], tensors[tie.target].shape[tie.target_dim]
        if target < source:
            raise broken(f"{tie}: the target has {target} entries there, the source {source}.", "It cannot follow.")


def _critics(agent: Agent, seen: Tensor) -> None:
    """Check that critics have the state's parameters and give a value for each state."""
    mend = "inputs() must map the policy network's inputs to the critic's, and ties say what follows the policy."
    for critic in agent.critics:
        same_values(f"Critic {critic.name!r}", critic.network, agent.state)
        with torch.no_grad():
            values = guarded(f"Critic {critic.name!r} does not run", mend, partial(_values, critic, seen))
        if len(values) != len(seen):
            raise broken(f"Critic {critic.name!r} gives {len(values)} values for {len(seen)} states.", mend)


def _twins(agent: Agent, seen: Tensor) -> None:
    """Check that twins have the same shapes."""
    first: dict[str, tuple[str, list[torch.Size]]] = {}
    for critic in agent.critics:
        with torch.no_grad():
            entry = critic.inputs(seen)[:3]
        traced: Trace = guarded(f"Critic {critic.name!r} cannot be traced", "", partial(trace, critic.network, entry))
        shapes = [agent.state.tensors[n].shape for n in traced.parameters]
        name, own = first.setdefault(critic.twins, (critic.name, shapes))
        if own != shapes:
            raise broken(
                f"Critics {name!r} and {critic.name!r} are twins, but their shapes differ: {own} and {shapes}.",
                "Give twins of other widths another name in Critic.twins.",
            )


def _values(critic: Critic, seen: Tensor) -> Tensor:
    values: Tensor = critic.network(critic.inputs(seen))
    return values


def _cut(subject: _Subject) -> list[str]:
    """Cut half of the units of each group alone, and of all together."""
    agent = subject.agent
    traced: Trace = guarded("policy.network cannot be traced", "", lambda: trace_policy(subject.policy, subject.seen))
    groups = unit_groups(traced, agent.state.tensors)
    if not groups:
        return [f"No units can be removed: {dict(traced.kept_whole)}."]
    for chosen in (*([g] for g in groups), list(groups)):
        _halved(subject, traced, chosen)
    return []


def _halved(subject: _Subject, traced: Trace, groups: list[Group]) -> None:
    agent, seen = subject.agent, subject.seen
    where = f"Half the units of {groups[0].name!r} removed" if len(groups) == 1 else "Half of all units removed"
    decision = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    mend = "The network's forward and its parameters must be what with_state builds again."
    state: State = guarded(
        where, mend, lambda: remove(traced, agent.state, groups, decision, ties=agent.ties, observations=seen)
    )
    _targets(agent.state, state, where)
    smaller: Agent = guarded(
        f"{where}, with_state() fails",
        "Read widths off the tensors' shapes, and tie what follows.",
        lambda: agent.with_state(state),
    )
    _carried(f"{where}: with_state(smaller)", smaller, state)
    with torch.no_grad():
        got = guarded(f"{where}: the network fails", mend, lambda: smaller.policy.network(seen))
        gap = gap_of(forward(traced, state.tensors, seen), got)
    if gap > TOLERANCE:
        raise broken(f"{where}: the network's output is off by {gap:.3g} from what the units left compute.", mend)
    if subject.policy.memory:
        guarded(
            f"{where}: a recurrent policy cannot act",
            "policy.memory must have the smaller widths.",
            lambda: memory(smaller.policy, seen),
        )
    _critics(smaller, seen)


def _targets(before: State, after: State, where: str) -> None:
    """Check that what is named as a target network still has the shapes of what it follows."""
    for target in (n for n in before.tensors if "target" in n):
        for word in ("_target", "target_"):
            source = target.replace(word, "", 1)
            if word not in target or source not in before.tensors:
                continue
            was, now = (s.tensors[source].shape == s.tensors[target].shape for s in (before, after))
            if was and not now:
                raise broken(
                    f"{where}: {target!r} does not follow {source!r}.", "Say so in agent.ties, each dimension."
                )


def _layers(subject: _Subject) -> list[str]:
    """Leave out the first hidden layer of a stack."""
    agent, seen = subject.agent, subject.seen
    traced = trace_policy(subject.policy, seen)
    groups = layer_groups(traced, agent.stacks)
    if not groups:
        return [f"No hidden layer of {agent.stacks} can be left out."] if agent.stacks else []
    decision = {groups[0].name: torch.tensor([False])}
    state = remove(traced, agent.state, groups[:1], decision, ties=agent.ties, observations=seen)
    mend = "Rebuild the stacks from the tensors that are left, or leave them out of agent.stacks."
    what = f"Without layer {groups[0].name!r} with_state()"

    def rebuilt() -> Tensor:
        output: Tensor = agent.with_state(state).policy.network(seen)
        return output

    with torch.no_grad():
        output = guarded(f"{what} fails", mend, rebuilt)
    shallow = agent.with_state(state)
    same_values(f"{what}.policy.network", shallow.policy.network, shallow.state)
    left = sum(t.numel() for t in state.tensors.values())
    if sum(t.numel() for t in shallow.state.tensors.values()) != left or len(output) != len(seen):
        raise broken(f"{what} has other tensors than those that are left.", mend)
    return []


def _saved(agent: Agent) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"agent{agent.suffix}"
        guarded("save() fails", "It writes one file at the path given.", lambda: agent.save(file))
        if not file.is_file() or file.stat().st_size == 0:
            raise broken(
                f"save(path) left no file at path, but {sorted(p.name for p in Path(folder).iterdir())}.",
                "Write the file at the very path that is given.",
            )


def _learned(subject: _Subject) -> list[str]:
    """Train on with half of one layer's weights masked."""
    agent = subject.agent
    matrices = [n for n, _ in subject.policy.network.named_parameters() if agent.state.tensors[n].dim() > 1]
    masks = {
        n: torch.arange(agent.state.tensors[n].numel()).view_as(agent.state.tensors[n]) % 2 == 0 for n in matrices[:1]
    }
    held = replace(agent.state, tensors=apply(agent.state.tensors, masks), masks={**agent.state.masks, **masks})
    try:
        trained = agent.with_state(held).learn(LEARNED, seed=subject.seed)
    except LearnError as error:
        return [f"It cannot be trained on: {error}"]
    except Exception as error:  # a third party's adapter can raise anything
        raise broken(
            f"learn() fails: {type(error).__name__}: {error}.", "Mend it, or raise LearnError with what to do instead."
        ) from error
    for name, mask in masks.items():
        after = trained.state.tensors.get(name)
        if name not in trained.state.masks or not torch.equal(trained.state.masks[name], mask):
            raise broken(f"learn() loses the mask of {name!r}.", "Carry state.masks over.")
        if after is None or bool((after[~mask] != 0).any()):
            raise broken(f"learn() revives masked weights of {name!r}.", "Use prunerl.masks.hold or attach.")
    same_values("learn().policy.network", trained.policy.network, trained.state)
    return []
