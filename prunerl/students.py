"""Students: smaller networks that learn from the dense agent in states that they visit themselves, until one passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunerl import visits
from prunerl.cost import size
from prunerl.evaluate import judge, seeds
from prunerl.remove import follow
from prunerl.repair.distill import TASTES, Lessons, answers, calibrate, distill, tastes
from prunerl.repair.guidance import Guide, features, guide, judges
from prunerl.rollout import Rollout, rollout, rollout_each
from prunerl.task import Task, latest, lessons_in, scale_of, some
from prunerl.trace import Trace
from prunerl.types import Agent, Policy, State, Verdict

STUDENTS = len(TASTES)
SMALL, LARGE = 1_000, 20_000
"""Networks of more parameters than the first are repaired as one student, not as several; beyond the second it learns
less long, since each iteration costs more."""
LED = 200
"""Where the dense agent's critics lead it, a network of more parameters than this is repaired as one student."""
RESTARTED = 0.3
"""Students who learn less than this share from states of pruned agents start anew in each iteration: they have learnt
what the dense agent's states can teach them. The others go on."""
PATIENCE, HOPELESS = 3, 0.5
"""After this many iterations, students that all stay below this normalised return are given up. What is asked of them
rises from there to what passes, at the last iteration."""
CLEAR = 0.6
STAGNANT = 5
"""Students that did not play better for so many iterations are given up."""
EPISODES_EACH, EPISODES_ALONE = 5, 8
PERTURBED = tuple(0.04 * (i + 1) for i in range(12))
"""Noise on the dense agent's weights, relative to each, in the states that a single student learns from at first."""
UNGUIDED = 1
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


def effort(parameters: int, *, convolutional: bool = False, led: bool = False) -> Effort:
    """Return how a network of so many parameters is distilled.

    Small ones are many and cheap, and which units are kept decides; of larger ones a single student that goes on
    learning gets further, and much further where critics lead it.
    """
    rate = 1e-2 if parameters <= 4000 else 3e-3
    if convolutional:
        return Effort(1, 6, 400, 128, 1e-3)
    if led and LED < parameters <= LARGE:
        return Effort(1, 12, 1000, 128, rate)
    if parameters <= SMALL:
        return Effort(STUDENTS, 5, 600, 256, 1e-2)
    if parameters <= LARGE:
        return Effort(1, 14, 1500, 1024, rate)
    return Effort(1, 5, 600, 256, 3e-3)


def effort_of(task: Task, traced: Trace, student: State) -> tuple[Effort, bool]:
    """Return how a student of the run is distilled, and whether the dense agent's critics can lead it."""
    convolutional, led = _convolutional(traced), can_be_led(task, traced)
    return effort(size(traced, student.tensors).parameters, convolutional=convolutional, led=led), led


def can_be_led(task: Task, traced: Trace) -> bool:
    """Return whether the dense agent's critics can lead students of this kind."""
    return task.dense.policy.head.squashed and bool(judges(task.dense.critics)) and not _convolutional(traced)


def _convolutional(traced: Trace) -> bool:
    return any("conv" in layer.kind for layer in traced.layers)


IMITATION = Effort(1, UNGUIDED, 1000, 1024, 1e-2)
"""What a student that critics lead learns first."""

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
    work, led = effort_of(task, traced, students[0])
    convolutional = _convolutional(traced)
    course = _Course(task, traced, agent, work, generator, index)
    if work.students == 1 and not convolutional:
        return _alone(course, students[0], visited, led=led, most=min(work.iterations, most))
    return _side_by_side(course, students, visited, most=min(work.iterations, most))


