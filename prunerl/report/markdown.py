"""Write a report as Markdown, to be read on its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prunerl.report import cells
from prunerl.report.reading import caveats, sentence
from prunerl.types import Report


def markdown(report: Report, *, picture: str = "return.png") -> str:
    """Return the report as Markdown.

    Args:
        report: What to show.
        picture: Where ``save_figure`` has put the picture, relative to the Markdown file.
    """
    parts = (
        f"# {report.algorithm} on {report.env.id}: dense and pruned",
        f"**{sentence(report)}**",
        *(f"> {caveat}" for caveat in caveats(report)),
        "## Comparison",
        _table(cells.comparison(report)),
        _HOW_TO_READ,
        f"![Normalised return against the size of the actor]({picture})",
        "## Rounds",
        _rounds(report),
        "## What was pruned, and why",
        _pruned(report),
        "## What was kept whole, and why",
        _list(f"{_code(name)}: {why}" for name, why in report.kept_whole.items()),
        "## Notes",
        _list(report.notes),
        *_repeat(report),
    )
    return "\n\n".join(parts) + "\n"


_HOW_TO_READ = (
    "Returns are normalised: 0 is the random policy, 1 the dense agent. The difference is taken episode by episode, on "
    "the same seeds for both agents, and passes when the lower end of its interval lies above minus the tolerance. "
    "Every return in this table comes from confirmation seeds, which took no part in choosing the agent."
)


def _rounds(report: Report) -> str:
    if not report.rounds:
        return "None."
    return _table(cells.rounds(report)) + (
        "\n\nThe columns between widths and best hold the normalised return after each stage, on the selection seeds. "
        "The best stage of a round is kept."
    )


def _pruned(report: Report) -> str:
    grid = cells.kept(report)
    return _table(grid) if grid.rows else "Nothing."


def _repeat(report: Report) -> tuple[str, ...]:
    return (
        "## How to repeat it",
        f"```\n{report.command}\n```",
        _list(
            (
                f"agent: {_code(report.agent)}",
                f"environment: {_code(_environment(report))}",
                f"took: {cells.number(report.seconds, 1)} seconds, {report.env_steps:,} environment steps",
                f"seeds: {_seeds(report)}",
            )
        ),
        "Settings:",
        _mapping(report.settings, ("setting", "value")),
        "Versions:",
        _mapping(report.versions, ("package", "version")),
    )


def _environment(report: Report) -> str:
    env = report.env
    wrappers = "".join(f" in {path} {dict(kwargs) or ''}".rstrip() for path, kwargs in env.wrappers)
    return f"{env.id} {dict(env.kwargs) or ''}".rstrip() + wrappers


def _seeds(report: Report) -> str:
    chosen = dict.fromkeys(stage.verdict.seeds for each in report.rounds for stage in each.stages)
    selection = ", ".join(_span(*seeds) for seeds in chosen) or "none"
    return f"confirmation {_span(*report.pruned.verdict.seeds)}; selection {selection}"


def _span(first: int, count: int) -> str:
    return f"{first} to {first + count - 1}"


def _mapping(values: Mapping[str, Any], header: tuple[str, str]) -> str:
    if not values:
        return "None."
    return _table(cells.Grid(header, tuple((name, _code(_text(value))) for name, value in values.items()), labels=2))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _table(grid: cells.Grid) -> str:
    rule = ("---" if i < grid.labels else "---:" for i in range(len(grid.header)))
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in (grid.header, rule, *grid.rows))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items) or "None."


def _code(text: str) -> str:
    # A code span ends at the first backtick, so one that is part of the text needs a longer fence.
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else "(empty)"
