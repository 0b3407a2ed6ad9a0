"""``prunerl export``: write a policy as a file that needs none of what trained it, and check the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunerl.commands.compression import Options, asked, compressed
from prunerl.commands.source import load
from prunerl.errors import TargetError

if TYPE_CHECKING:
    from prunerl.deploy.strategy import Strategy
    from prunerl.deploy.targets import Target


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What ``prunerl export`` takes."""

    to: str
    """File to write: .c, .h, .onnx, .pt2, .tflite or .safetensors."""
    target: str | None = None
    """Device that it is for, a name or a TOML file; prunerl targets lists them."""
    name: str = "policy"
    """Of the function in C and of the graph in ONNX."""
    opset: int | None = None
    """Version of ONNX's operators."""
    check_episodes: int = 20
    """Episodes in which the file's actions and return are compared with the agent's."""
    force: bool = False
    """Write over a file that is there."""


def run(args: Arguments) -> None:
    """Compress where that is asked for or the device needs it, write the file, and print how it was checked."""
    from prunerl.deploy.export import export
    from prunerl.deploy.targets import load_target

    target = None if args.target is None else load_target(args.target)
    if target is not None:
        _check_suffix(args.to, target)
    agent: Any = load(args)
    sparse, unroll = BY_MATRIX
    if asked(args):
        agent = compressed(args, agent).agent
    if target is not None:
        agent, (sparse, unroll) = _fitted(args, agent, target)
    written = export(
        agent,
        args.to,
        name=args.name,
        check_episodes=args.check_episodes,
        tolerance=args.tolerance,
        seed=args.seed,
        opset=args.opset,
        force=args.force,
        sparse=sparse,
        unroll=unroll,
    )
    print(written)


Stored = tuple[bool | float, bool | None]
"""How C stores matrices: ``sparse`` and ``unroll`` of :func:`prunerl.deploy.export.export`."""

BY_MATRIX: Stored = (True, None)
LAYOUTS: Mapping[str, Stored] = {"dense": (False, False), "csr": (0.0, False), "unrolled": (True, True)}


def _fitted(args: Arguments, agent: Any, target: Target) -> tuple[Any, Stored]:
    """Return the agent in numbers with which it fits a device, and its layout; say which that is and why."""
    strategy = _strategy(agent, target)
    print(strategy)
    if strategy.exact:
        return agent, LAYOUTS[strategy.chosen.layout.structure]
    numbers = strategy.chosen.layout.numbers
    if asked(args):
        raise TargetError(
            f"Compressed as asked, the policy fits {target.name} only in {numbers}. Give --quantize {numbers} alone."
        )
    result = compressed(args, agent, quantize="int4" if numbers == "int4" else "int8")
    after = _strategy(result.agent, target)
    if not after.exact:
        raise TargetError(
            f"{target.name} needs the policy in {numbers}, but rounded so it is not shown to be as good. "
            "Prune it further, allow a larger --tolerance, or choose a larger device."
        )
    return result.agent, LAYOUTS[after.chosen.layout.structure]


def _strategy(agent: Any, target: Target) -> Strategy:
    from prunerl.deploy.export import program_of
    from prunerl.deploy.strategy import choose

    return choose(program_of(agent), target)


def _check_suffix(path: str, target: Target) -> None:
    suffix = Path(path).suffix.removeprefix(".")
    if suffix not in target.exports:
        takes = ", ".join(f".{each}" for each in target.exports)
        raise TargetError(f"{target.name} takes {takes}, not {path!r}. Give --to a name that ends so.")
