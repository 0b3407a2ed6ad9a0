"""``prunerl report``: print the report of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from prunerl.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What ``prunerl report`` takes."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of the run, or its report.json."""
    debug: bool = False
    """Show tracebacks of errors."""


def run(args: Arguments) -> None:
    """Print the report of a finished run."""
    from prunerl.report import from_json, render

    path = Path(args.folder)
    path = path if path.is_file() else path / "report.json"
    if not path.is_file():
        raise RunError(f"No report at {path}. A run writes it at its end; the command that began it goes on with it.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}). Give the report.json of a run.") from error
    print(render(from_json(text)))
