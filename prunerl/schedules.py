"""Schedules: how much is removed by the end of each round.

``one_shot``, ``linear`` and ``cubic`` map a round to a sparsity. ``adaptive`` is not given an end: it is a search for
the smallest network that still passes, and moves on the parameter count by what passed and what did not::

    plan = Adaptive(step=2.0)
    while not finished(plan, current, saving):
        target = propose(plan, current, saving)     # remove and judge
        plan = passed(plan) if satisfied else failed(plan, parameters, saving)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from prunerl import errors
from prunerl.errors import BudgetError

__all__ = ("adaptive", "cubic", "linear", "one_shot")

Schedule = Callable[[int, int, float], float]


@dataclass(frozen=True)
class Adaptive:
    """A search on the logarithm of the parameter count.

    Attributes:
        step: The next target is ``2^(−step)`` of the current parameters: a step of 1 halves the network.
        floor: No target lies below this number of parameters.
        closing: Something has failed.

    Raises:
        BudgetError: The step is not a positive number, or the floor is below 1.
    """

    step: float = 2.0
    floor: int = 1
    closing: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.step < float("inf"):
            raise BudgetError(f"An adaptive schedule got step {self.step}. Set a positive number, such as 2.0.")
        if self.floor < 1:
            raise BudgetError(f"An adaptive schedule got floor {self.floor}. Set it to 1 parameter or more.")


adaptive = Adaptive


def find(name: str) -> Schedule | type[Adaptive]:
    """Return the schedule of that name; dashes and underscores are equal.

    Raises:
        NameUnknownError: No schedule has that name.

    >>> find("one-shot") is one_shot
    True
    """
    known = name.replace("-", "_")
    if known not in __all__:
        raise errors.unknown("schedule", name, __all__)
    schedule: Schedule | type[Adaptive] = getattr(sys.modules[__name__], known)
    return schedule


def one_shot(step: int, steps: int, final: float) -> float:
    """Return the final sparsity from the first round on.

    >>> one_shot(1, 4, 0.8)
    0.8
    """
    _progress(step, steps, final)
    return final


def linear(step: int, steps: int, final: float) -> float:
    """Return the sparsity after round ``step`` of ``steps`` when each round removes the same amount.

    >>> [round(linear(step, 4, 0.8), 3) for step in (1, 2, 3, 4)]
    [0.2, 0.4, 0.6, 0.8]
    """
    return final * _progress(step, steps, final)


def cubic(step: int, steps: int, final: float) -> float:
    """Return the sparsity s_F·(1 − (1 − p)³) at p = step/steps: much at first, while there is much to spare.

    Args:
        step: The round, from 1.
        steps: Number of rounds.
        final: Sparsity after the last round, in [0, 1).

    Raises:
        BudgetError: An argument is out of its range.

    Reference: Zhu & Gupta 2017, *To prune, or not to prune*, eq. 1.

    >>> [round(cubic(step, 4, 0.8), 4) for step in (1, 2, 3, 4)]
    [0.4625, 0.7, 0.7875, 0.8]
    """
    return final * (1.0 - (1.0 - _progress(step, steps, final)) ** 3)


def propose(plan: Adaptive, current: int, saving: int = 1) -> int:
    """Return the next target: ``current · 2^(−step)`` parameters, not below the floor, and at least one unit fewer.

    Args:
        plan: The search.
        current: Parameters of the smallest network that passed.
        saving: Parameters saved by the removal of the cheapest unit.

    >>> propose(Adaptive(step=2.0), 1000)
    250
    >>> propose(Adaptive(step=0.001), 1000, saving=12)
    988
    """
    return min(max(int(current * 2.0**-plan.step), plan.floor), current - saving)


def passed(plan: Adaptive) -> Adaptive:
    """Double the step after a success; once something has failed the search closes in and the step stays.

    >>> passed(Adaptive(step=0.5)).step
    1.0
    """
    return plan if plan.closing else replace(plan, step=2.0 * plan.step)


def failed(plan: Adaptive, parameters: int, saving: int = 1) -> Adaptive:
    """Halve the step after a failure; what failed, and all below it, is not tried again.

    Args:
        plan: The search.
        parameters: Size of the network that failed.
        saving: Parameters saved by the removal of the cheapest unit.

    >>> failed(Adaptive(step=2.0), 100, saving=8)
    Adaptive(step=1.0, floor=108, closing=True)
    """
    return replace(plan, step=0.5 * plan.step, floor=max(plan.floor, parameters + saving), closing=True)


def finished(plan: Adaptive, current: int, saving: int = 1) -> bool:
    """Tell whether the search is over: one unit fewer is below the floor, so the smallest step has failed.

    >>> finished(Adaptive(floor=108), 110, saving=8), finished(Adaptive(floor=108), 120, saving=8)
    (True, False)
    """
    return current - saving < plan.floor


def _progress(step: int, steps: int, final: float) -> float:
    if not 1 <= step <= steps:
        raise BudgetError(f"Round {step} of {steps} does not exist. Count rounds from 1 to {steps}.")
    if not 0.0 <= final < 1.0:
        raise BudgetError(f"A schedule got final sparsity {final}. Set it to at least 0 and less than 1.")
    return step / steps
