"""Show a report on the terminal."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from prunerl.report import cells
from prunerl.report.reading import caveats, sentence
from prunerl.types import Report

if TYPE_CHECKING:
    from rich.table import Table


def table(report: Report, *, title: str | None = None) -> Table:
    """Return the comparison as a Rich table: dense, pruned and each baseline are its columns."""
    return _rich(cells.comparison(report), title)


def rounds_table(report: Report, *, title: str | None = None) -> Table:
    """Return the rounds as a Rich table: one line each, with the normalised return after each stage."""
    return _rich(cells.rounds(report), title)


def render(report: Report, *, width: int = 120) -> str:
    """Return the report as plain text: the verdict, what to bear in mind, the comparison and the rounds.

    Args:
        report: What to show.
        width: Characters a line. A table that needs more is wider, for a number on two lines is read as two numbers.
    """
    lines = [f"{report.algorithm} on {report.env.id}: {sentence(report)}"]
    lines += [f"Note: {caveat}" for caveat in caveats(report)]
    parts = [textwrap.fill(line, width) for line in lines]
    parts += ["", _plain(table(report), width)]
    if report.rounds:
        parts += [_plain(rounds_table(report, title="Rounds, with the normalised return after each stage"), width)]
    return "\n".join(parts)


def _plain(made: Table, width: int) -> str:
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, color_system=None, width=10_000)
    console.width = max(width, console.measure(made).maximum)
    console.print(made)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _rich(grid: cells.Grid, title: str | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a name such as "[red]" is a name, whatever markup the caller's console reads.
    made = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
    for i, name in enumerate(grid.header):
        made.add_column(
            Text(name),
            justify="left" if i < grid.labels else "right",
            overflow="fold",
            no_wrap=i == 0,
        )
    for line in grid.rows:
        made.add_row(*(Text(cell) for cell in line))
    return made
