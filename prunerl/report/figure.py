"""Draw the return against the size, one point a round."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from prunerl.files import write_atomically
from prunerl.report.cells import best_stage, number, percent
from prunerl.types import Report, Size, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
_BASELINES = tuple(zip("DsP^X", (GREEN, PINK, SKY, ORANGE, "#555555"), strict=True))

FLOOR = -0.5
"""Normalised returns below this are drawn at it with their value beside, or one bad round would flatten the others."""


def save_figure(report: Report, path: str | Path) -> None:
    """Write a PNG (1,200 × 750 pixels) of the normalised return against the parameters of the actor.

    Each round is a point at its best stage, filled when it passes. Bars are intervals of the paired difference, moved
    to the dense agent's 1: on the selection seeds for rounds, on the confirmation seeds for the result and the
    baselines. Once single weights have been pruned, the size is the number of non-zero parameters.

    Raises:
        RunError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _lines(axes, report)
    _rounds(axes, report)
    _others(axes, report)
    _dress(axes, report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    write_atomically(path, buffer.getvalue())


def _lines(axes: Axes, report: Report) -> None:
    tolerance = report.pruned.verdict.tolerance
    axes.axhline(1.0, color="black", linewidth=1, label="dense agent", zorder=1)
    axes.axhline(
        1.0 - tolerance,
        color="black",
        linewidth=1,
        linestyle=":",
        label=f"1 − tolerance {tolerance:g}: bars must stay above",
        zorder=1,
    )
    axes.plot(_x(report, report.dense.size), 1.0, "s", color="black", markersize=7, zorder=3)


def _rounds(axes: Axes, report: Report) -> None:
    for satisfied, label in ((True, "round, passes"), (False, "round, fails")):
        chosen = [each for each in report.rounds if each.satisfied == satisfied]
        for i, each in enumerate(chosen):
            face = BLUE if satisfied else "white"
            _point(axes, _x(report, each.size), best_stage(each).verdict, "o", BLUE, face, "_" if i else label)


def _others(axes: Axes, report: Report) -> None:
    for i, row in enumerate(report.baselines):
        marker, colour = _BASELINES[i % len(_BASELINES)]
        _point(axes, _x(report, row.size), row.verdict, marker, colour, colour, f"baseline: {row.name}", size=8)
    pruned = report.pruned
    # Below the rounds: the round that gave the result often lies on the same spot, and stays visible on a larger star.
    _point(
        axes, _x(report, pruned.size), pruned.verdict, "*", VERMILION, VERMILION, "result, confirmed", size=19, order=3
    )


def _point(
    axes: Axes,
    x: float,
    verdict: Verdict,
    marker: str,
    colour: str,
    face: str,
    label: str,
    *,
    size: float = 7,
    order: int = 4,
) -> None:
    y, low, high = verdict.normalized, 1 + verdict.interval[0], 1 + verdict.interval[1]
    # Rounding may put the mean a hair outside of its interval, and a bar of negative length is an error.
    bar = None if y < FLOOR else [[max(y - low, 0.0)], [max(high - y, 0.0)]]
    if y < FLOOR:
        axes.annotate(
            number(y, 1), (x, FLOOR), (0, 9), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
        y, marker = FLOOR, "v"
    bars = axes.errorbar(
        x, y, yerr=bar, fmt=marker, color=colour, markersize=size, capsize=3, zorder=order, label=label
    )
    bars.lines[0].set(markerfacecolor=face, clip_on=bar is not None)


def _dress(axes: Axes, report: Report) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.3, high * 1.3)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, FLOOR), top)
    axes.set_xlabel("non-zero parameters of the actor" if _weights(report) else "parameters of the actor")
    axes.set_ylabel("normalised return (0 random, 1 dense)")
    level = percent(report.pruned.verdict.confidence)
    axes.set_title(
        f"{report.algorithm} on {report.env.id} (bars: {level} interval of the paired difference)", fontsize=11
    )
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize=9, frameon=True, framealpha=0.9)


def _weights(report: Report) -> bool:
    return any(each.structure == "weights" for each in report.rounds)


def _x(report: Report, size: Size) -> float:
    # A logarithmic axis has no zero, and a policy without parameters still deserves its point.
    return float(max(size.nonzeros if _weights(report) else size.parameters, 1))
