"""One round of the loop: score, decide, remove, repair, evaluate."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prunerl import criteria
from prunerl.cost import size
from prunerl.evaluate import judge
from prunerl.evidence import VisitedEvidence
from prunerl.remove import follow, kept_rows, layer_order, remove
from prunerl.repair.distill import Lessons, answers, divergences
from prunerl.repair.least_squares import least_squares
from prunerl.students import MOST_ITERATIONS, STUDENTS, Result, calibrated, distilled, effort_of
from prunerl.task import Candidate, Task, merged, scale_of, some
from prunerl.trace import Trace, activity, features, groups
from prunerl.types import Agent, Decision, Group, Round, Scores, Stage, State, Structure
from prunerl.visits import trace_policy

REPAIRS = ("least_squares", "distill", "finetune")
ALTERNATIVES = 3 * STUDENTS
SCORED, REFITTED, CHECKED = 2048, 4096, 256
LAYER_ITERATIONS = 3
"""A layer that is hard to do without is better kept: units go from it later."""
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
        visited = merged(visited, seen)
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
    if structure != "units" or effort_of(task, candidate.traced, first.state)[0].students == 1:
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
        lessons = Lessons(chosen, wanted, scale_of(task, wanted), len(chosen))
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


def _judged(work: _Work, state: State) -> Result:
    verdict, steps = judge(work.task.yard, work.agent.with_state(state).policy)
    return state, verdict, steps, None


def _finished(work: _Work, state: State, lessons: Lessons) -> State:
    return follow(calibrated(work.task, work.traced, state, lessons), work.agent.ties)


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


def _divergence(task: Task, traced: Trace, state: State) -> float:
    """Return the mean KL from the dense agent in states that it visits itself, the same for all stages."""
    wanted = answers(task.traced, task.dense.state.tensors, task.visited)
    lessons = Lessons(task.visited, wanted, scale_of(task, wanted), len(wanted))
    return divergences(traced, [state.tensors], task.dense.policy.head, lessons)[0]
