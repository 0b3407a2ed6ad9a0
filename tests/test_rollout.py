"""Episodes depend on their seeds and the policy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import EnvironmentFailure
from prunerl.rollout import LANES, rollout, rollout_each
from prunerl.types import EnvSpec


class Breaking(gym.Env[Any, Any]):
    """Raises at step 7, or gives a reward that is not a number."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (4,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reward: float | None = None) -> None:
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 7 and self.reward is None:
            raise ZeroDivisionError("the ground is gone")
        return np.zeros(4, np.float32), self.reward or 0.0, self.steps == 9, False, {}


@pytest.fixture(scope="module", autouse=True)
def breaking() -> Iterator[None]:
    gym.register("Breaking-v0", entry_point=Breaking)
    yield
    del gym.registry["Breaking-v0"]


def played_plainly(agent: SB3Agent, seeds: Sequence[int]) -> tuple[list[float], list[np.ndarray]]:
    """Play as anyone would: one environment, one observation at a time."""
    returns, seen = [], []
    for seed in seeds:
        env = gym.make(agent.env.id, **agent.env.kwargs)
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            seen.append(observation)
            action = heads.act(agent.policy, observation[None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
        env.close()
    return returns, seen


@pytest.mark.parametrize("name", ["dqn/Acrobot-v1", "dqn/MountainCar-v0"])
def test_discrete_episodes_are_those_of_a_plain_loop(load_agent: Callable[[str], SB3Agent], name: str) -> None:
    agent, seeds = load_agent(name), [11, 5, 7]
    returns, seen = played_plainly(agent, seeds)
    played = rollout(agent.policy, agent.env, seeds, record=True, workers=1)
    assert list(played.returns) == returns
    assert np.array_equal(played.observations, np.stack(seen))
    assert played.steps == len(seen)


def test_continuous_episodes_are_those_of_a_plain_loop_up_to_rounding(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/Pendulum-v1")
    played = rollout(agent.policy, agent.env, [3, 4], workers=1)
    assert list(played.returns) == pytest.approx(played_plainly(agent, [3, 4])[0], rel=1e-2, abs=0.5)


@pytest.mark.parametrize("name", ["ppo/Pendulum-v1", "dqn/Acrobot-v1"])
def test_an_episode_does_not_depend_on_its_company(load_agent: Callable[[str], SB3Agent], name: str) -> None:
    agent = load_agent(name)
    seeds = list(range(100, 100 + LANES + 3))
    together = rollout(agent.policy, agent.env, seeds, workers=1)
    assert rollout(agent.policy, agent.env, seeds[::-1], workers=1).returns == together.returns[::-1]
    assert rollout(agent.policy, agent.env, seeds[4:5], workers=1).returns == together.returns[4:5]


def test_the_number_of_workers_changes_nothing(load_agent: Callable[[str], SB3Agent]) -> None:
    agent, seeds = load_agent("ppo/Pendulum-v1"), range(12)
    alone, *others = (rollout(agent.policy, agent.env, seeds, record=True, workers=n) for n in (1, 2, 3))
    for other in others:
        assert other.returns == alone.returns
        assert other.steps == alone.steps == 2400
        assert np.array_equal(other.observations, alone.observations)
    assert rollout(agent.policy, agent.env, seeds[:8], workers=2).observations.size == 0


def test_calls_repeat_each_other(load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/Pendulum-v1")
    first, second = (rollout(agent.policy, agent.env, range(5), record=True, workers=1) for _ in range(2))
    assert first.returns == second.returns
    assert np.array_equal(first.observations, second.observations)
    assert len(set(first.returns)) == 5


def test_random_episodes_follow_from_their_seeds() -> None:
    env = EnvSpec("CartPole-v1")
    alone = rollout(None, env, range(20), workers=1)
    assert rollout(None, env, range(20), workers=2).returns == alone.returns
    assert rollout(None, env, range(19, -1, -1), workers=1).returns == alone.returns[::-1]
    assert 10 < np.mean(alone.returns) < 40  # uniform over both actions


def test_several_policies_play_as_they_would_alone(load_agent: Callable[[str], SB3Agent]) -> None:
    first, second = load_agent("dqn/CartPole-v1"), load_agent("ppo/CartPole-v1")
    both = rollout_each([first.policy, second.policy], first.env, [1, 2], record=True)
    for played, agent in zip(both, (first, second), strict=True):
        alone = rollout(agent.policy, agent.env, [1, 2], record=True, workers=1)
        assert played.returns == alone.returns
        assert np.array_equal(played.observations, alone.observations)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_fails_in_an_episode_is_named(workers: int) -> None:
    with pytest.raises(EnvironmentFailure, match=r"'Breaking-v0' failed .*: ZeroDivisionError: the ground"):
        rollout(None, EnvSpec("Breaking-v0"), range(8), workers=workers)
    # What failed is made anew: another environment plays on as if nothing had happened.
    assert len(rollout(None, EnvSpec("CartPole-v1"), range(4), workers=workers).returns) == 4


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(reward: float) -> None:
    with pytest.raises(EnvironmentFailure, match=r"'Breaking-v0' gave a reward that is not finite \(seed 3\)"):
        rollout(None, EnvSpec("Breaking-v0", {"reward": reward}), [3, 4], workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_is_not_there_is_named(workers: int) -> None:
    with pytest.raises(EnvironmentFailure, match=r"Environment 'Nowhere-v0'.*cannot be made"):
        rollout(None, EnvSpec("Nowhere-v0"), range(8), workers=workers)


def test_wrappers_are_put_around_in_order() -> None:
    limits = tuple(("gymnasium.wrappers:TimeLimit", {"max_episode_steps": n}) for n in (3, 5))
    env = environments.make(EnvSpec("CartPole-v1", wrappers=limits))
    assert env._max_episode_steps == 5  # type: ignore[attr-defined]  the last one is outermost
    env.close()
    assert rollout(None, EnvSpec("CartPole-v1", wrappers=limits), [0], workers=1).steps == 3
