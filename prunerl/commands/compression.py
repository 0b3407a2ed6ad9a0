"""The options that compress an agent, for the commands that can, and the compression itself with its progress."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prunerl.commands.source import Source, existing

if TYPE_CHECKING:
    from prunerl.compressions.result import CompressResult
    from prunerl.types import Agent


@dataclass(frozen=True, kw_only=True)
class Options(Source):
    """What is stored how, and how far the return may fall by it."""

    quantize: Literal["int8", "int4"] | None = None
    """Round weights to integers; with int8 the inputs of hidden layers too, see --float-inputs."""
    share: int | None = None
    """Let the weights of each layer share 2 to the power of this many values, 2 to 8."""
    low_rank: float | Literal["auto"] | None = None
    """Share of the numbers to keep by factorising layers, or auto for as few as the return allows."""
    float_inputs: bool = False
    """Leave the inputs of hidden layers in float32 when weights are rounded to int8."""
    against: str | None = None
    """The agent to imitate and to be compared with, such as the one before pruning; by default AGENT itself."""
    tolerance: float = 0.05
    """Largest satisfactory loss of return; 1 is the gain over the random policy."""
    no_repair: bool = False
    """Do not distil where a compression costs return."""
    episodes: int | None = None
    """Episodes of selection and of confirmation; by default as many as the returns' spread needs."""
    seed: int = 0
    """Everything random follows from it."""


def asked(args: Options) -> bool:
    """Return whether the options ask for a compression."""
    return not (args.quantize is None and args.share is None and args.low_rank is None)


def compressed(args: Options, agent: Agent, *, quantize: Literal["int8", "int4"] | None = None) -> CompressResult:
    """Compress an agent, and show each step and the table.

    Args:
        args: What the user asked for.
        agent: What is compressed.
        quantize: Numbers that are needed where the user named none.
    """
    from prunerl.compress import compress
    from prunerl.load import load as load_agent

    reference = None
    if args.against is not None:
        reference = load_agent(existing(args.against), env=agent.env, trust=args.trust)
    result = compress(
        agent,
        low_rank=args.low_rank,
        share=args.share,
        quantize=args.quantize or quantize,
        inputs=False if args.float_inputs else None,
        reference=reference,
        tolerance=args.tolerance,
        repair=not args.no_repair,
        episodes=args.episodes,
        seed=args.seed,
        observer=lambda line: print(line, file=sys.stderr),
    )
    print(result)
    return result
