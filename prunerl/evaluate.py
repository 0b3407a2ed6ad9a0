"""Judge agents: the same seeds for both, normalised returns, an interval, a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunerl import stats
from prunerl.errors import SpaceError
from prunerl.rollout import Rollout, rollout
from prunerl.types import Agent, EnvSpec, Policy, Verdict

SEED_SPACING = 10_000_000
PURPOSES = {"visit": 0, "select": 1_000_000, "confirm": 2_000_000, "random": 3_000_000}
"""First seed of each purpose: visiting states, choosing, and confirming never share one."""

GLANCE, GLANCED = 8, 5.0
"""After so many episodes a policy that plays nothing like the dense one is dropped: one that would still hardly pass
were its mean so many standard errors better."""
FIRST_LOOK = 25
EARLY = 0.5
"""Before all episodes are played, only what would pass at this share of the tolerance is taken to pass."""
RANDOM_EPISODES = 50
FEWEST, MOST = 100, 400


@dataclass(frozen=True)
class Evaluation:
    """Returns of one agent.

    Attributes:
        returns: Of each episode.
        mean, iqm: Mean and interquartile mean.
        interval: 95 % bootstrap interval of the mean.
        steps: Environment steps taken.
    """

    returns: tuple[float, ...]
    mean: float
    iqm: float
    interval: tuple[float, float]
    steps: int


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What pruned agents are measured against while choosing.

    Attributes:
        policy: The dense agent.
        env: Where.
        random: Mean return of the random policy.
        dense: Returns of the dense agent on the selection seeds.
        first_seed: First selection seed.
        tolerance: Largest satisfactory loss, normalised.
        steps, seconds: Environment steps and time that the yardstick cost.
    """

    policy: Policy
    env: EnvSpec
    random: float
    dense: tuple[float, ...]
    first_seed: int
    tolerance: float
    steps: int
    seconds: float = 0.0


def seeds(seed: int, purpose: str, count: int, *, offset: int = 0) -> range:
    """Return ``count`` episode seeds for one purpose of the run with master seed ``seed``."""
    first = seed * SEED_SPACING + PURPOSES[purpose] + offset
    return range(first, first + count)


def evaluate(agent: Agent, *, episodes: int = 100, seed: int = 0) -> Evaluation:
    """Play ``episodes`` episodes with deterministic actions.

    Raises:
        EnvironmentFailure: The environment failed.
    """
    played = rollout(agent.policy, agent.env, seeds(seed, "confirm", episodes))
    return summary(played)


def compare(agent: Agent, dense: Agent, *, tolerance: float = 0.05, episodes: int = 100, seed: int = 0) -> Verdict:
    """Judge whether ``agent`` is not worse than ``dense``, on the same seeds.

    Raises:
        SpaceError: They act in different environments.
        BudgetError: The tolerance is not positive, or ``dense`` is not better than random.
    """
    stats.check_tolerance(tolerance)
    if agent.env != dense.env:
        raise SpaceError(f"The agents act in {agent.env} and {dense.env}. Compare them in one environment.")
    chosen = seeds(seed, "confirm", episodes)
    random = rollout(None, dense.env, seeds(seed, "random", RANDOM_EPISODES))
    first, second = (rollout(a.policy, dense.env, chosen) for a in (dense, agent))
    return stats.verdict(
        first.returns, second.returns, float(np.mean(random.returns)), tolerance=tolerance, first_seed=chosen[0]
    )


def summary(played: Rollout) -> Evaluation:
    """Return mean, interquartile mean and interval of the episodes played."""
    returns = played.returns
    return Evaluation(returns, float(np.mean(returns)), stats.iqm(returns), stats.interval(returns), played.steps)


def yardstick(policy: Policy, env: EnvSpec, *, tolerance: float, seed: int, episodes: int | None = None) -> Yardstick:
    """Play the dense and the random policy on their seeds.

    The number of episodes grows with the spread of the dense agent's returns, until half the interval of its mean
    is about half the tolerance, within 100 to 400.

    Raises:
        BudgetError: The dense agent is not better than random.
    """
    random = rollout(None, env, seeds(seed, "random", RANDOM_EPISODES))
    chance = float(np.mean(random.returns))
    first = rollout(policy, env, seeds(seed, "select", episodes or FEWEST))
    stats.gain(first.returns, chance)  # refuses an agent that is no better, before more is played
    needed = episodes or episodes_needed(first.returns, chance, tolerance)
    others = seeds(seed, "select", needed)[len(first.returns) :]
    more = rollout(policy, env, others) if others else None
    dense = first.returns + (more.returns if more else ())
    steps = random.steps + first.steps + (more.steps if more else 0)
    return Yardstick(policy, env, chance, dense, seeds(seed, "select", 1)[0], tolerance, steps)


def episodes_needed(returns: Sequence[float], random: float, tolerance: float) -> int:
    """Return how many episodes bring half the interval of the normalised mean to half the tolerance."""
    spread = float(np.std(returns)) / stats.gain(returns, random)
    needed = (1.96 * spread / (tolerance / 2)) ** 2
    doublings = math.ceil(math.log2(max(needed / FEWEST, 1.0)))
    return int(min(FEWEST * 2**doublings, MOST))


def judge(yard: Yardstick, policy: Policy) -> tuple[Verdict, int]:
    """Judge a pruned policy on the selection seeds, with more episodes as long as it is neither good nor hopeless.

    Many candidates are judged, so one that passes a short look by luck is common: it must pass it clearly.

    Returns:
        The verdict on the episodes played, and the environment steps taken.
    """
    chosen = range(yard.first_seed, yard.first_seed + len(yard.dense))
    returns: tuple[float, ...] = ()
    steps, look = 0, min(FIRST_LOOK, len(chosen))
    # So few episodes of the dense agent may be no better than chance, and then say nothing.
    wanted = min(GLANCE, look) if np.mean(yard.dense[:GLANCE]) > yard.random else look
    while True:
        played = rollout(policy, yard.env, chosen[len(returns) : wanted])
        returns, steps = returns + played.returns, steps + played.steps
        if wanted < look and not _hopeless(yard, returns, errors=GLANCED):
            wanted = look
            continue
        verdict = stats.verdict(
            yard.dense[:wanted], returns, yard.random, tolerance=yard.tolerance, first_seed=yard.first_seed
        )
        convincing = verdict.interval[0] > -EARLY * yard.tolerance
        if convincing or wanted == len(chosen) or wanted < look or _hopeless(yard, returns):
            return verdict, steps
        wanted = min(2 * wanted, len(chosen))


def _hopeless(yard: Yardstick, returns: Sequence[float], *, errors: float = 1.0) -> bool:
    """Tell whether more episodes would hardly bring a pass, even if the mean turned out some standard errors better."""
    dense = yard.dense[: len(returns)]
    gaps = (np.asarray(returns) - np.asarray(dense)) / stats.gain(dense, yard.random)
    spread = float(gaps.std(ddof=1))
    best = float(gaps.mean()) + errors * spread / math.sqrt(len(gaps))
    return best - 1.96 * spread / math.sqrt(len(yard.dense)) < -yard.tolerance
