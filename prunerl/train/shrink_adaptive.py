"""Shrink as long as the return does not fall, and grow back when it does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from prunerl import criteria
from prunerl.errors import BudgetError, LearnError
from prunerl.repair.least_squares import RIDGE
from prunerl.train.shrink import bound, stored, tell
from prunerl.train.shrink_cut import Criterion, Cut
from prunerl.train.shrink_live import Live, Resized
from prunerl.train.shrink_schedule import checked

WINDOW = 100
"""Episodes over which the return is averaged, at most."""


class AdaptiveShrink(BaseCallback):
    """Narrow all hidden layers step by step while the smoothed return holds, and widen them again when it falls.

    The smoothed return is the mean over the training episodes that ended since the last change, the last ``WINDOW`` of
    them. It has fallen when it is below the best one so far by more than ``tolerance`` of the range from the lowest to
    the best, so returns may be negative. Then the layers grow back to the widths before: new units are read by zeros,
    which changes no output, and learn from there. From then on steps are half as large, on a logarithmic scale, and
    no width that has failed is tried again. A second ``learn`` goes on, at the pace of the first.

    Args:
        start: Share of the training before which nothing is removed, in [0, 1).
        every: Least share of the training between two changes, in (0, 1).
        step: Share of the units that a change leaves, in (0, 1).
        tolerance: How far the return may fall, as a share of its range so far; above 0.
        least: Units that are left in each layer.
        episodes: Least number of episodes between two changes.
        criterion, refit, ridge, distill, states, seed, verbose: As for :class:`~prunerl.train.shrink.Shrink`.

    Raises:
        BudgetError: An amount is out of its range.
    """

    def __init__(
        self,
        start: float = 0.2,
        every: float = 0.05,
        step: float = 0.5,
        tolerance: float = 0.1,
        *,
        least: int = 8,
        episodes: int = 20,
        criterion: Criterion = criteria.variance,
        refit: bool = True,
        ridge: float = RIDGE,
        distill: int = 0,
        states: int = 4096,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value in (("start", start), ("every", every), ("step", step)):
            if not (0.0 < value < 1.0 or value == start == 0.0):
                raise BudgetError(f"Shrinking got {name}={value}, which is no share. Set it above 0 and below 1.")
        if not 0.0 < tolerance < math.inf:
            raise BudgetError(f"Shrinking got tolerance={tolerance}. Set a positive share of the return's range.")
        for name, value, low in (
            ("least", least, 1),
            ("episodes", episodes, 1),
            ("ridge", ridge, 1e-12),
            ("distill", distill, 0),
            ("states", states, 2),
        ):
            checked(name, value, low)
        self.start, self.every, self.step, self.tolerance = start, every, step, tolerance
        self.least, self.episodes = least, episodes
        self.cut, self.states, self.seed = Cut(criterion, refit, distill, ridge=ridge), states, seed
        self.live: Live | None = None
        self.saved: Mapping[str, Any] | None = None
        self.changes: list[Resized] = []
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.reset()

    def reset(self) -> None:
        """Forget what was seen of the returns."""
        self.returns.clear()
        self.seen, self.lowest, self.best = 0, math.inf, -math.inf
        self.leaves = self.step
        self.wider: list[dict[str, tuple[int, ...]]] = []  # widths that held, the last one is the present one's parent
        self.failed: dict[str, tuple[int, ...]] = {}
        self.first: float | None = None  # steps of the environment from which on units may go
        self.pause = 0.0  # steps from one change to the next
        self.changed_at = 0

    def __getstate__(self) -> dict[str, Any]:
        return stored(vars(self), self.live)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state

    def _init_callback(self) -> None:
        make = lambda: Live(self.model, self.cut, states=self.states, seed=self.seed)  # noqa: E731
        self.live = bound(self.live, self.model, make, self.saved)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self.reset()
        if self.first is None:
            self.changed_at = self.model.num_timesteps
            steps = self.model._total_timesteps - self.changed_at
            self.first, self.pause = self.changed_at + self.start * steps, self.every * steps
        if not self.changes and all(u <= self.least for layers in self._live().widths().values() for u in layers):
            raise BudgetError(f"No hidden layer has more than {self.least} units: nothing to shrink. Lower least.")

    def _on_step(self) -> bool:
        for done, info in zip(self.locals.get("dones", ()), self.locals.get("infos", ()), strict=False):
            if "episode" in info:
                self.returns.append(float(info["episode"]["r"]))
                self.seen += 1
            elif done:
                raise LearnError(
                    "The environment does not report the return of an episode. Wrap it in "
                    "stable_baselines3.common.monitor.Monitor, or a vectorised one in VecMonitor."
                )
        return True

    def _on_rollout_end(self) -> None:
        self._live().keep_rollout()
        self._live().record()

    def _on_rollout_start(self) -> None:
        live, now = self._live(), self.model.num_timesteps
        live.check_free()
        due = self.first is not None and now >= self.first and now - self.changed_at >= self.pause
        if not due or self.seen < self.episodes or not live.ready():
            return
        smoothed = fmean(self.returns)
        self.best, self.lowest = max(self.best, smoothed), min(self.lowest, smoothed)
        if smoothed < self.best - self.tolerance * (self.best - self.lowest):
            self._widen(live)
        else:
            self._narrow(live)
        self.logger.record("shrink/return", smoothed)

    def _narrow(self, live: Live) -> None:
        present = live.widths()
        targets = {}
        for name, layers in present.items():
            failed = self.failed.get(name, (0,) * len(layers))
            floors = [min(units, max(self.least, lost + 1)) for units, lost in zip(layers, failed, strict=True)]
            targets[name] = tuple(max(math.ceil(u * self.leaves), f) for u, f in zip(layers, floors, strict=True))
        if targets != present:
            self.wider.append(present)
            self._after(live.shrink(targets))

    def _widen(self, live: Live) -> None:
        if not self.wider:
            return
        self.failed = live.widths()
        self.leaves = math.sqrt(self.leaves)
        self._after(live.grow(self.wider.pop()))

    def _after(self, change: Resized) -> None:
        self.changes.append(change)
        self.returns.clear()
        self.seen, self.changed_at = 0, self.model.num_timesteps
        tell(self, change)

    def _live(self) -> Live:
        assert self.live is not None  # set before training starts
        return self.live
