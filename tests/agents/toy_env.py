"""Small environments and a features extractor that plain Stable-Baselines3 can import: nothing here needs prunerl."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

SPACES: dict[str, gym.Space[Any]] = {
    "box": spaces.Box(-2.0, 2.0, (3,)),
    "matrix": spaces.Box(-2.0, 2.0, (2, 3)),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "picture": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "colour": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "first": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "discrete": spaces.Discrete(4),
    "shifted": spaces.Discrete(4, start=2),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4]),
    "multi_binary": spaces.MultiBinary(5),
    "dict": spaces.Dict(
        {
            "vector": spaces.Box(-2.0, 2.0, (3,)),
            "picture": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "place": spaces.Discrete(4),
        }
    ),
    "flat_dict": spaces.Dict({"vector": spaces.Box(-2.0, 2.0, (3,)), "matrix": spaces.Box(-1.0, 3.0, (2, 2))}),
}


class Toy(gym.Env[Any, Any]):
    """Ten random observations of one space; raises at step ``fails`` when asked to."""

    def __init__(self, observes: str = "box", acts: str = "discrete", fails: int = 0) -> None:
        self.observation_space, self.action_space, self.fails = SPACES[observes], SPACES[acts], fails

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.fails:
            raise ValueError("the motor is stuck")
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 10, False, {}


class Choosy(Toy):
    """Allows the first two of its actions, and says so."""

    def action_masks(self) -> np.ndarray:
        mask = np.zeros(4, dtype=bool)
        mask[:2] = True
        return mask


class Goal(Toy):
    """Asks for a point of a square, as hindsight experience replay needs it; nothing moves but by chance."""

    def __init__(self) -> None:
        super().__init__("box", "box")
        keys = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = spaces.Dict({key: spaces.Box(-1.0, 1.0, (2,)) for key in keys})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, over, truncated, info = super().step(action)
        reward = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], info)
        return observation, float(reward), over, truncated, info

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -np.linalg.norm(achieved - desired, axis=-1)


class Custom(BaseFeaturesExtractor):
    """A convolution and a batch norm, of a user's own."""

    def __init__(self, observation_space: gym.Space[Any], channels: int = 6) -> None:
        super().__init__(observation_space, 2 * channels)
        self.conv = nn.Conv2d(1, channels, 6, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.out = nn.Linear(channels, 2 * channels)

    def forward(self, observations: Tensor) -> Tensor:
        made = torch.tanh(self.norm(self.conv(observations)))
        return torch.tanh(self.out(made.mean(dim=(2, 3))))


gym.register("Toy-v0", entry_point=Toy)
gym.register("Choosy-v0", entry_point=Choosy)
gym.register("Goal-v0", entry_point=Goal)
