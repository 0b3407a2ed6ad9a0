"""Repair a compressed agent: distil the reference into it, with its codes held, on states that both visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunerl import heads, visits
from prunerl.compressions.draft import Draft, computed_by, deployed, projection, with_trained
from prunerl.evaluate import Yardstick, judge, seeds
from prunerl.repair.distill import Lessons, answers, distill, divergences
from prunerl.rollout import rollout
from prunerl.trace import Trace
from prunerl.types import Agent, Verdict

EPISODES_EACH = 5
STAGNANT = 3
"""A draft that was not judged better for so many iterations is given up."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The agent that is imitated and measured against.

    Attributes:
        agent: The agent.
        traced: Its network.
        visited: States that it visits, the network's inputs.
        yard: Its returns on the selection seeds.
    """

    agent: Agent
    traced: Trace
    visited: Tensor
    yard: Yardstick


@dataclass(frozen=True)
class Training:
    """How a compressed network is trained.

    Attributes:
        iterations: How often, at most, it plays and learns.
        updates, batch, learning_rate: Of each training.
        visits: States kept of each iteration's episodes.
        seed, offset: Of the run; where the seeds of its episodes begin.
    """

    iterations: int
    updates: int
    batch: int
    learning_rate: float
    visits: int
    seed: int
    offset: int


@dataclass(frozen=True, eq=False)
class Repaired:
    """The best draft that was found, its verdict, what it took, and the states that the drafts visited."""

    draft: Draft
    verdict: Verdict
    env_steps: int
    visited: Tensor


def repaired(
    draft: Draft, reference: Reference, visited: Tensor, training: Training, generator: torch.Generator
) -> Repaired:
    """Distil until the draft passes: it plays, learns from what it and the reference visited, and is judged.

    Weights are trained straight through the rounding of quantised ones; of shared ones their common value is trained.

    Args:
        draft: What to repair.
        reference: What it is to do.
        visited: States that compressed agents visited before.
        training: How.
        generator: Draws minibatches and samples.

    Reference: Ross 2011 (DAgger), Rusu 2016 (policy distillation); for the constraints see the compressions.
    """
    traced, project = computed_by(draft), projection(draft)
    current, known, steps = draft, visited, 0
    found: list[tuple[Draft, Verdict]] = []
    head = reference.agent.policy.head
    for iteration in range(training.iterations):
        policy = deployed(current)
        chosen = seeds(training.seed, "visit", EPISODES_EACH, offset=training.offset + iteration * EPISODES_EACH)
        played = rollout(policy, reference.yard.env, chosen, record=True)
        states = visits.inputs(policy, played)
        order = torch.randperm(len(states), generator=generator)[: training.visits // visits.steps_of(policy)]
        known = torch.cat([known, states[order]])
        [tensors] = distill(
            traced,
            [current.tensors],
            current.masks,
            head,
            lessons(reference, known),
            updates=training.updates,
            learning_rate=training.learning_rate,
            generator=generator,
            batch=training.batch,
            project=project,
        )
        current = with_trained(current, tensors)
        verdict, cost = judge(reference.yard, deployed(current))
        steps += played.steps + cost
        found.append((current, verdict))
        if verdict.satisfied or _stagnant([v.normalized for _, v in found]):
            break
    best, verdict = max(found, key=lambda f: (f[1].satisfied, f[1].interval[0]))
    return Repaired(best, verdict, steps, known)


def _stagnant(returns: Sequence[float]) -> bool:
    return returns.index(max(returns)) < len(returns) - STAGNANT


def lessons(reference: Reference, visited: Tensor) -> Lessons:
    """Return the reference's answers in states that it visits, followed by states that compressed agents visited."""
    states = torch.cat([reference.visited, visited])
    wanted = answers(reference.traced, reference.agent.state.tensors, states)
    return Lessons(states, wanted, heads.q_scale(reference.agent.policy.head, wanted), len(reference.visited))


def divergence(draft: Draft, reference: Reference) -> float:
    """Return the mean KL of the deployed draft from the reference in states that the reference visits, in nats."""
    own = lessons(reference, reference.visited[:0])
    return divergences(computed_by(draft), [draft.tensors], reference.agent.policy.head, own)[0]
