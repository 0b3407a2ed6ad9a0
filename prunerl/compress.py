"""Compress an agent's numbers: low rank, shared weights, small integers; each judged, repaired, and confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunerl import stats, visits
from prunerl.compressions.draft import (
    Draft,
    deployed,
    draft_of,
    policy_of,
    sizes,
)
from prunerl.compressions.repair import Reference, Training, divergence, repaired
from prunerl.compressions.result import Compressed, CompressResult, Row, Step
from prunerl.compressions.stages import Alternative, stages_for
from prunerl.errors import BudgetError, SpaceError
from prunerl.evaluate import judge, seeds, yardstick
from prunerl.rollout import rollout, warm_up
from prunerl.students import VISITS, effort
from prunerl.task import one_thread, some
from prunerl.types import Agent, Policy, Stage
from prunerl.visits import trace_policy

__all__ = ["CompressResult", "Compressed", "Row", "Step", "compress"]

VISIT_EPISODES, VISITED, CALIBRATED = 24, 12_000, 4096
OWN_SEEDS = 500_000
"""Where the seeds of a compression begin among those of their purpose: not those of the run that pruned the agent."""
SEEDS_EACH = 1000
ITERATIONS, UPDATES, BATCH = 8, 600, 512
"""Of a repair, at most: a compressed network is nearer to what it is to do than one that was cut."""
FEWEST_CONFIRMED = 100

Observer = Callable[[str], None]


def compress(
    agent: Agent,
    *,
    low_rank: float | Literal["auto"] | None = None,
    share: int | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    inputs: bool | None = None,
    reference: Agent | None = None,
    tolerance: float = 0.05,
    repair: bool = True,
    episodes: int | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> CompressResult:
    """Store an agent in fewer bytes, as far as it stays not worse than the reference, with the proof.

    The compressions are applied in the order of the arguments. Each is judged on the selection seeds, repaired by
    distillation where it does not pass, and taken back where it does not pass even so. What is left is confirmed on
    seeds that were not used before; where it fails there, the last compression is taken back.

    Args:
        agent: What to compress; a pruned agent's zeros stay zeros.
        low_rank: Share of the network's numbers to keep by factorising linear layers, in (0, 1]; ``auto`` halves it
            as long as the agent passes.
        share: Let the weights of each layer share ``2**share`` values; 2 to 8.
        quantize: Round weights to integers: ``int8`` or ``int4``.
        inputs: Also let hidden layers round their inputs to int8; by default with ``int8``.
        reference: What to imitate and to measure against; by default the agent itself.
        tolerance: Largest satisfactory loss of return; 1 is the reference's gain over the random policy.
        repair: Distil where a compression does not pass as it is.
        episodes: Episodes of selection and of confirmation; by default as many as the spread of returns needs.
        seed: Everything random follows from it.
        observer: Told about progress.

    Raises:
        BudgetError: An amount is out of range, or nothing can be compressed.
        SpaceError: The reference acts in another environment.
    """
    stages = stages_for(low_rank, share, quantize, inputs)
    stats.check_tolerance(tolerance)
    if episodes is not None and episodes < 10:
        raise BudgetError(f"episodes must be at least 10 for an interval, got {episodes}.")
    if reference is not None and reference.env != agent.env:
        raise SpaceError(f"The reference acts in {reference.env}, the agent in {agent.env}. Give one of the same.")
    warm_up()
    with one_thread():
        run = _prepared(agent, reference or agent, tolerance, episodes, seed, repair, observer or (lambda line: None))
        return _confirmed(run, _carried_out(run, stages))


@dataclass(frozen=True, eq=False)
class _Run:
    """What stays the same through a run."""

    first: Draft
    reference: Reference
    repair: bool
    episodes: int
    seed: int
    observer: Observer
    began: float


@dataclass(frozen=True, eq=False)
class _Accepted:
    """A draft that passed, and the number of its step; the uncompressed one has none."""

    draft: Draft
    step: int | None


@dataclass(frozen=True, eq=False)
class _Outcome:
    """The steps of a run, and the drafts that passed, the last one the smallest."""

    steps: tuple[Step, ...]
    accepted: tuple[_Accepted, ...]


def _prepared(
    agent: Agent, reference: Agent, tolerance: float, episodes: int | None, seed: int, repair: bool, observer: Observer
) -> _Run:
    """Measure the reference, and visit states with it."""
    began = time.perf_counter()
    policy = reference.policy
    yard = yardstick(policy, reference.env, tolerance=tolerance, seed=seed, episodes=episodes)
    played = rollout(policy, reference.env, seeds(seed, "visit", VISIT_EPISODES, offset=OWN_SEEDS), record=True)
    generator = torch.Generator().manual_seed(seed)
    visited = some(visits.inputs(policy, played), VISITED // visits.steps_of(policy), generator)
    yard = replace(yard, steps=yard.steps + played.steps, seconds=time.perf_counter() - began)
    start = agent.simplified()
    measured = Reference(reference, trace_policy(policy, visited), visited, yard)
    first = draft_of(start, trace_policy(start.policy, visited))
    confirmed = episodes or max(FEWEST_CONFIRMED, len(yard.dense))
    return _Run(first, measured, repair, confirmed, seed, observer, began)


def _carried_out(run: _Run, stages: Sequence[Sequence[Alternative]]) -> _Outcome:
    steps: list[Step] = []
    accepted = [_Accepted(run.first, None)]
    visited = run.reference.visited[:0]
    for alternatives in stages:
        before = accepted[-1].draft
        for number, one in enumerate(alternatives):
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + 700_000 + len(steps))
            try:
                changed = one.apply(before, some(run.reference.visited, CALIBRATED, generator))
            except BudgetError:
                if number == 0:
                    raise
                break  # a smaller one was tried and cannot be had
            run.observer(f"{one.name}: judging")
            step, draft, visited = _judged(run, one.name, changed, visited, len(steps), generator)
            run.observer(str(step))
            steps.append(step)
            if not step.kept:
                break
            accepted.append(_Accepted(draft, len(steps) - 1))
    return _Outcome(tuple(steps), tuple(accepted))


def _judged(
    run: _Run, name: str, draft: Draft, visited: Tensor, index: int, generator: torch.Generator
) -> tuple[Step, Draft, Tensor]:
    """Judge a draft as it was made, and after its repair where it needs one."""
    began = time.perf_counter()
    verdict, taken = judge(run.reference.yard, deployed(draft))
    stages = [Stage("as made", divergence(draft, run.reference), verdict, time.perf_counter() - began, taken)]
    if not verdict.satisfied and run.repair:
        began = time.perf_counter()
        made = repaired(draft, run.reference, visited, _training(run, draft, index), generator)
        draft, visited = made.draft, made.visited
        stages.append(
            Stage(
                "distilled",
                divergence(draft, run.reference),
                made.verdict,
                time.perf_counter() - began,
                made.env_steps,
            )
        )
    parameters, size, macs = sizes(draft)
    return Step(name, tuple(stages), stages[-1].verdict.satisfied, parameters, size, macs), draft, visited


def _training(run: _Run, draft: Draft, index: int) -> Training:
    convolutional = any("conv" in layer.kind for layer in draft.traced.layers)
    work = effort(sizes(draft)[0], convolutional=convolutional)
    return Training(
        iterations=min(work.iterations, ITERATIONS),
        updates=min(work.updates, UPDATES),
        batch=min(work.batch, BATCH),
        learning_rate=work.learning_rate,
        visits=VISITS,
        seed=run.seed,
        offset=OWN_SEEDS + (index + 1) * SEEDS_EACH,
    )


def _confirmed(run: _Run, outcome: _Outcome) -> CompressResult:
    """Judge the smallest draft on fresh seeds; where it fails, the one before it on other fresh seeds."""
    steps, accepted = list(outcome.steps), list(outcome.accepted)
    run.observer("confirming on seeds that were not used before")
    for number in range(len(accepted)):
        draft, index = accepted[-1].draft, accepted[-1].step
        rows = _rows(run, draft, number)
        if rows[-1].verdict.satisfied or index is None:
            break
        steps[index] = replace(steps[index], kept=False, refused=rows[-1].verdict)
        run.observer(str(steps[index]))
        accepted.pop()
    agent = Compressed(
        policy=policy_of(draft),
        deployed=deployed(draft),
        codings=draft.codings,
        env=draft.agent.env,
        algorithm=draft.agent.algorithm,
        notes=(*draft.agent.notes, *draft.notes),
    )
    return CompressResult(agent, tuple(steps), rows, time.perf_counter() - run.began)


def _rows(run: _Run, draft: Draft, number: int) -> tuple[Row, ...]:
    """Play the reference, the agent as given where it is another one, and the draft on the same seeds."""
    chosen = seeds(run.seed, "confirm", run.episodes, offset=OWN_SEEDS + number * run.episodes)
    yard = run.reference.yard
    whole = draft_of(run.reference.agent, run.reference.traced)
    played: list[tuple[str, Draft, Policy]] = [("reference", whole, run.reference.agent.policy)]
    if run.first.agent is not run.reference.agent:
        played.append(("given", run.first, run.first.agent.policy))
    name = "compressed" if draft is not run.first else "not compressed"
    played.append((name, draft, deployed(draft)))
    returns = [rollout(policy, yard.env, chosen).returns for _, _, policy in played]
    return tuple(
        Row(
            label,
            *sizes(own),
            stats.verdict(returns[0], got, yard.random, tolerance=yard.tolerance, first_seed=chosen[0]),
        )
        for (label, own, _), got in zip(played, returns, strict=True)
    )
