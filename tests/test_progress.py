"""What is said of the time left."""

from __future__ import annotations

import dataclasses

from prunerl import progress
from prunerl.types import Round, Size, Stage, Verdict


def _round(index: int, parameters: int, satisfied: bool, *, seconds: float = 2.0) -> Round:
    verdict = Verdict((1.0,), (1.0,), (0, 1), 0.0, 1.0, 1.0, (0.0, 0.0), 0.95, 0.05, satisfied)
    stage = Stage("cut", 0.0, verdict, seconds, 0)
    size = Size(parameters, parameters, parameters, (8, 8))
    return Round(index, "units", "variance", 0.0, size, {}, (stage,), 0, satisfied, seconds, 0)


ADAPTIVE = progress._Plan("adaptive", 5, compare=True)


def test_the_time_left_is_not_invented() -> None:
    assert progress._left([], "round 1", ADAPTIVE) == "time left: unknown until a round is done"
    assert progress._left([_round(1, 160, True)], "round 2", ADAPTIVE) == "time left: unknown until a round fails"


def test_the_time_left_halves_the_gap_down_to_a_unit() -> None:
    # A unit of 160 parameters in 16 units is 10; the gap of 80 is 8 units: 1 + log2 8 = 4 rounds, 3 for the baselines.
    made = [_round(1, 160, True), _round(2, 80, False)]
    assert progress._left(made, "round 3", ADAPTIVE) == "time left: about 14 s"
    assert progress._left(made, "round 3", dataclasses.replace(ADAPTIVE, compare=False)) == "time left: about 10 s"


def test_the_time_left_of_a_schedule_counts_its_rounds() -> None:
    plan = progress._Plan("cubic", 4, compare=False)
    assert progress._left([_round(1, 160, True)], "round 2", plan) == "time left: about 8 s"
