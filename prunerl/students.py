"""Students: smaller networks that learn from the dense agent in states that they visit themselves, until one passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunerl import visits
from prunerl.cost import size
from prunerl.evaluate import judge, seeds
from prunerl.remove import follow
from prunerl.repair.distill import TASTES, Lessons, calibrate, distill, tastes
from prunerl.repair.guidance import guide
from prunerl.rollout import rollout_each
from prunerl.task import Task, lessons_in, some
from prunerl.trace import Trace
from prunerl.types import Agent, State, Verdict

STUDENTS = len(TASTES)
LARGE = 20_000
"""Networks of more parameters than this are repaired as one student, not as several."""
RESTARTED = 0.3
"""Students who learn less than this share from states of pruned agents start anew in each iteration: they have learnt
what the dense agent's states can teach them. The others go on."""
PATIENCE, HOPELESS = 3, 0.5
"""After this many iterations, students that all stay below this normalised return are given up."""
CLEAR = 0.6
STAGNANT = 5
"""Students that did not play better for so many iterations are given up."""
EPISODES_EACH = 5
UNGUIDED, GUIDED_BATCH, GUIDED_RATE = 1, 256, 3e-3
"""A single student imitates for so many iterations before the dense agent's critics judge what it does."""
VISITS = 5_000
MOST_ITERATIONS = 14
"""Of any effort: it keeps the seeds of one round apart from those of the next."""


@dataclass(frozen=True)
class Effort:
    """How a network is distilled.

    Attributes:
        students: Alternatives that are trained side by side.
        iterations: How often, at most, they are trained, play, and learn from the states that they visited.
        updates, batch, learning_rate: Of each training.
    """

    students: int
    iterations: int
    updates: int
    batch: int
    learning_rate: float


def effort(parameters: int, *, convolutional: bool = False) -> Effort:
    """Return how a network of so many parameters is distilled.

    Small ones are many and cheap, and which units are kept decides; of larger ones a single student that goes on
    learning gets further.
    """
    if convolutional:
        return Effort(1, 6, 400, 128, 1e-3)
    if parameters <= 1000:
        return Effort(STUDENTS, 5, 600, 256, 1e-2)
    if parameters <= LARGE:
        return Effort(1, 14, 1500, 1024, 1e-2 if parameters <= 4000 else 3e-3)
    return Effort(1, 5, 600, 256, 3e-3)


Result = tuple[State, Verdict, int, Tensor | None]


def distilled(
    task: Task,
    traced: Trace,
    agent: Agent,
    students: Sequence[State],
    visited: Tensor,
    generator: torch.Generator,
    *,
    index: int,
    most: int = MOST_ITERATIONS,
) -> Result:
    """Distil the dense agent into students on the states that they themselves visit, until one passes.

    Each iteration trains all students, lets each play, adds what they visited, and judges the one that played best.

    Args:
        task: The run.
        traced, agent: The shape of the students.
        students: Their tensors to start from; those beyond the first STUDENTS replace students that start anew.
        visited: States that pruned agents visited so far.
        generator: Draws minibatches and samples.
        index: Number that keeps the seeds of this call apart from those of others.
        most: Iterations at most.

    Returns:
        The best student's state, its verdict, the environment steps taken and the states visited.
    """
    head = task.dense.policy.head
    convolutional = any("conv" in layer.kind for layer in traced.layers)
    work = effort(size(traced, students[0].tensors).parameters, convolutional=convolutional)
    count = work.students
    starts, spare = list(itertools.islice(itertools.cycle(students), count)), _rest(students, count)
    tensors = [dict(s.tensors) for s in starts]
    fresh = [i for i, taste in enumerate(tastes(count)) if taste.own < RESTARTED]
    results: list[tuple[State, Verdict]] = []
    steps, known = 0, visited
    masks = students[0].masks
    for iteration in range(min(work.iterations, most)):
        lessons = lessons_in(task, known)
        for i in fresh if iteration > 0 else ():
            starts[i] = next(spare)
            tensors[i] = dict(starts[i].tensors)
        led = count == 1 and iteration >= UNGUIDED and head.squashed
        judges = guide(task.dense.critics, lessons.observations) if led else None
        tensors = distill(
            traced,
            tensors,
            masks,
            head,
            lessons,
            updates=work.updates,
            batch=work.batch if judges is None else GUIDED_BATCH,
            learning_rate=work.learning_rate if judges is None else GUIDED_RATE,
            generator=generator,
            guide=judges,
        )
        players = [agent.with_state(replace(s, tensors=t)).policy for s, t in zip(starts, tensors, strict=True)]
        offset = 1000 + (index * MOST_ITERATIONS + iteration) * EPISODES_EACH
        chosen = seeds(task.seed, "visit", EPISODES_EACH, offset=offset)
        played = rollout_each(players, task.dense.env, chosen, record=True)
        steps += sum(p.steps for p in played)
        seen = [visits.inputs(task.dense.policy, p) for p in played]
        known = torch.cat([known, some(torch.cat(seen), VISITS // visits.steps_of(task.dense.policy), generator)])
        for best in _promising(task, [float(np.mean(p.returns)) for p in played]):
            state = calibrated(task, traced, replace(starts[best], tensors=tensors[best]), lessons)
            state = follow(state, agent.ties)
            verdict, cost = judge(task.yard, agent.with_state(state).policy)
            steps += cost
            results.append((state, verdict))
            if verdict.satisfied:
                break
        enough = results[-1][1].satisfied and (count > 1 or _clear(results[-1][1]))
        if enough or _given_up([v.normalized for _, v in results], iteration + 1):
            break
    state, verdict = max(results, key=lambda r: (r[1].satisfied, r[1].interval[0]))
    return state, verdict, steps, known[len(visited) :]


def _clear(verdict: Verdict) -> bool:
    """Tell whether a student passes so clearly that it will be confirmed; a single one learns on until it does."""
    return verdict.interval[0] > -CLEAR * verdict.tolerance


def _given_up(returns: Sequence[float], iterations: int) -> bool:
    """Tell whether students are not worth another iteration, by their normalised returns so far."""
    hopeless = iterations >= PATIENCE and max(returns) < HOPELESS
    return hopeless or int(np.argmax(returns)) < len(returns) - STAGNANT


def _rest(students: Sequence[State], used: int) -> Iterator[State]:
    """Return the students after the first ``used``, over and over; all of them where there are no more."""
    return itertools.cycle(students[used:] or students)


def _promising(task: Task, returns: Sequence[float]) -> list[int]:
    """Return the student that played best, and the second where it played well enough to pass as well."""
    dense = float(np.mean(task.yard.dense))
    enough = dense - task.yard.tolerance * (dense - task.yard.random)
    order = sorted(range(len(returns)), key=lambda i: -returns[i])
    return order[:1] + [i for i in order[1:2] if returns[i] >= enough]


def calibrated(task: Task, traced: Trace, state: State, lessons: Lessons) -> State:
    if task.dense.policy.head.kind != "q_values":
        return state
    return replace(state, tensors=calibrate(traced, state.tensors, lessons))
