"""Show and store a report: as JSON, on the terminal, as Markdown, as a picture and in TensorBoard."""

from __future__ import annotations

from prunerl.report.console import render as render
from prunerl.report.console import rounds_table as rounds_table
from prunerl.report.console import table as table
from prunerl.report.events import write_events as write_events
from prunerl.report.figure import save_figure as save_figure
from prunerl.report.markdown import markdown as markdown
from prunerl.report.reading import caveats as caveats
from prunerl.report.reading import sentence as sentence
from prunerl.report.schema import from_json as from_json
from prunerl.report.schema import to_json as to_json

__all__ = [
    "caveats",
    "from_json",
    "markdown",
    "render",
    "rounds_table",
    "save_figure",
    "sentence",
    "table",
    "to_json",
    "write_events",
]
