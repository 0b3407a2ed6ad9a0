"""Show the progress of a run: a line a round, and on a terminal a live status beneath."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prunerl.report.cells import number, passes, widths
from prunerl.types import Round

if TYPE_CHECKING:
    from rich.console import Console

    from prunerl.loop import Observer

BASELINES_IN_ROUNDS = 3
"""What the confirmation and the baselines take, measured in rounds."""


@dataclass(frozen=True)
class _Plan:
    schedule: str
    rounds: int
    compare: bool


@contextmanager
def progress(console: Console, *, schedule: str, rounds: int, compare: bool) -> Iterator[Observer]:
    """Yield an observer that prints a line a round; on a terminal with a live status beneath."""
    plan = _Plan(schedule.replace("-", "_"), rounds, compare)
    start = time.monotonic()
    made: list[Round] = []
    steps = ["measuring the dense agent"]
    spinner = Spinner("dots")

    def status() -> Spinner:
        parts = (
            steps[-1],
            f"{len(made)} rounds done",
            f"{time.monotonic() - start:.0f} s",
            _left(made, steps[-1], plan),
        )
        spinner.update(text=Text(" · ".join(parts), no_wrap=True, overflow="ellipsis"))
        return spinner

    def observe(line: str, finished: Round | None) -> None:
        if finished is not None:
            made.append(finished)
            steps.append(f"round {len(made) + 1}")
            style = "green" if finished.satisfied else "red"
            console.print(Text(_round_line(finished), style=style), soft_wrap=True)
            return
        # A line with a number tells a result, after which the first round begins; others name the step that begins.
        steps.append(line if made else "round 1")
        if not made or not console.is_terminal:
            console.print(Text(line), soft_wrap=True)

    if not console.is_terminal:
        yield observe
        return
    with Live(get_renderable=status, console=console, refresh_per_second=3, transient=True):
        yield observe


def _round_line(made: Round) -> str:
    verdict = made.stages[made.best].verdict
    size = f"{made.size.parameters:,} parameters"
    if made.structure == "weights":
        size = f"{made.size.nonzeros:,} of {size}"
    return (
        f"round {made.index:>2}  {made.structure:<7}  {size:>18}  {widths(made.size.units):<12}  "
        f"return {fmean(verdict.pruned):.5g} ({number(verdict.normalized)})  "
        f"{passes(made.satisfied)}  {made.seconds:.1f} s"
    )


def _left(made: Sequence[Round], step: str, plan: _Plan) -> str:
    """Say how long the run still takes, as far as it can be known."""
    if not made:
        return "time left: unknown until a round is done"
    after = BASELINES_IN_ROUNDS if plan.compare else 1
    rounds = _rounds_left(made, plan) if step.startswith("round ") else 0
    if rounds is None:
        return "time left: unknown until a round fails"
    return f"time left: about {(rounds + after) * fmean(each.seconds for each in made):.0f} s"


def _rounds_left(made: Sequence[Round], plan: _Plan) -> int | None:
    """Return about how many rounds are left; None while the adaptive search has not failed in its present structure.

    After a failure it halves the gap between the smallest agent that passed and the largest that failed, down to about
    one unit.
    """
    if plan.schedule != "adaptive":
        return max(0, (1 if plan.schedule == "one_shot" else plan.rounds) - len(made))
    size = _nonzeros if made[-1].structure == "weights" else _parameters
    passed = [size(each) for each in made if each.satisfied]
    failed = [size(each) for each in made if not each.satisfied and each.structure == made[-1].structure]
    below = [each for each in failed if not passed or each < min(passed)]
    if not below or not passed:
        return None
    unit = max(1.0, min(passed) / max(1, sum(made[-1].size.units)))
    return 1 + math.ceil(math.log2(max(1.0, (min(passed) - max(below)) / unit)))


def _parameters(made: Round) -> int:
    return made.size.parameters


def _nonzeros(made: Round) -> int:
    return made.size.nonzeros
