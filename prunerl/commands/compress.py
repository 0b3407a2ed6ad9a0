"""``prunerl compress``: store an agent in fewer bytes, as far as it stays not worse."""

from __future__ import annotations

from dataclasses import dataclass

from prunerl.commands.compression import Options, compressed
from prunerl.commands.source import load


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What ``prunerl compress`` takes."""

    to: str | None = None
    """File to write the compressed policy to, as prunerl export does; by default only the table is printed."""


def run(args: Arguments) -> None:
    """Compress, print the table, and write the file where one is asked for."""
    result = compressed(args, load(args))
    if args.to is not None:
        from prunerl.deploy.export import export

        print(export(result.agent, args.to, tolerance=args.tolerance, seed=args.seed))
