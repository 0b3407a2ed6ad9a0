"""Where to go next: the order in which structures are tried, and how far each round goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prunerl import decide, schedules
from prunerl.attempt import Decide
from prunerl.cost import size
from prunerl.remove import pair, unexplained
from prunerl.schedules import Adaptive, failed, finished, passed, propose
from prunerl.students import LED, can_be_led
from prunerl.task import Candidate, Task, masked_parameters
from prunerl.trace import layer_groups, matrix, unit_groups
from prunerl.types import Decision, Group, Round, Scores, Structure

STRUCTURES = ("auto", "units", "weights", "layers")
SMALLEST_SAVING = 0.98
"""A layer is dropped only where at most this share of the parameters is left."""
FIRST_STEP = 5.6
"""The first step leaves a 48th: of the Zoo's agents every one that was tried can do with less."""
CAREFUL_STEP, CAREFUL_SAVING = 0.5, 0.3
"""Where rounds are dear, see :func:`_dear`: the steps after the first, and the share that must be left to save."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """What a round is to do: on which structure, by which decision, with which aim."""

    structure: Structure
    decide: Decide
    target: float


Step = Callable[[Candidate, Attempt], tuple[Round, Candidate]]
"""Carry out one round on a candidate."""


def adaptive(task: Task, start: Candidate, structure: str, sparsity: float | None, step: Step) -> Candidate:
    """Search for the smallest agent that passes.

    ``auto`` drops hidden layers down to one, then units, then the last hidden layer where that still saves. Where
    rounds are dear units go first, in fewer rounds, and layers only where no network of the dense depth passed.

    Args:
        task: The run.
        start: The dense agent.
        structure: ``auto``, ``units``, ``weights`` or ``layers``.
        sparsity: Never remove more than this share; None for no limit.
        step: Carries out one round.

    Returns:
        The smallest agent that passed; the dense one when none did.
    """
    least = 1 if sparsity is None else max(1, round((1.0 - sparsity) * masked_parameters(start)))
    if structure == "layers":
        return _drop_layers(task, start, step, keep=0, least=least)
    if structure in ("units", "weights"):
        kind: Structure = "units" if structure == "units" else "weights"
        return _shrink(start, kind, step, least=least, min_units=task.min_units)
    if _dear(task, start):
        current = _shrink(start, "units", step, least=least, min_units=task.min_units, dear=True)
        if current is not start:
            return current
    current = _drop_layers(task, start, step, keep=1, least=least)
    current = _shrink(current, "units", step, least=least, min_units=task.min_units)
    shallower = _drop_layers(task, current, step, keep=0, least=least)
    if shallower is current:
        return current
    return _shrink(shallower, "units", step, least=least, min_units=task.min_units)


def _dear(task: Task, start: Candidate) -> bool:
    """Tell whether rounds that fail cost as much as those that pass, and a shallow network is no cheap first guess.

    That is so where critics lead one student through many iterations, at a 48th of the dense agent's size, and the
    network with one hidden layer left is still more than twice as large as that.
    """
    aim = masked_parameters(start) * 2.0**-FIRST_STEP
    if aim <= LED or not can_be_led(task, start.traced):
        return False
    options = layer_groups(start.traced, start.agent.stacks)
    return len(options) < 2 or min(_without(start, g.name) for g in options) > 2.0 * aim


def _without(current: Candidate, name: str) -> int:
    return masked_parameters(current) - _saved_by_dropping(current, name)


def between(task: Task, larger: Candidate, refused: int, structure: str, step: Step, *, rounds: int) -> None:
    """Look for agents that pass between one that passed and a smaller one that was refused.

    Args:
        task: The run.
        larger: The agent that passed.
        refused: Size of the smaller one.
        structure: Of the run.
        step: Carries out one round.
        rounds: At most as many.
    """
    kind: Structure = "weights" if structure == "weights" else "units"
    now, saving = masked_parameters(larger), _smallest_saving(larger, kind, task.min_units)
    floor = max(refused + saving, _fewest(larger, kind, task.min_units))
    plan = Adaptive(step=max(0.5 * math.log2(now / refused), 0.1), floor=floor, closing=True)
    _shrink(larger, kind, step, plan=plan, rounds=rounds, min_units=task.min_units)


def fixed(task: Task, start: Candidate, settings: Mapping[str, Any], step: Step) -> Candidate:
    """Follow a schedule to its sparsity, whatever the verdicts say, and return the last agent."""
    schedule: Any = schedules.find(settings["schedule"])
    structure: Structure = "weights" if settings["structure"] == "weights" else "units"
    current, gone = start, 0.0
    for number in range(1, settings["rounds"] + 1):
        share = schedule(number, settings["rounds"], settings["sparsity"])
        if share > gone:
            # Units that are gone leave the groups; single weights stay in them, held at zero.
            now = (share - gone) / (1.0 - gone) if structure == "units" or settings["rule"] != "sparsity" else share
            decided = _by_rule(task, settings, now, number)
            if _plainly_by_parameters(settings):
                decided = _to_parameters(int((1.0 - share) * masked_parameters(start)), task.min_units)
            _, current = step(replace(current, origin=None), Attempt(structure, decided, share))
            gone = share
    return current


def _plainly_by_parameters(settings: Mapping[str, Any]) -> bool:
    plain = settings["rule"] == "sparsity" and settings["ranking"] == "global" and settings["distribution"] is None
    return plain and settings["count"] == "parameters"


def _by_rule(task: Task, settings: Mapping[str, Any], sparsity: float, number: int) -> Decide:
    def choose(parent: Candidate, groups: Sequence[Group], scores: Scores) -> Decision:
        if settings["rule"] == "probability":
            generator = torch.Generator().manual_seed(task.seed * 1_000_003 + 900_000 + number)
            drawn = _draw(decide.normalized(scores), sparsity, generator)
            decide.check(groups, drawn, at=f"sparsity {sparsity:.3g} by probability")
            return drawn
        return decide.by_sparsity(
            groups,
            decide.normalized(scores),
            sparsity,
            scope=settings["ranking"],
            count=settings["count"],
            distribution=settings["distribution"],
            min_units=task.min_units,
            traced=parent.traced,
            tensors=parent.agent.state.tensors,
        )

    return choose


def _draw(scores: Scores, sparsity: float, generator: torch.Generator) -> Decision:
    """Draw by probability among what is not held at zero already (score −∞)."""
    live = {name: score.isfinite() for name, score in scores.items()}
    drawn = decide.by_probability({n: s[live[n]] for n, s in scores.items()}, sparsity, generator=generator)
    return {n: torch.zeros_like(live[n]).masked_scatter_(live[n], drawn[n]) for n in scores}


def _shrink(
    current: Candidate,
    structure: Structure,
    step: Step,
    *,
    least: int = 1,
    min_units: int = 1,
    plan: Adaptive | None = None,
    rounds: int | None = None,
    dear: bool = False,
) -> Candidate:
    """Remove units or weights in steps that grow while the verdict stays good and halve when it fails.

    Where rounds are ``dear``, steps after the first success are short, and a last small saving is let go.
    """
    plan = plan or Adaptive(step=FIRST_STEP, floor=max(least, _fewest(current, structure, min_units)))
    for _ in itertools.count() if rounds is None else range(rounds):
        now, saving = masked_parameters(current), _smallest_saving(current, structure, min_units)
        if finished(plan, now, max(saving, int(CAREFUL_SAVING * now)) if dear else saving):
            break
        target = propose(plan, now, saving)
        made, candidate = step(current, Attempt(structure, _to_parameters(target, min_units), target))
        if made.satisfied:
            current = candidate
            plan = replace(plan, step=min(plan.step, CAREFUL_STEP), closing=True) if dear else passed(plan)
        else:
            left = masked_parameters(candidate)
            # Where units cost differently, a target above what was left may make the same cut again.
            even = structure == "units" and _largest_saving(current, min_units) == saving
            plan = failed(plan, left if even else max(target, left), 1 if structure == "units" and not even else saving)
    return current


def _drop_layers(task: Task, current: Candidate, step: Step, *, keep: int, least: int) -> Candidate:
    """Drop hidden layers, the most nearly linear first, while the verdict stays good and parameters are saved."""
    while True:
        options = layer_groups(current.traced, current.agent.stacks)
        if len(options) <= keep:
            return current
        now = masked_parameters(current)
        sizes = {g.name: _without(current, g.name) for g in options}
        useful = [n for n, left in sizes.items() if least <= left <= SMALLEST_SAVING * now]
        if not useful:
            return current
        with torch.no_grad():
            curved = {
                n: unexplained(current.traced, current.agent.state.tensors, n, task.visited[-4096:]) for n in useful
            }
        name = min(curved, key=lambda n: curved[n])
        made, candidate = step(current, Attempt("layers", _drop(name), sizes[name]))
        if not made.satisfied:
            return current
        current = candidate


def _drop(name: str) -> Decide:
    def choose(parent: Candidate, groups: Sequence[Group], scores: Scores) -> Decision:
        return {g.name: torch.tensor([g.name != name]) for g in groups}

    return choose


def _to_parameters(target: int, min_units: int) -> Decide:
    """Decide so that at most ``target`` parameters are left.

    Single weights are spread over the matrices by ERK: ranked over all of them, the first and the last one would lose
    whole inputs and actions first, which no repair brings back.
    """

    def choose(parent: Candidate, groups: Sequence[Group], scores: Scores) -> Decision:
        tensors = parent.agent.state.tensors
        if groups[0].structure == "weights":
            entries = sum(group.units for group in groups)
            others = size(parent.traced, tensors).parameters - entries
            sparsity = 1.0 - max(target - others, len(groups)) / entries
            return decide.by_sparsity(
                groups, scores, sparsity, distribution="erk", min_units=min_units, tensors=tensors
            )
        return decide.by_parameters(groups, scores, parent.traced, tensors, target, min_units=min_units)

    return choose


def _saved_by_dropping(current: Candidate, name: str) -> int:
    layer, reader = pair(current.traced, name)
    tensors = current.agent.state.tensors
    first, second = matrix(layer, tensors), matrix(reader, tensors)
    bias = 0 if layer.bias is None else tensors[layer.bias].numel()
    return first.numel() + bias + second.numel() - second.shape[0] * first.shape[1]


def _fewest(current: Candidate, structure: Structure, min_units: int) -> int:
    """Return the parameters left with ``min_units`` units in each hidden layer, or weights in each matrix."""
    tensors = current.agent.state.tensors
    if structure == "weights":
        own = size(current.traced, tensors)
        kept = sum(min(min_units, tensors[layer.weight].numel()) for layer in current.traced.layers)
        return own.parameters - own.macs + kept
    shapes = {n: list(tensors[n].shape) for n in current.traced.parameters}
    for group in unit_groups(current.traced, tensors):
        for part in group.slices:
            assert part.dim is not None  # groups of units are cut along a dimension
            if part.tensor in shapes:
                shapes[part.tensor][part.dim] -= max(0, group.units - min_units) * part.index.shape[1]
    return sum(math.prod(shape) for shape in shapes.values())


def _smallest_saving(current: Candidate, structure: Structure, min_units: int) -> int:
    """Return what the removal of the cheapest unit saves; for single weights, a fiftieth of those left."""
    if structure == "weights":
        return max(1, masked_parameters(current) // 50)
    return min(_unit_costs(current, min_units), default=1)


def _largest_saving(current: Candidate, min_units: int) -> int:
    return max(_unit_costs(current, min_units), default=1)


def _unit_costs(current: Candidate, min_units: int) -> list[int]:
    """Return what one unit of each hidden layer costs, where there are more than are kept in any case."""
    tensors = current.agent.state.tensors
    return [
        sum(tensors[p.tensor].numel() // tensors[p.tensor].shape[p.dim or 0] * p.index.shape[1] for p in group.slices)
        for group in unit_groups(current.traced, tensors)
        if group.units > min_units
    ]