@dataclass(frozen=True, eq=False)
class _Course:
    """What stays the same while students learn."""

    task: Task
    traced: Trace
    agent: Agent
    work: Effort
    generator: torch.Generator
    index: int

    def seeds(self, iteration: int, episodes: int) -> range:
        offset = 1000 + (self.index * MOST_ITERATIONS + iteration) * episodes
        return seeds(self.task.seed, "visit", episodes, offset=offset)

    def seen(self, played: Sequence[Rollout]) -> Tensor:
        """Return some of the states that were visited."""
        states = torch.cat([visits.inputs(self.task.dense.policy, p) for p in played])
        return some(states, VISITS // visits.steps_of(self.task.dense.policy), self.generator)

    def judged(self, state: State, lessons: Lessons) -> tuple[State, Verdict, int]:
        made = follow(calibrated(self.task, self.traced, state, lessons), self.agent.ties)
        return made, *judge(self.task.yard, self.agent.with_state(made).policy)


def _side_by_side(course: _Course, students: Sequence[State], visited: Tensor, *, most: int) -> Result:
    """Train several students, of different tastes, as one batch of networks."""
    task, work, generator = course.task, course.work, course.generator
    count = work.students
    starts, spare = list(itertools.islice(itertools.cycle(students), count)), _rest(students, count)
    tensors = [dict(s.tensors) for s in starts]
    fresh = [i for i, taste in enumerate(tastes(count)) if taste.own < RESTARTED]
    results: list[tuple[State, Verdict]] = []
    steps, known = 0, visited
    for iteration in range(most):
        lessons = lessons_in(task, known)
        for i in fresh if iteration > 0 else ():
            starts[i] = next(spare)
            tensors[i] = dict(starts[i].tensors)
        tensors = distill(
            course.traced,
            tensors,
            students[0].masks,
            task.dense.policy.head,
            lessons,
            updates=work.updates,
            batch=work.batch,
            learning_rate=work.learning_rate,
            generator=generator,
        )
        players = [course.agent.with_state(replace(s, tensors=t)).policy for s, t in zip(starts, tensors, strict=True)]
        played = rollout_each(players, task.dense.env, course.seeds(iteration, EPISODES_EACH), record=True)
        steps += sum(p.steps for p in played)
        known = torch.cat([known, course.seen(played)])
        for best in _promising(task, [float(np.mean(p.returns)) for p in played]):
            state, verdict, cost = course.judged(replace(starts[best], tensors=tensors[best]), lessons)
            steps += cost
            results.append((state, verdict))
            if verdict.satisfied:
                break
        enough = results[-1][1].satisfied and (count > 1 or _clear(results[-1][1]))
        if enough or _given_up([v.normalized for _, v in results], iteration + 1):
            break
    state, verdict = max(results, key=lambda r: (r[1].satisfied, r[1].interval[0]))
    return state, verdict, steps, known[len(visited) :]


def _alone(course: _Course, start: State, visited: Tensor, *, led: bool, most: int) -> Result:
    """Train one student that goes on learning, and judge it where it plays as if it would pass clearly."""
    task, work = course.task, course.work
    lessons, steps = _first_lessons(course, visited)
    leading = guide(task.dense.critics, lessons.observations) if led else None
    tensors, own = dict(start.tensors), visited[:0]
    results: list[tuple[State, Verdict]] = []
    played: list[tuple[float, State]] = []
    while True:
        imitating = leading is not None and len(played) < UNGUIDED
        lesson = IMITATION if imitating else work
        [tensors] = distill(
            course.traced,
            [tensors],
            start.masks,
            task.dense.policy.head,
            lessons,
            updates=lesson.updates,
            batch=lesson.batch,
            learning_rate=lesson.learning_rate,
            generator=course.generator,
            guide=None if imitating else leading,
        )
        state = replace(start, tensors=tensors)
        policy, chosen = course.agent.with_state(state).policy, course.seeds(len(played), EPISODES_ALONE)
        episodes = rollout(policy, task.dense.env, chosen, record=True)
        seen, steps = course.seen([episodes]), steps + episodes.steps
        own = torch.cat([own, seen])
        played.append((_normalised(task, episodes.returns), state))
        over = len(played) == most or _behind([p[0] for p in played], most, task.yard.tolerance)
        if played[-1][0] >= 1.0 - CLEAR * task.yard.tolerance or (over and not any(v.satisfied for _, v in results)):
            best = max(played, key=lambda p: p[0])[1] if over else state
            made, verdict, cost = course.judged(best, lessons)
            steps += cost
            results.append((made, verdict))
            over = over or (verdict.satisfied and _clear(verdict))
        if over:
            break
        lessons, leading = _grown(task, lessons, leading, seen)
    state, verdict = max(results, key=lambda r: (r[1].satisfied, r[1].interval[0]))
    return state, verdict, steps, own


def _first_lessons(course: _Course, visited: Tensor) -> tuple[Lessons, int]:
    """Return what a student begins with, and the steps taken: where no smaller agent has shown where they go wrong,
    the dense one does so with noise on its weights (Plappert 2018; Laskey 2017 for learning from its own mistakes)."""
    task, dense = course.task, course.task.dense
    if len(visited):
        return lessons_in(task, visited), 0
    names = [n for n in task.traced.parameters if dense.state.tensors[n].is_floating_point()]

    def perturbed(noise: float) -> Policy:
        own = {n: dense.state.tensors[n] for n in names}
        moved = {n: t * (1.0 + noise * torch.randn(t.shape, generator=course.generator)) for n, t in own.items()}
        return dense.with_state(replace(dense.state, tensors={**dense.state.tensors, **moved})).policy

    first = seeds(task.seed, "visit", 2, offset=900)
    played = rollout_each([perturbed(noise) for noise in PERTURBED], dense.env, first, record=True)
    states = torch.cat([visits.inputs(dense.policy, p) for p in played])
    made = lessons_in(task, some(states, max(1, len(task.visited)), course.generator))
    return replace(made, dense=len(made.observations)), sum(p.steps for p in played)


def _grown(task: Task, lessons: Lessons, leading: Guide | None, states: Tensor) -> tuple[Lessons, Guide | None]:
    """Add states to the lessons; of those that students visited, the oldest go where there are too many."""
    first = lessons.dense
    kept = len(latest(torch.cat([lessons.observations[first:], states])))

    def grown(rows: Tensor, more: Tensor) -> Tensor:
        return torch.cat([rows[:first], torch.cat([rows[first:], more])[-kept:]])

    wanted = grown(lessons.answers, answers(task.traced, task.dense.state.tensors, states))
    made = Lessons(grown(lessons.observations, states), wanted, scale_of(task, wanted), first)
    return made, leading and replace(leading, features=grown(leading.features, features(leading, states)))


def _normalised(task: Task, returns: Sequence[float]) -> float:
    dense = float(np.mean(task.yard.dense))
    return (float(np.mean(returns)) - task.yard.random) / (dense - task.yard.random)


def _behind(returns: Sequence[float], most: int, tolerance: float) -> bool:
    """Tell whether a student is not worth another iteration: it plays no better for long, or too badly by now.

    The loss that is still allowed falls geometrically, from 1 − HOPELESS to the tolerance at the last iteration.

    >>> _behind([0.4, 0.45, 0.49], 13, 0.05), _behind([0.4, 0.6, 0.7], 13, 0.05), _behind([0.7] * 5 + [0.8], 8, 0.05)
    (True, False, True)
    """
    iterations = len(returns)
    if iterations < PATIENCE:
        return False
    share = (iterations - PATIENCE) / max(1, most - PATIENCE)
    allowed = max(1.0 - HOPELESS, tolerance) ** (1.0 - share) * tolerance**share
    return max(returns) < 1.0 - allowed or int(np.argmax(returns)) < iterations - STAGNANT


def _clear(verdict: Verdict) -> bool:
    """Tell whether a student passes so clearly that it will be confirmed; a single one learns on until it does.

    It does where little of the tolerance is used, or where two standard errors of the difference between this mean and
    that of as many other episodes still leave a pass.
    """
    low, mean = verdict.interval[0], verdict.normalized - 1.0
    error = (mean - low) / 1.96
    return low > -CLEAR * verdict.tolerance or low - 2.0 * math.sqrt(2.0) * error > -verdict.tolerance


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
