"""Adaptive shrinking: narrower while the return holds, wider when it falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from prunerl.errors import BudgetError, LearnError
from prunerl.train.shrink_adaptive import AdaptiveShrink


class Scripted(gym.Env[Any, Any]):
    """Episodes of four steps; what an episode returns is a function of the steps so far."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, returned: Callable[[int], float]) -> None:
        self.returned, self.steps = returned, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps % 4 == 0
        return self.observation_space.sample(), self.returned(self.steps) if over else 0.0, over, False, {}


def trained(returned: Callable[[int], float], **options: Any) -> tuple[Any, AdaptiveShrink]:
    callback = AdaptiveShrink(0.1, 0.1, episodes=5, **options)
    policy = {"net_arch": [32, 16]}
    model = PPO("MlpPolicy", Scripted(returned), n_steps=20, batch_size=20, n_epochs=1, policy_kwargs=policy, seed=0)
    model.learn(600, callback=callback)
    return model, callback


def test_it_shrinks_to_the_least_while_the_return_holds() -> None:
    model, callback = trained(lambda step: -500.0, least=4)
    assert [change.widths["pi"] for change in callback.changes] == [(16, 8), (8, 4), (4, 4)]
    assert model.policy_kwargs["net_arch"] == {"pi": [4, 4], "vf": [4, 4]}


def test_it_grows_back_when_the_return_falls_and_does_not_go_as_far_again() -> None:
    # Rising at first, then a fall by half of the range after the third change, then as good as before.
    def returned(step: int) -> float:
        return {0: -500.0, 1: -200.0, 2: -100.0, 3: -300.0}.get((step - 1) // 60, -100.0)

    _, callback = trained(returned, least=2)
    widths = [change.widths["pi"] for change in callback.changes]
    assert widths[:4] == [(16, 8), (8, 4), (4, 2), (8, 4)]
    # Steps are half as large from then on, √½ rounded up, and (4, 2) has failed.
    assert widths[4:] == [(6, 3), (5, 3)]


def test_a_small_fall_is_tolerated() -> None:
    def returned(step: int) -> float:
        return {0: 0.0, 1: 100.0}.get(step // 120, 95.0)

    _, callback = trained(returned, least=4)
    assert [change.widths["pi"] for change in callback.changes] == [(16, 8), (8, 4), (4, 4)]


@pytest.mark.parametrize(
    "options",
    [{"start": 1.0}, {"every": 0.0}, {"step": 1.0}, {"tolerance": 0.0}, {"least": 0}, {"episodes": 0}],
)
def test_amounts_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=next(iter(options))):
        AdaptiveShrink(**options)


def test_a_network_that_is_small_already_and_an_env_without_returns_are_refused() -> None:
    with pytest.raises(BudgetError, match="nothing to shrink"):
        trained(lambda step: 0.0, least=32)
    bare = DummyVecEnv([lambda: Scripted(lambda step: 0.0)])
    with pytest.raises(LearnError, match="VecMonitor"):
        PPO("MlpPolicy", bare, n_steps=20, batch_size=20).learn(40, callback=AdaptiveShrink())


def test_a_second_learn_goes_on_and_another_model_is_refused() -> None:
    callback = AdaptiveShrink(0.1, 0.3, episodes=5, least=2)  # steps 60 and 180 of the first call
    policy = {"net_arch": [32, 16]}
    model = PPO("MlpPolicy", Scripted(lambda step: -500.0), n_steps=20, batch_size=20, n_epochs=1, policy_kwargs=policy)
    model.learn(600, callback=callback)
    assert [change.step for change in callback.changes] == [180, 360, 540]
    model.learn(400, callback=callback, reset_num_timesteps=False)
    assert [change.step for change in callback.changes] == [180, 360, 540, 720]
    assert callback.changes[-1].widths["pi"] == (2, 2)
    with pytest.raises(LearnError, match="another model"):
        PPO("MlpPolicy", Scripted(lambda step: 0.0), n_steps=20, batch_size=20).learn(40, callback=callback)
