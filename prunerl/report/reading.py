"""Say in plain words what the numbers of a report mean, and what they do not."""

from __future__ import annotations

from prunerl.report.cells import interval, number, passes, percent
from prunerl.types import Report, Row


def sentence(report: Report) -> str:
    """Return the result in one sentence: sizes, normalised return, interval, tolerance and verdict."""
    verdict = report.pruned.verdict
    return (
        f"{_sizes(report)}, normalised return {number(verdict.normalized)}, {percent(verdict.confidence)} interval of "
        f"the paired difference {interval(*verdict.interval)} over {verdict.seeds[1]:,} episodes; "
        f"tolerance {verdict.tolerance:g}: {passes(verdict.satisfied)}."
    )


def caveats(report: Report) -> tuple[str, ...]:
    """Return what an honest reader must know beside the verdict, most important first.

    A baseline that passes the same test is named, because then the pruned agent's size says more about the task than
    about the method. A baseline is recognised by its name: ``linear`` in it for the linear policy, ``random weights``
    or ``scratch`` for a network of the pruned one's size that never saw the dense agent's weights.
    """
    found = [_caveat(row) for row in report.baselines if row.verdict.satisfied]
    if not _smaller(report):
        found.insert(0, "Nothing was removed: no smaller agent passed, and the result is as large as the dense agent.")
    if not report.pruned.verdict.satisfied:
        found.insert(
            0, "The pruned agent does not pass on the confirmation seeds: do not use it in the dense one's place."
        )
    if not report.baselines:
        found.append("No baseline was judged, so it is open whether this task needs a larger network at all.")
    return tuple(found)


def _sizes(report: Report) -> str:
    before, after = report.dense.size, report.pruned.size
    text = f"{before.parameters:,} → {after.parameters:,} parameters (actor)"
    if after.nonzeros < after.parameters:
        text += f", {after.nonzeros:,} of them not zero"
    return text


def _smaller(report: Report) -> bool:
    before, after = report.dense.size, report.pruned.size
    return after.parameters < before.parameters or after.nonzeros < before.nonzeros


def _caveat(row: Row) -> str:
    who = f"The baseline '{row.name}' ({row.size.parameters:,} parameters) passes the same test"
    little = "the ratio proves little about the pruning method"
    name = row.name.lower()
    if "linear" in name:
        return f"{who}: this task is nearly linearly solvable, and {little}."
    if "random weights" in name or "scratch" in name:
        return f"{who}: a network of this size reaches the return without the dense agent's weights, and {little}."
    return f"{who}: there is another way to so small an agent, and {little}."
