"""``prunerl targets``: list the devices that are known, or show one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from prunerl.commands.table import aligned

UNITS = {
    "flash": "bytes",
    "ram": "bytes",
    "instructions": "a decision",
    "latency": "µs a decision",
    "clock": "MHz",
    "cycles": "an instruction",
    "lanes": "numbers of 32 bits",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What ``prunerl targets`` takes."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Name of a device, or the path of its TOML file; by default all that are known are listed."""
    debug: bool = False
    """Show tracebacks of errors."""


def run(args: Arguments) -> None:
    """List the devices, or print one with where its numbers are from."""
    from prunerl.deploy.targets import NUMBERS, folders, load_target, names

    if args.name is None:
        known = [load_target(path) for path in names().values()]
        print(aligned(("target", "device"), [(target.name, target.summary) for target in known]))
        print(f"Looked for in: {', '.join(str(folder) for folder in folders())}.")
        return
    target = load_target(args.name)
    print(f"{target.name}: {target.summary}")
    print(f"numbers: {', '.join(target.formats)}; files: {', '.join(target.exports)}; FPU: {_yes(target.fpu)}")
    keys = [key for key in NUMBERS if key != "lanes" or target.lanes > 1]
    rows = [(key, getattr(target, key), target.sources.get(key, "")) for key in keys]
    shown = [(key, f"{value:,.10g} {UNITS[key]}", source) for key, value, source in rows if value is not None]
    print(aligned(("number", "", "source"), shown))
    for note in target.notes:
        print(f"Note: {note}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
