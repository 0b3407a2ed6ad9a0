"""Honest baselines: what the same effort reaches without pruning, and pruning without the effort."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from prunerl import cost, criteria, decide, stats
from prunerl.attempt import ALTERNATIVES
from prunerl.errors import BudgetError
from prunerl.evidence import VisitedEvidence
from prunerl.files import digest
from prunerl.masks import apply
from prunerl.remove import compose, cut
from prunerl.rollout import rollout
from prunerl.students import distilled
from prunerl.task import Candidate, Task
from prunerl.trace import Trace, layer_groups, matrix, unit_groups
from prunerl.types import Agent, Row, State, Verdict
from prunerl.visits import trace_policy

Baseline = Callable[[Task, Candidate, Candidate], tuple[Candidate, int] | None]
"""From the run, the dense and the pruned agent: another agent, and the environment steps that it took; None where the
agent cannot be made so."""


def random_weights(task: Task, dense: Candidate, pruned: Candidate) -> tuple[Candidate, int]:
    """A network of the pruned size, distilled in the same way from random weights."""
    return _from_random(task, dense, pruned.agent, pruned.traced, number=1)


def linear_policy(task: Task, dense: Candidate, pruned: Candidate) -> tuple[Candidate, int] | None:
    """A policy without hidden layers, distilled in the same way from random weights."""
    agent, traced = pruned.agent, pruned.traced
    while layers := layer_groups(traced, agent.stacks):
        observations = task.visited[:64]
        state = compose(traced, agent.state, layers[0].name, ties=agent.ties, observations=observations)
        agent = agent.with_state(state)
        traced = trace_policy(agent.policy, task.visited)
    return None if len(traced.layers) > 1 else _from_random(task, dense, agent, traced, number=2)


def magnitude(task: Task, dense: Candidate, pruned: Candidate) -> tuple[Candidate, int]:
    """The dense network cut in one shot to the pruned size, the units of largest weights kept, without repair.

    It keeps the dense depth, so it may not get below one unit in each hidden layer.
    """
    state, traced = dense.agent.state, dense.traced
    groups = unit_groups(traced, state.tensors)
    generator = torch.Generator().manual_seed(task.seed)
    evidence = VisitedEvidence(traced, state, task.dense.policy.head, lambda: task.visited, generator)
    scores = criteria.magnitude(evidence, groups)
    target = cost.stored(pruned.traced, pruned.agent.state)
    try:
        decision = decide.by_parameters(groups, scores, traced, state.tensors, target)
    except BudgetError:
        decision = {g.name: torch.arange(g.units) == int(scores[g.name].argmax()) for g in groups}
    smaller = dense.agent.with_state(cut(state, groups, decision, dense.agent.ties))
    return Candidate(smaller, traced, dense.visited), 0


BASELINES: Mapping[str, Baseline] = {
    "same size, random weights": random_weights,
    "linear policy": linear_policy,
    "one-shot magnitude": magnitude,
}


def judged(
    name: str, make: Baseline, task: Task, dense: Candidate, pruned: Candidate, reference: Verdict
) -> Row | None:
    """Make a baseline and judge it on the seeds on which the pruned agent was confirmed; None where it has no form."""
    began = time.perf_counter()
    baseline = make(task, dense, pruned)
    if baseline is None:
        return None
    made, steps = baseline
    first, episodes = reference.seeds
    chosen = range(first, first + episodes)
    played = rollout(made.agent.policy, task.dense.env, chosen)
    found = verdict(task, reference.dense, played.returns, chosen)
    return row(name, made, found, time.perf_counter() - began, steps + played.steps)


def verdict(task: Task, dense: tuple[float, ...], pruned: tuple[float, ...], chosen: range) -> Verdict:
    """Return the verdict on confirmation seeds."""
    return stats.verdict(dense, pruned, task.yard.random, tolerance=task.yard.tolerance, first_seed=chosen[0])


def row(name: str, made: Candidate, found: Verdict, seconds: float, env_steps: int) -> Row:
    """Measure an agent for the comparison table."""
    return Row(
        name=name,
        size=cost.size(made.traced, made.agent.state.tensors),
        total_parameters=sum(t.numel() for t in made.agent.state.tensors.values()),
        bytes=_bytes(made.agent),
        latency=cost.latency(made.agent.policy),
        verdict=found,
        seconds=seconds,
        env_steps=env_steps,
    )


def measured(known: Row, agent: Agent) -> Row:
    """Return a row with the parameters and bytes of an agent whose policy is the row's own."""
    total = sum(t.numel() for t in agent.state.tensors.values())
    return replace(known, total_parameters=total, bytes=_bytes(agent))


def fingerprint(agent: Agent) -> str:
    """Return a digest of an agent's tensors, which tells two agents apart."""
    parts = [f"{n}{tuple(t.shape)}".encode() + t.contiguous().numpy().tobytes() for n, t in agent.state.tensors.items()]
    policy = agent.policy
    if policy.normalizer is not None:
        own = policy.normalizer
        parts.append(own.mean.tobytes() + own.var.tobytes() + f"{own.epsilon} {own.clip}".encode())
    return digest(f"{agent.algorithm} {policy.network}".encode() + b"".join(parts))


def _from_random(task: Task, dense: Candidate, agent: Agent, traced: Trace, *, number: int) -> tuple[Candidate, int]:
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + 500_000 + number)
    students = [_initialised(agent.state, traced, generator) for _ in range(ALTERNATIVES)]
    index = 500 + number
    state, _, steps, _ = distilled(task, traced, agent, students, dense.visited, generator, index=index)
    return Candidate(agent.with_state(state), traced, dense.visited), steps


def _initialised(state: State, traced: Trace, generator: torch.Generator) -> State:
    """Draw weights and biases from U(±1/√inputs), PyTorch's own choice for linear layers."""
    fresh: dict[str, Tensor] = {}
    for layer in traced.layers:
        bound = matrix(layer, state.tensors).shape[1] ** -0.5
        for name in (layer.weight, layer.bias):
            if name is not None:
                shape = state.tensors[name].shape
                fresh[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return replace(state, tensors={**state.tensors, **apply(fresh, state.masks)}, moments={})


def _bytes(agent: Agent) -> int:
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"agent{agent.suffix}"
        agent.save(file)
        return file.stat().st_size
