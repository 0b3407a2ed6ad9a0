"""The command line: which commands there are; each reads its own arguments and does its work in ``commands/``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prunerl.errors import LearnWarning, PruneError

FAILED, INTERRUPTED = 2, 130

COMMANDS = {
    "prune": "Make the smallest agent that is not worse, and prove it on fresh seeds.",
    "evaluate": "Play episodes with an agent, and judge it against another one on the same seeds.",
    "inspect": "Show an agent's networks, layers and groups, what they cost, and what is not pruned.",
    "report": "Print the report of a finished run again.",
    "compress": "Store an agent in fewer bytes, as far as it stays not worse, and prove it on fresh seeds.",
    "export": "Write the policy as a file that needs none of what trained it, and check the file.",
    "bench": "Time one decision in every runtime that is installed here.",
    "train": "Train a sparse agent from the start, with checkpoints that a killed run goes on from.",
    "targets": "List the devices that a policy can be deployed on, or show one.",
}
"""Name of a file in ``commands/`` → what it does. Only the file of the command that is given is imported."""

DESCRIPTION = "Make deep reinforcement-learning agents small and fast, with proof that they still work."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error, 130 after an interruption.

    Args:
        arguments: What follows the program's name; by default those of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    name: str = _parser().parse_args(given[:1]).command
    import tyro

    command = importlib.import_module(f"prunerl.commands.{name}")
    args = tyro.cli(
        command.Arguments,
        prog=f"prunerl {name}",
        description=COMMANDS[name],
        args=given[1:],
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        with _fewer_warnings(args.debug):
            command.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        more = " The same command goes on from the last finished round." if name == "prune" else ""
        print(f"prunerl: interrupted.{more}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PruneError as error:
        if args.debug:
            traceback.print_exc()
        print(f"prunerl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return what reads the command's name alone: Tyro reads the rest, but takes as long to import as all of this."""
    parser = argparse.ArgumentParser(
        prog="prunerl", description=DESCRIPTION, epilog="prunerl COMMAND --help shows the options of a command."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


@contextmanager
def _fewer_warnings(debug: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not debug:
            for category in (UserWarning, DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.simplefilter("always", LearnWarning)
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                if issubclass(category, LearnWarning):
                    print(f"prunerl: warning: {' '.join(str(message).split())}", file=sys.stderr)
                else:
                    others(message, category, *where, **more)

            warnings.showwarning = show
        yield
