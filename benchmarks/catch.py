"""A small environment of images, ``Catch-v0``: balls fall through a picture of 40 × 40 and a paddle catches them.

It is registered when this file is imported. With ``PYTHONPATH=benchmarks`` the command line finds it by the id
``catch:Catch-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

CELLS, PIXELS = 10, 4
BALLS = 5
PADDLE = 3


class Catch(gym.Env[NDArray[np.uint8], np.int64]):
    """Catch five balls, one after another; each starts in a random column and falls straight or slantwise.

    The observation is an image of 1 × 40 × 40 bytes, channel first: the ball, more faintly where it was before, and the
    paddle, three cells wide. The actions move the paddle one cell left, not at all, or right. A ball turns back at a
    wall. One that is caught gives 1, one that is missed −1; all of them can be caught.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (1, CELLS * PIXELS, CELLS * PIXELS), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self.paddle, self.thrown = int(self.np_random.integers(CELLS - PADDLE + 1)), 0
        self._throw()
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the paddle and the ball."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), CELLS - PADDLE)
        self.before = self.row, self.column
        self.row += 1
        if not 0 <= self.column + self.drift < CELLS:
            self.drift = -self.drift
        self.column += self.drift
        if self.row < CELLS - 1:
            return self._image(), 0.0, False, False, {}
        reward = 1.0 if self.paddle <= self.column < self.paddle + PADDLE else -1.0
        over = self.thrown == BALLS
        if not over:
            self._throw()
        return self._image(), reward, over, False, {}

    def _throw(self) -> None:
        self.thrown += 1
        self.row, self.column = 0, int(self.np_random.integers(CELLS))
        self.drift = int(self.np_random.integers(-1, 2))
        self.before = self.row, self.column

    def _image(self) -> NDArray[np.uint8]:
        cells = np.zeros((CELLS, CELLS), dtype=np.uint8)
        cells[self.before] = 64
        cells[self.row, self.column] = 255
        cells[-1, self.paddle : self.paddle + PADDLE] = 128
        return np.kron(cells, np.ones((PIXELS, PIXELS), dtype=np.uint8))[None]


gym.register("Catch-v0", entry_point=Catch)
