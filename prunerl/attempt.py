"""One round of the loop: score, decide, remove, repair, evaluate."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunerl import criteria, heads, visits
from prunerl.cost import size, stored
from prunerl.evaluate import Yardstick, judge, seeds
from prunerl.evidence import VisitedEvidence
from prunerl.remove import follow, kept_rows, layer_order, remove
from prunerl.repair.distill import TASTES, Lessons, answers, calibrate, distill, divergences, tastes
from prunerl.repair.guidance import guide
from prunerl.repair.least_squares import least_squares
from prunerl.rollout import rollout_each
from prunerl.trace import Trace, activity, features, groups
from prunerl.types import Agent, Decision, Group, Round, Scores, Stage, State, Structure, Verdict
from prunerl.visits import trace_policy

REPAIRS = ("least_squares", "distill", "finetune")
STUDENTS = len(TASTES)
ALTERNATIVES = 3 * STUDENTS
LARGE = 20_000
"""Networks of more parameters than this are repaired as one student, not as several."""
SCORED, REFITTED, CHECKED, LESSONS = 2048, 4096, 256, 80_000
LESSON_BYTES = 128_000_000
"""States that pruned agents visited are kept, in memory and on disk, up to this size: images count."""
RESTARTED = 0.3
"""Students who learn less than this share from states of pruned agents start anew in each iteration: they have learnt
what the dense agent's states can teach them. The others go on."""
PATIENCE, HOPELESS = 3, 0.5
"""After this many iterations, students that all stay below this normalised return are given up."""
STAGNANT = 5
"""Students that did not play better for so many iterations are given up."""
EPISODES_EACH = 5
UNGUIDED, GUIDED_BATCH, GUIDED_RATE = 2, 256, 3e-3
"""A single student imitates for so many iterations before the dense agent's critics judge what it does."""
VISITS = 5_000


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


MOST_ITERATIONS = 14
"""Of any effort: it keeps the seeds of one round apart from those of the next."""
LAYER_ITERATIONS = 3
"""A layer that is hard to do without is better kept: units go from it later."""


@dataclass(frozen=True, eq=False)
class Task:
    """What stays the same through a run. ``visited`` holds states that the dense agent visits."""

    dense: Agent
    traced: Trace
    visited: Tensor
    yard: Yardstick
    criterion: str
    repair: tuple[str, ...]
    finetune_steps: int
    seed: int


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


Decide = Callable[[Candidate, Sequence[Group], Scores], Decision]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One way to make the agent smaller: what was cut, where, and what is left."""

    parent: Candidate
    units: tuple[Group, ...]
    decision: Decision
    state: State


def attempt(
    task: Task, candidate: Candidate, structure: Structure, decide: Decide, *, index: int, target: float
) -> tuple[Round, Candidate]:
    """Make a smaller agent and judge it after every stage of its repair.

    Args:
        task: The run.
        candidate: What to cut.
        structure: Units, single weights or layers.
        decide: Turns groups and scores into a decision.
        index: Number of the round; all its randomness follows from it and the run's seed.
        target: What the decision aimed at, for the report.

    Returns:
        The round's record and the candidate it made, whether it passed or not.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + index)
    known = torch.cat([task.visited, candidate.visited])
    cuts = _cuts(task, candidate, structure, decide, known, generator)
    agent = candidate.agent.with_state(cuts[0].state)
    depth_changed = structure == "layers"
    traced = trace_policy(agent.policy, known) if depth_changed else candidate.traced
    work = _Work(task, traced, cuts, agent, generator, index)
    units, decision = cuts[0].units, cuts[0].decision
    stages, states, visited = [], [], candidate.visited
    for name, stage in _stages(task, work):
        began = time.perf_counter()
        found, verdict, steps, seen = stage(visited)
        visited = _merge(visited, seen)
        divergence = _divergence(task, traced, found)
        stages.append(Stage(name, divergence, verdict, time.perf_counter() - began, steps))
        states.append(found)
        if verdict.satisfied and name != "cut":
            break
    best = max(range(len(stages)), key=lambda i: (stages[i].verdict.satisfied, stages[i].verdict.interval[0]))
    chosen = agent.with_state(states[best])
    label = "layer " if depth_changed else ""
    kept = {label + g.name: (int(decision[g.name].sum()), g.units) for g in units if g.name in decision}
    made = Round(
        index=index,
        structure=structure,
        criterion="linearity" if depth_changed else task.criterion,
        target=target,
        size=size(traced, chosen.state.tensors),
        kept=kept,
        stages=tuple(stages),
        best=best,
        satisfied=stages[best].verdict.satisfied,
        seconds=time.perf_counter() - start,
        env_steps=sum(s.env_steps for s in stages),
    )
    return made, Candidate(chosen, traced, visited, None if depth_changed else candidate.origin or candidate)


