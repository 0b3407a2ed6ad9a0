"""``prunerl bench``: time one decision in every runtime that is installed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunerl.commands.source import Source, load
from prunerl.commands.table import aligned

if TYPE_CHECKING:
    from prunerl.deploy.bench import Bench


@dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """What ``prunerl bench`` takes."""

    blocks: int = 300
    """Blocks of decisions to time, for each runtime."""
    seed: int = 0
    """Of the episode whose states are decided about."""


def run(args: Arguments) -> None:
    """Print a table of medians and quantiles, and what could not be timed."""
    from prunerl.deploy.bench import bench

    agent = load(args)
    result = bench(agent, blocks=args.blocks, seed=args.seed)
    print(
        f"{agent.algorithm} on {agent.env.id}: one decision, from NumPy array to NumPy array, on one thread; "
        f"{result.observations} visited states, {result.blocks} interleaved blocks each"
    )
    print(table(result))


def table(result: Bench) -> str:
    """Return the table as text; times are compared with those of the first runtime."""
    from prunerl.report.cells import number

    base = result.timings[0].latency
    gap = "other choices" if result.discrete else "largest difference"
    rows = []
    for each in result.timings:
        if each.latency is None:
            rows.append((each.name, "–", "", "", each.why))
            continue
        low, median, high = each.latency
        times = "" if base is None else f"{number(base[1] / median, 1 if base[1] > median else 2)}"
        differs = f"{each.differs:.0%}".replace("%", " %") if result.discrete else f"{each.differs:.1e}"
        rows.append((each.name, number(median, 2), f"{number(low, 2)}–{number(high, 2)}", times, differs))
    first = result.timings[0].name
    return aligned(("runtime", "median (µs)", "5 %–95 % (µs)", f"times as fast as {first}", gap), rows)
