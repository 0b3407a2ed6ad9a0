"""Schedules end where they should, and the adaptive search finds the smallest that passes."""

from __future__ import annotations

import math

import pytest

from prunerl import schedules
from prunerl.errors import BudgetError, NameUnknownError
from prunerl.schedules import Adaptive, failed, finished, passed, propose

FIXED = sorted(set(schedules.__all__) - {"adaptive"})


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_schedule_rises_to_its_end(name: str, steps: int) -> None:
    schedule = schedules.find(name)
    values = [schedule(step, steps, 0.9) for step in range(1, steps + 1)]
    assert values == sorted(values)
    assert values[0] > 0
    assert values[-1] == pytest.approx(0.9)
    assert schedule(1, steps, 0.0) == 0.0


def test_values_worked_out() -> None:
    assert schedules.one_shot(1, 2, 0.8) == 0.8
    assert schedules.linear(1, 2, 0.8) == pytest.approx(0.4)
    assert schedules.cubic(1, 2, 0.8) == pytest.approx(0.8 * (1 - 1 / 8))


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize(
    ("step", "steps", "final"), [(0, 3, 0.5), (4, 3, 0.5), (1, 0, 0.5), (1, 3, 1.0), (1, 3, -0.1), (1, 3, math.nan)]
)
def test_arguments_out_of_range_are_refused(name: str, step: int, steps: int, final: float) -> None:
    with pytest.raises(BudgetError):
        schedules.find(name)(step, steps, final)


def test_find() -> None:
    assert schedules.find("one-shot") is schedules.one_shot
    assert schedules.find("adaptive") is Adaptive
    with pytest.raises(NameUnknownError, match="Did you mean 'cubic'"):
        schedules.find("cubik")


def test_a_proposal_is_a_power_of_two_of_the_current_and_at_least_one_fewer() -> None:
    assert propose(Adaptive(step=1.0), 1000) == 500
    assert propose(Adaptive(step=2.0), 1001) == 250
    assert propose(Adaptive(step=1e-9), 1000) == 999
    assert propose(Adaptive(step=2.0, floor=300), 1000) == 300


def test_success_doubles_until_something_fails_and_failure_halves() -> None:
    assert passed(Adaptive(step=0.5)).step == 1.0
    assert failed(Adaptive(step=0.5), 10).step == 0.25
    assert passed(failed(Adaptive(step=0.5), 10)) == failed(Adaptive(step=0.5), 10)


def test_what_failed_is_not_tried_again() -> None:
    plan = failed(Adaptive(step=2.0), 100, saving=8)
    assert propose(plan, 120, saving=8) == 108
    assert not finished(plan, 116, saving=8)
    assert finished(plan, 115, saving=8)


@pytest.mark.parametrize("unit", [1, 7, 40])
@pytest.mark.parametrize("least", [1, 3, 120, 990, 4_990])
@pytest.mark.parametrize("step", [0.1, 2.0, 8.0])
def test_the_search_ends_at_the_smallest_that_passes(least: int, unit: int, step: float) -> None:
    """A network of 5 000 parameters that loses them in units of equal size and passes down to ``least``."""
    plan, current, rounds = Adaptive(step=step), 5_000, 0
    while not finished(plan, current, unit):
        target = propose(plan, current, unit)
        removed = current - unit * -(-(current - target) // unit)  # whole units, at most the target is left
        assert removed < current
        if removed >= least:
            plan, current = passed(plan), removed
        else:
            plan = failed(plan, removed, unit)
        rounds += 1
        assert rounds < 200
    assert least <= current
    assert current - unit < max(least, 1)


@pytest.mark.parametrize(("step", "floor"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0)])
def test_a_plan_that_cannot_move_is_refused(step: float, floor: int) -> None:
    with pytest.raises(BudgetError):
        Adaptive(step=step, floor=floor)
