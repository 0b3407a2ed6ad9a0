"""``prunerl evaluate``: print returns, their mean and interval, and the verdict against another agent."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from prunerl.commands.source import Source, existing, load
from prunerl.commands.table import aligned
from prunerl.errors import BudgetError

if TYPE_CHECKING:
    from prunerl.types import Verdict


@dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """What ``prunerl evaluate`` takes."""

    against: str | None = None
    """The dense agent: zip or folder of a run. The verdict says whether AGENT is not worse."""
    tolerance: float = 0.05
    """Largest satisfactory loss of return; 1 is the dense agent's gain over the random policy."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = 0
    """Seeds of the episodes follow from it."""


def run(args: Arguments) -> None:
    """Print returns, their mean and interval, and the verdict against another agent."""
    from prunerl import stats
    from prunerl.evaluate import compare, seeds
    from prunerl.evaluate import evaluate as play
    from prunerl.load import load as load_agent
    from prunerl.report.cells import interval, number

    _at_least("episodes", args.episodes, 1)
    _at_least("seed", args.seed, 0)
    stats.check_tolerance(args.tolerance)
    agent = load(args)
    verdict = None
    if args.against is None:
        returns = play(agent, episodes=args.episodes, seed=args.seed).returns
    else:
        dense = load_agent(existing(args.against), env=agent.env, trust=args.trust)
        verdict = compare(agent, dense, tolerance=args.tolerance, episodes=args.episodes, seed=args.seed)
        returns = verdict.pruned
    first = seeds(args.seed, "confirm", args.episodes)[0]
    shown = " ".join(f"{value:.6g}" for value in returns)
    print(f"{agent.algorithm} on {agent.env.id}, seeds {first} to {first + args.episodes - 1}")
    print(f"returns: {shown}")
    lines = [
        ("mean", number(fmean(returns))),
        ("interquartile mean", number(stats.iqm(returns))),
        ("95 % interval of the mean", interval(*stats.interval(returns))),
        *_against(verdict),
    ]
    print(aligned(("", ""), lines))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BudgetError(f"{name} must be at least {least}, got {value}.")


def _against(verdict: Verdict | None) -> list[tuple[str, str]]:
    from prunerl.report.cells import interval, number, passes, percent

    if verdict is None:
        return []
    return [
        ("the other's mean", number(fmean(verdict.dense))),
        ("the random policy's mean", number(verdict.random)),
        ("normalised return", number(verdict.normalized)),
        (f"{percent(verdict.confidence)} interval of the difference", interval(*verdict.interval)),
        (f"verdict at tolerance {verdict.tolerance:g}", passes(verdict.satisfied)),
    ]