@dataclass(frozen=True, eq=False)
class _Work:
    """The cut agents of a round: same shapes, different units kept."""

    task: Task
    traced: Trace
    cuts: list[_Cut]
    agent: Agent
    generator: torch.Generator
    index: int


Result = tuple[State, Verdict, int, Tensor | None]
StageFunction = Callable[[Tensor], Result]


def _cuts(
    task: Task, candidate: Candidate, structure: Structure, decide: Decide, known: Tensor, generator: torch.Generator
) -> list[_Cut]:
    """Cut the agent by the decision, and, where it gets small, in other ways to the same shape."""
    checked = some(known, CHECKED, generator)

    def cut(parent: Candidate, units: tuple[Group, ...], decision: Decision) -> _Cut:
        agent = parent.agent
        state = remove(parent.traced, agent.state, units, decision, ties=agent.ties, observations=checked)
        return _Cut(parent, units, decision, agent.with_state(state).state)

    def ways(parent: Candidate, count: int) -> Iterator[_Cut]:
        agent = parent.agent
        units = groups(parent.traced, agent.state, structure)
        sample = some(known, SCORED, generator)
        evidence = VisitedEvidence(parent.traced, agent.state, agent.policy.head, lambda: sample, generator)
        # Which layer goes is said by how nearly linear each is (see search), not by the criterion.
        scored = {} if structure == "layers" else criteria.find(task.criterion)(evidence, units)
        scores = _hold_masked(scored, agent.state, structure)
        decision = decide(parent, units, scores)
        yield cut(parent, units, decision)
        if structure == "units":
            for other in _alternatives(decision, scores, count - 1, generator):
                yield cut(parent, units, other)

    present = ways(candidate, ALTERNATIVES)
    first = next(present)
    if structure != "units" or sum(first.state.tensors[n].numel() for n in candidate.traced.parameters) > LARGE:
        return [first]
    if candidate.origin is None:
        return [first, *present]
    before = [c for c in ways(candidate.origin, ALTERNATIVES // 2) if _shapes(c.state) == _shapes(first.state)]
    mixed = itertools.chain.from_iterable(zip(before, present, strict=False))
    return [first, *(mixed if before else present)]


def _shapes(state: State) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in state.tensors.items()}


def _stages(task: Task, work: _Work) -> list[tuple[str, StageFunction]]:
    refitted: list[State] = [c.state for c in work.cuts]
    latest: list[State] = [work.cuts[0].state]

    def cut(_: Tensor) -> Result:
        return _judged(work, work.cuts[0].state)

    def refit(visited: Tensor) -> Result:
        chosen = some(torch.cat([task.visited, visited]), REFITTED, work.generator)
        wanted = answers(task.traced, task.dense.state.tensors, chosen)
        outputs = {
            id(parent): activity(parent.traced, parent.agent.state.tensors, chosen).outputs
            for parent in {id(c.parent): c.parent for c in work.cuts}.values()
        }
        for i, one in enumerate(work.cuts):
            targets = _targets(
                one.parent.traced,
                one.parent.agent.state.tensors,
                one.units,
                one.decision,
                outputs[id(one.parent)],
                wanted,
            )
            fitted = least_squares(work.traced, one.state.tensors, one.state.masks, chosen, targets)
            refitted[i] = replace(one.state, tensors={**one.state.tensors, **fitted})
        lessons = Lessons(chosen, wanted, _scale(task, wanted), len(chosen))
        order = divergences(work.traced, [s.tensors for s in refitted], task.dense.policy.head, lessons)
        latest[0] = _finished(work, refitted[int(np.argmin(order))], lessons)
        return _judged(work, latest[0])

    def learn_from_dense(visited: Tensor) -> Result:
        shallower = work.cuts[0].units[0].structure == "layers"
        most = LAYER_ITERATIONS if shallower else MOST_ITERATIONS
        result = distilled(
            task, work.traced, work.agent, refitted, visited, work.generator, index=work.index, most=most
        )
        latest[0] = result[0]
        return result

    def train_on(_: Tensor) -> Result:
        trained = work.agent.with_state(latest[0]).learn(task.finetune_steps, seed=task.seed + work.index)
        state, verdict, steps, seen = _judged(work, trained.state)
        return state, verdict, steps + task.finetune_steps, seen

    available = {"least_squares": refit, "distill": learn_from_dense, "finetune": train_on}
    return [("cut", cut), *((name, available[name]) for name in REPAIRS if name in task.repair)]


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
        lessons = _lessons(task, known)
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
            state = _calibrated(task, traced, replace(starts[best], tensors=tensors[best]), lessons)
            state = follow(state, agent.ties)
            verdict, cost = judge(task.yard, agent.with_state(state).policy)
            steps += cost
            results.append((state, verdict))
            if verdict.satisfied:
                break
        if results[-1][1].satisfied or _given_up([v.normalized for _, v in results], iteration + 1):
            break
    state, verdict = max(results, key=lambda r: (r[1].satisfied, r[1].interval[0]))
    return state, verdict, steps, known[len(visited) :]


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


def _judged(work: _Work, state: State) -> Result:
    verdict, steps = judge(work.task.yard, work.agent.with_state(state).policy)
    return state, verdict, steps, None


def _finished(work: _Work, state: State, lessons: Lessons) -> State:
    return follow(_calibrated(work.task, work.traced, state, lessons), work.agent.ties)


def _calibrated(task: Task, traced: Trace, state: State, lessons: Lessons) -> State:
    if task.dense.policy.head.kind != "q_values":
        return state
    return replace(state, tensors=calibrate(traced, state.tensors, lessons))


def _targets(
    before: Trace,
    tensors: Mapping[str, Tensor],
    units: Sequence[Group],
    decision: Decision,
    outputs: Mapping[str, Tensor],
    answers: Tensor,
) -> list[Tensor | None]:
    """Return what each layer that is left computed before the cut; None where its inputs are what they were."""
    dropped = [g.name for g in units if g.structure == "layers" and not bool(decision.get(g.name, torch.ones(1)).all())]
    kept = kept_rows(tensors, [g for g in units if g.structure == "units"], decision)
    targets: list[Tensor | None] = []
    for layer in layer_order(before, dropped):
        if layer.name == before.output:
            targets.append(answers)
        elif not layer.reads or layer.name not in outputs:
            targets.append(None)
        else:
            output = features(layer, outputs[layer.name])
            rows = kept.get(layer.weight, {}).get(1 if layer.transposed else 0)
            targets.append(output if rows is None else output[:, rows])
    return targets


def _alternatives(decision: Decision, scores: Scores, count: int, generator: torch.Generator) -> list[Decision]:
    """Draw other sets of as many units, better scores more likely: Gumbel top-k on log scores (Kool 2019)."""
    drawn: list[Decision] = []
    for _ in range(count):
        other = {}
        for name, keep in decision.items():
            noise = torch.rand(len(keep), generator=generator, dtype=torch.float64).clamp_min(1e-12)
            key = scores[name].double().clamp_min(1e-12).log() - (-noise.log()).log()
            chosen = key.argsort(descending=True, stable=True)[: int(keep.sum())]
            other[name] = torch.zeros_like(keep).index_fill_(0, chosen, True)
        drawn.append(other)
    return drawn


def _hold_masked(scores: Scores, state: State, structure: Structure) -> Scores:
    if structure != "weights":
        return scores
    low = -float("inf")
    return {n: s.masked_fill(~state.masks[n].flatten(), low) if n in state.masks else s for n, s in scores.items()}


def _lessons(task: Task, visited: Tensor) -> Lessons:
    chosen = torch.cat([task.visited, _latest(visited)])
    wanted = answers(task.traced, task.dense.state.tensors, chosen)
    return Lessons(chosen, wanted, _scale(task, wanted), len(task.visited))


def _scale(task: Task, answers: Tensor) -> float:
    return heads.q_scale(task.dense.policy.head, answers)


def _divergence(task: Task, traced: Trace, state: State) -> float:
    """Return the mean KL from the dense agent in states that it visits itself, the same for all stages."""
    wanted = answers(task.traced, task.dense.state.tensors, task.visited)
    lessons = Lessons(task.visited, wanted, _scale(task, wanted), len(wanted))
    return divergences(traced, [state.tensors], task.dense.policy.head, lessons)[0]


def some(states: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return at most ``count`` of the states, drawn without replacement, in order."""
    if len(states) <= count:
        return states
    return states[torch.randperm(len(states), generator=generator)[:count].sort().values]


def _merge(visited: Tensor, seen: Tensor | None) -> Tensor:
    return visited if seen is None else _latest(torch.cat([visited, seen]))


def _latest(visited: Tensor) -> Tensor:
    """Return as many of the last states as lessons hold."""
    one = visited.element_size() * math.prod(visited.shape[1:])
    return visited[-max(1, min(LESSONS, LESSON_BYTES // max(1, one))) :]


def masked_parameters(candidate: Candidate) -> int:
    """Return the candidate's parameters that no mask holds at zero."""
    return stored(candidate.traced, candidate.agent.state)
