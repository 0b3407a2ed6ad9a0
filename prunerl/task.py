"""What stays the same through a run, and where its search stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prunerl import heads
from prunerl.cost import stored
from prunerl.evaluate import Yardstick
from prunerl.repair.distill import Lessons, answers
from prunerl.trace import Trace
from prunerl.types import Agent

LESSONS = 80_000
LESSON_BYTES = 128_000_000
"""States that pruned agents visited are kept, in memory and on disk, up to this size: images count."""


@dataclass(frozen=True, eq=False)
class Task:
    """What stays the same through a run.

    ``visited`` holds states that the dense agent visits; each layer keeps at least ``min_units`` units (for single
    weights, each matrix as many).
    """

    dense: Agent
    traced: Trace
    visited: Tensor
    yard: Yardstick
    criterion: str
    repair: tuple[str, ...]
    finetune_steps: int
    seed: int
    min_units: int = 1


@dataclass(frozen=True, eq=False)
class Candidate:
    """Where the search stands: an agent, its trace, and the states that pruned agents visited so far.

    States are inputs of the network, shape (states, *observation). ``origin`` is the widest agent of the same depth: a
    round also cuts that one, since repair entangles the units of a narrow network.
    """

    agent: Agent
    traced: Trace
    visited: Tensor
    origin: Candidate | None = None


def masked_parameters(candidate: Candidate) -> int:
    """Return the candidate's parameters that no mask holds at zero."""
    return stored(candidate.traced, candidate.agent.state)


def some(states: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return at most ``count`` of the states, drawn without replacement, in order."""
    if len(states) <= count:
        return states
    return states[torch.randperm(len(states), generator=generator)[:count].sort().values]


def merged(visited: Tensor, seen: Tensor | None) -> Tensor:
    """Return visited states followed by those that were seen since, as many as are kept."""
    return visited if seen is None else latest(torch.cat([visited, seen]))


def latest(visited: Tensor) -> Tensor:
    """Return as many of the last states as lessons hold."""
    one = visited.element_size() * math.prod(visited.shape[1:])
    return visited[-max(1, min(LESSONS, LESSON_BYTES // max(1, one))) :]


def lessons_in(task: Task, visited: Tensor) -> Lessons:
    """Return the dense agent's answers in states that it visits, followed by states that pruned agents visited."""
    chosen = torch.cat([task.visited, latest(visited)])
    wanted = answers(task.traced, task.dense.state.tensors, chosen)
    return Lessons(chosen, wanted, scale_of(task, wanted), len(task.visited))


def scale_of(task: Task, answers: Tensor) -> float:
    """Return the spread of the dense agent's Q-values, see :func:`prunerl.heads.q_scale`."""
    return heads.q_scale(task.dense.policy.head, answers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as small networks are fastest so, and put the user's setting back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
