"""The cells of the report's tables as plain text, for the terminal and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from prunerl.types import Report, Round, Row, Stage, Verdict

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table: its header, and rows of as many cells; the first ``labels`` columns are read as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1


def number(value: float, digits: int = 3) -> str:
    """Format with thousands separators and a true minus sign; zero has no sign.

    >>> number(-1234.5, 1), number(-0.0001)
    ('−1,234.5', '0.000')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def interval(low: float, high: float, digits: int = 3) -> str:
    """Format an interval.

    >>> interval(-0.02, 0.01)
    '[−0.020, 0.010]'
    """
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(share: float) -> str:
    """Format a share.

    >>> percent(0.95), percent(0.975)
    ('95 %', '97.5 %')
    """
    return f"{100 * share:.4g} %"


def passes(satisfied: bool) -> str:
    """Say a verdict in one word."""
    return "passes" if satisfied else "fails"


def widths(units: tuple[int, ...]) -> str:
    """Format the widths of hidden layers; a policy without any is linear.

    >>> widths((64, 64)), widths(())
    ('64 × 64', 'none')
    """
    return " × ".join(map(str, units)) or "none"


def comparison(report: Report) -> Grid:
    """Compare dense, pruned and the baselines: one column each."""
    columns = (report.dense, report.pruned, *report.baselines)
    verdict = report.pruned.verdict
    level = percent(verdict.confidence)
    lines = {
        "return, mean": tuple(_returns(row.verdict)[0] for row in columns),
        f"  {level} interval of the mean": tuple(_returns(row.verdict)[1] for row in columns),
        "normalised return": tuple(number(row.verdict.normalized) for row in columns),
        f"  {level} interval of the difference": _against_dense(columns, lambda v: interval(*v.interval)),
        f"  verdict at tolerance {verdict.tolerance:g}": _against_dense(columns, lambda v: passes(v.satisfied)),
        "parameters, actor": tuple(f"{row.size.parameters:,}" for row in columns),
        "  of them not zero": tuple(f"{row.size.nonzeros:,}" for row in columns),
        "parameters, whole agent": tuple(f"{row.total_parameters:,}" for row in columns),
        "multiply–accumulates": tuple(f"{row.size.macs:,}" for row in columns),
        "hidden widths": tuple(widths(row.size.units) for row in columns),
        "bytes on disk": tuple(f"{row.bytes:,}" for row in columns),
        "latency, median, batch 1 (µs)": tuple(number(row.latency[1], 1) for row in columns),
        "  latency, 5 %–95 % (µs)": tuple(
            f"{number(row.latency[0], 1)}–{number(row.latency[2], 1)}" for row in columns
        ),
        "seconds to make": tuple(number(row.seconds, 1) for row in columns),
        "environment steps to make": tuple(f"{row.env_steps:,}" for row in columns),
    }
    return Grid(("", *(row.name for row in columns)), tuple((label, *cells) for label, cells in lines.items()))


def rounds(report: Report) -> Grid:
    """List the rounds: one line each, with the normalised return after each stage of the repair."""
    names = tuple(dict.fromkeys(stage.name for each in report.rounds for stage in each.stages))
    titles = (name.replace("_", " ") for name in names)
    header = ("round", "structure", "target", "parameters", "widths", *titles)
    header += ("best", "verdict", "seconds", "env steps")
    return Grid(header, tuple(_round_line(each, names) for each in report.rounds))


def best_stage(each: Round) -> Stage:
    """Return the stage that a round keeps."""
    return each.stages[each.best]


def path(report: Report) -> tuple[Round, ...]:
    """Return the rounds that led to the pruned agent, the one that gave it last; empty when none did.

    A round that was not satisfied is undone, so it is part of the way only when it is the result itself.
    """
    same = [i for i, each in enumerate(report.rounds) if each.size == report.pruned.size]
    ends = [i for i in same if report.rounds[i].satisfied] or same
    if not ends:
        return ()
    return (*(each for each in report.rounds[: ends[-1]] if each.satisfied), report.rounds[ends[-1]])


def kept(report: Report) -> Grid:
    """List for each group what is left of it in the pruned agent, and the last decision that cut it."""
    first: dict[str, int] = {}
    last: dict[str, tuple[int, Round]] = {}
    for each in path(report):
        for group, (left, units) in each.kept.items():
            first.setdefault(group, units)
            if left < units or group not in last:
                last[group] = (left, each)
    lines = (
        (group, each.structure, f"{left:,} of {first[group]:,}", f"by {each.criterion}, round {each.index}")
        if left < first[group]
        else (group, each.structure, f"{left:,} of {first[group]:,}", f"all kept, by {each.criterion}")
        for group, (left, each) in last.items()
    )
    return Grid(("group", "structure", "kept", "why"), tuple(lines), labels=4)


def _against_dense(columns: tuple[Row, ...], cell: Callable[[Verdict], str]) -> tuple[str, ...]:
    return ("reference", *(cell(row.verdict) for row in columns[1:]))


def _returns(verdict: Verdict) -> tuple[str, str]:
    # The row's own returns are under ``pruned`` whichever row it is; ``dense`` is what they are paired with.
    from prunerl import stats

    low, high = stats.interval(verdict.pruned, confidence=verdict.confidence)
    digits = _digits(max(abs(low), abs(high)))
    return number(fmean(verdict.pruned), digits), interval(low, high, digits)


def _digits(size: float) -> int:
    if size >= 1000:
        return 0
    return 1 if size >= 10 else 3


def _round_line(each: Round, names: tuple[str, ...]) -> tuple[str, ...]:
    after = {stage.name: number(stage.verdict.normalized) for stage in each.stages}
    return (
        str(each.index),
        each.structure,
        f"{each.target:,.10g}",
        f"{each.size.parameters:,}",
        widths(each.size.units),
        *(after.get(name, NONE) for name in names),
        best_stage(each).name,
        passes(each.satisfied),
        number(each.seconds, 1),
        f"{each.env_steps:,}",
    )
