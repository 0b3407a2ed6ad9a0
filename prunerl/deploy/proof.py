"""Check that a deployed policy acts as the agent does: on observations that it visits, and by what it earns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunerl import stats
from prunerl.deploy.agreement import Agreement, agreement
from prunerl.deploy.play import Played, Player, agent_player, play
from prunerl.deploy.program import Program
from prunerl.evaluate import RANDOM_EPISODES, seeds
from prunerl.rollout import rollout
from prunerl.types import EnvSpec, Policy, Verdict

FEWEST, KEPT = 1000, 4096
"""Observations that are compared at least, and kept at most."""

DOUBLINGS = 4
"""How often the episodes are doubled where too few were played to tell."""


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        agreement: Of actions in the same states.
        returns, agent_returns: Mean return of the deployed policy and of the agent, on the same seeds.
        verdict: Of the two, or None where the agent is not better than a random one and so no loss can be measured.
    """

    agreement: Agreement
    returns: float
    agent_returns: float
    verdict: Verdict | None

    @property
    def holds(self) -> bool:
        """Whether the actions agree and the return is not worse."""
        return self.agreement.holds and (self.verdict is None or self.verdict.satisfied)

    def __str__(self) -> str:
        if self.verdict is None:
            judged = "no verdict, as the agent is not better than a random one"
        else:
            low, high = self.verdict.interval
            judged = f"normalised difference in [{low:.3g}, {high:.3g}] over {self.verdict.seeds[1]} seeds"
        return f"{self.agreement}\nreturn {self.returns:.4g}, the agent's {self.agent_returns:.4g}; {judged}"


def prove(
    player: Player, program: Program, policy: Policy, env: EnvSpec, *, episodes: int, seed: int, tolerance: float
) -> Proof:
    """Compare a deployed policy with the agent.

    Both play the same seeds. Where the interval of their paired difference is too wide to tell, more are played, up to
    sixteen times as many; actions that differ in the same state are never made up for.

    Args:
        player: The deployed policy.
        program: What it was made of.
        policy: The agent's, as it acts.
        env: Where.
        episodes: To begin with; more where those have fewer than ``FEWEST`` observations.
        seed: Master seed.
        tolerance: Largest normalised loss of return.

    Raises:
        EnvironmentFailure: The environment failed.
    """
    chosen = seeds(seed, "confirm", episodes)
    theirs = play(agent_player(policy), env, chosen, masked=policy.masked, keep=KEPT)
    while sum(theirs.lengths) < FEWEST:
        chosen, more = _doubled(chosen)
        theirs = _joined(theirs, play(agent_player(policy), env, more, masked=policy.masked, keep=KEPT))
    agreed = agreement(player, program, policy, theirs.visits)
    ours = play(player, env, chosen, masked=policy.masked)
    random = float(np.mean(rollout(None, env, seeds(seed, "random", RANDOM_EPISODES), workers=1).returns))
    judged = _judged(theirs, ours, random, chosen, tolerance)
    for _ in range(DOUBLINGS):
        told = judged is None or judged.satisfied or judged.interval[1] < -tolerance
        if told or not agreed.holds:
            break
        chosen, more = _doubled(chosen)
        theirs = _joined(theirs, play(agent_player(policy), env, more, masked=policy.masked))
        ours = _joined(ours, play(player, env, more, masked=policy.masked))
        judged = _judged(theirs, ours, random, chosen, tolerance)
    return Proof(agreed, float(np.mean(ours.returns)), float(np.mean(theirs.returns)), judged)


def _doubled(chosen: range) -> tuple[range, range]:
    return range(chosen.start, chosen.stop + len(chosen)), range(chosen.stop, chosen.stop + len(chosen))


def _joined(one: Played, other: Played) -> Played:
    return Played(one.returns + other.returns, one.lengths + other.lengths, (one.visits + other.visits)[:KEPT])


def _judged(theirs: Played, ours: Played, random: float, chosen: range, tolerance: float) -> Verdict | None:
    if not np.mean(theirs.returns) > random:
        return None
    return stats.verdict(theirs.returns, ours.returns, random, tolerance=tolerance, first_seed=chosen.start)
