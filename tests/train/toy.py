"""A task that is learnt in a second, and small models of every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm


class Follow(gym.Env[np.ndarray, Any]):
    """Name the sign of a number, or the number itself: each step is worth 1 when right, and episodes last 10."""

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.continuous = continuous
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.draw(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        wanted = float(self.state[0])
        reward = 1.0 - abs(wanted - float(action[0])) if self.continuous else float((wanted > 0) == bool(action))
        self.steps += 1
        return self.draw(), reward, False, self.steps == 10, {}

    def draw(self) -> np.ndarray:
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.state


class Pictures(gym.Env[np.ndarray, int]):
    """Random pictures, in episodes of 20 steps."""

    observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, continuous: bool = False) -> None:
        self.steps = 0
        if continuous:
            self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps == 20, {}


ARCH = {"net_arch": [24, 24]}
ON = {"n_steps": 64, "seed": 0, "gamma": 0.1, "learning_rate": 3e-3}
OFF = {"learning_starts": 64, "buffer_size": 4000, "batch_size": 32, "train_freq": 1}
OFF |= {"seed": 0, "gamma": 0.1, "learning_rate": 3e-3}
Q = {"target_update_interval": 20, "exploration_fraction": 0.3, **OFF}
MODELS: dict[str, Callable[[], BaseAlgorithm]] = {
    "ppo": lambda: PPO("MlpPolicy", Follow(), policy_kwargs={**ARCH}, batch_size=32, **ON),
    "a2c": lambda: A2C("MlpPolicy", Follow(), policy_kwargs={**ARCH}, **{**ON, "n_steps": 16}),
    "dqn": lambda: DQN("MlpPolicy", Follow(), policy_kwargs={**ARCH}, **Q),
    "qrdqn": lambda: QRDQN("MlpPolicy", Follow(), policy_kwargs={**ARCH, "n_quantiles": 8}, **Q),
    "sac": lambda: SAC("MlpPolicy", Follow(True), policy_kwargs={**ARCH}, **OFF),
    "td3": lambda: TD3("MlpPolicy", Follow(True), policy_kwargs={**ARCH}, **OFF),
    "ddpg": lambda: DDPG("MlpPolicy", Follow(True), policy_kwargs={**ARCH}, **OFF),
    "tqc": lambda: TQC("MlpPolicy", Follow(True), policy_kwargs={**ARCH, "n_quantiles": 8}, **OFF),
}
OFF_POLICY = [name for name in MODELS if name not in ("ppo", "a2c")]


def score(model: BaseAlgorithm, episodes: int = 20) -> float:
    """Return the mean reward of a step; a random policy has 0.5 (signs) or about 0.33 (numbers)."""
    env = Follow(isinstance(model.action_space, spaces.Box))
    total, steps = 0.0, 0
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        over = False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, _, over, _ = env.step(action)
            total, steps = total + reward, steps + 1
    return total / steps
