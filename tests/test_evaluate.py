"""Judging pairs agents by seeds, keeps the purposes of seeds apart and plays no more than it must."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

import prunerl
from prunerl import stats
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import BudgetError, SpaceError
from prunerl.evaluate import (
    FEWEST,
    FIRST_LOOK,
    GLANCE,
    MOST,
    PURPOSES,
    Yardstick,
    episodes_needed,
    judge,
    seeds,
    yardstick,
)
from prunerl.rollout import Rollout, rollout
from prunerl.types import EnvSpec


def hopeless(agent: SB3Agent) -> SB3Agent:
    """Return the agent with all its weights at zero."""
    zeros = {n: torch.zeros_like(t) for n, t in agent.state.tensors.items()}
    return agent.with_state(replace(agent.state, tensors=zeros))


def test_seeds_of_different_purposes_and_runs_are_disjoint() -> None:
    most = 100 * MOST  # more than any run plays for one purpose
    used = [seeds(run, purpose, most) for run in (0, 1, 2) for purpose in PURPOSES]
    for first, second in combinations(used, 2):
        assert first[-1] < second[0] or second[-1] < first[0]
    assert seeds(3, "confirm", 5, offset=10) == seeds(3, "confirm", 15)[10:]
    assert len(seeds(0, "select", 7)) == 7


def test_evaluation_is_a_rollout_on_the_confirmation_seeds(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/Pendulum-v1")
    found = prunerl.evaluate(agent, episodes=10, seed=2)
    played = rollout(agent.policy, agent.env, seeds(2, "confirm", 10))
    assert found.returns == played.returns
    assert found.mean == np.mean(played.returns)
    assert found.iqm == stats.iqm(played.returns)
    assert found.interval[0] < found.mean < found.interval[1]
    assert prunerl.evaluate(agent, episodes=10, seed=3).returns != found.returns


@pytest.mark.parametrize(
    ("name", "published"), [("ppo/CartPole-v1", 500.0), ("dqn/Acrobot-v1", -74.0), ("ppo/Pendulum-v1", -173.0)]
)
def test_real_agents_reach_their_published_returns(
    load_agent: Callable[[str], SB3Agent], name: str, published: float
) -> None:
    found = prunerl.evaluate(load_agent(name), episodes=20)
    assert found.mean == pytest.approx(published, abs=max(1.0, 4 * float(np.std(found.returns)) / np.sqrt(20)) + 10)


def test_an_agent_is_not_worse_than_itself(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("dqn/CartPole-v1")
    found = prunerl.compare(agent, agent, tolerance=1e-9, episodes=8)
    assert found.satisfied
    assert found.interval == (0.0, 0.0)
    assert found.normalized == 1.0
    assert found.dense == found.pruned


def test_a_ruined_agent_is_worse(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    found = prunerl.compare(hopeless(agent), agent, tolerance=0.5, episodes=8)
    assert not found.satisfied
    assert found.normalized < 0.1


def test_comparisons_that_say_nothing_are_refused(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    elsewhere = replace(agent, env=EnvSpec("CartPole-v0"))
    with pytest.raises(SpaceError, match=r"act in .*CartPole-v0.*CartPole-v1.*Compare them in one"):
        prunerl.compare(elsewhere, agent)
    with pytest.raises(BudgetError, match="tolerance must be above 0"):
        prunerl.compare(agent, agent, tolerance=0.0)
    with pytest.raises(BudgetError, match="is not above the random policy's"):
        prunerl.compare(agent, hopeless(agent), episodes=4)


def test_more_episodes_are_needed_for_a_wider_spread() -> None:
    assert episodes_needed([100.0] * 10, 0.0, 0.05) == FEWEST
    assert episodes_needed([0.0, 200.0] * 10, 0.0, 0.05) == MOST
    # A spread of 0.2 needs (1.96 · 0.2 / 0.025)² = 246 episodes; doubling 50 gives 400.
    assert episodes_needed([80.0, 120.0] * 10, 0.0, 0.05) == 400
    assert episodes_needed([80.0, 120.0] * 10, 0.0, 0.1) == 100


def test_the_yardstick_measures_on_the_selection_seeds(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    yard = yardstick(agent.policy, agent.env, tolerance=0.05, seed=1, episodes=12)
    assert yard.dense == rollout(agent.policy, agent.env, seeds(1, "select", 12)).returns
    assert yard.first_seed == seeds(1, "select", 1)[0]
    assert 10 < yard.random < 40
    assert yard.steps > 12 * 500
    with pytest.raises(BudgetError, match="is not above the random policy's"):
        yardstick(hopeless(agent).policy, agent.env, tolerance=0.05, seed=1, episodes=12)


def test_judging_stops_early_for_the_good_and_the_hopeless(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    yard = yardstick(agent.policy, agent.env, tolerance=0.05, seed=0, episodes=2 * FIRST_LOOK + 6)
    good, steps = judge(yard, agent.policy)
    assert good.satisfied
    assert good.seeds == (yard.first_seed, FIRST_LOOK)
    assert steps == sum(good.pruned)  # a step of CartPole is worth 1
    bad, steps = judge(yard, hopeless(agent).policy)
    assert not bad.satisfied
    assert len(bad.pruned) == GLANCE
    assert bad.dense == yard.dense[:GLANCE]
    assert steps == sum(bad.pruned)


@pytest.mark.parametrize(
    ("dense", "lost", "played"),
    [
        ([100.0] * 100, [60.0, 61.0], GLANCE),  # −0.6 is far beyond a tolerance of 0.05, and steadily so
        ([100.0] * 100, [0.0, 20.0], FIRST_LOOK),  # −0.1 ± 0.1: five errors better, it would pass; one better, not
        ([0.0] * GLANCE + [100.0] * 92, [60.0, 61.0], FIRST_LOOK),  # eight episodes of the dense agent say nothing
    ],
)
def test_a_glance_drops_only_what_is_far_off(
    dense: list[float], lost: list[float], played: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fake(policy: object, env: object, chosen: range) -> Rollout:
        seen.extend(chosen)
        returns = tuple(dense[i] - lost[i % 2] for i in chosen)
        return Rollout(returns, len(chosen), np.empty(0))

    monkeypatch.setattr(sys.modules[judge.__module__], "rollout", fake)  # ``prunerl.evaluate`` is also a function
    yard = Yardstick(None, None, 0.0, tuple(dense), 0, 0.05, 0)  # type: ignore[arg-type]
    found, steps = judge(yard, None)  # type: ignore[arg-type]
    assert not found.satisfied
    assert len(found.pruned) == steps == played
    assert seen == list(range(played))
