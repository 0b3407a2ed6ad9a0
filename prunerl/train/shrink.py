"""Networks that become smaller while they learn: units are removed from the live model, and every step costs less.

Where the share f of the time is spent at full width and a step at the final width takes the share c of one at full
width, training takes f + (1 − f)·c of the time of the dense one; see :func:`time_ratio`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from prunerl import criteria
from prunerl.errors import LearnError, LearnWarning
from prunerl.repair.least_squares import RIDGE
from prunerl.train.shrink_cut import Criterion, Cut
from prunerl.train.shrink_live import Live, Resized, everywhere
from prunerl.train.shrink_schedule import (
    Layers,
    Point,
    check_depth,
    check_time,
    check_widths,
    checked,
    points_of,
    widths_of,
)


class Shrink(BaseCallback):
    """Remove units from actor and critics at given points of the training.

    Units go for good, and with them their moments in the optimizer and their copies in the target networks. The
    layers that read them are refitted by least squares to what they computed before, on states of the rollouts or of
    the replay buffer. Off-policy, a change that is due waits until learning has started.

    A second ``learn`` of the same model goes on: what was done is not done again, unless ``reset_num_timesteps`` starts
    the schedule anew, and then only where a layer is still wider. A saved model that has been narrowed already, and
    trains on with a new callback, passes over the points that lie behind it.

    Args:
        at: Share of the training after which units are removed, or several rising ones, each in (0, 1). Or a
            condition, such as :class:`Reached`: it is given the live model before each rollout, and units are removed
            the first time that it is true, if ever.
        width: Units that are left in each hidden layer. A sequence is one number for each layer; where ``at`` has
            several points, one entry for each of them.
        critic_width: The same for critics; by default as ``width``.
        depth: Hidden layers that are left from the first point on; those behind go, and what read the last one is
            refitted by least squares on the last that is left. By default all of them.
        criterion: Scores units in visited states; see :mod:`prunerl.criteria`.
        refit: Refit what read the removed units by least squares.
        ridge: Penalty on the weights that are refitted, as :func:`~prunerl.repair.least_squares.least_squares` takes
            it. A small one fits closely, but by weights that may be large, and then a small step of what they read
            moves the outputs far. Where training is unstable after the cut, above all where ``depth`` lets one layer
            take over what several did, set it to 0.1 and distill.
        distill: Updates of distillation from the larger networks, on the same states, after that.
        states: Visited states that are looked at.
        seed: Of the distillation's minibatches and of what the criterion draws.
        verbose: 1: say what was removed.

    Raises:
        BudgetError: The points do not rise within (0, 1), widths do not fit them or rise, or another amount is out of
            range. In ``learn()``: no rollout begins after a point, or no update is made before the training ends.

    >>> Shrink(at=(0.2, 0.4), width=(64, 16)).points
    (0.2, 0.4)
    """

    def __init__(
        self,
        at: Point | Sequence[float] = 0.2,
        width: Layers | Sequence[Layers] = 64,
        *,
        critic_width: Layers | Sequence[Layers] | None = None,
        depth: int | None = None,
        criterion: Criterion = criteria.variance,
        refit: bool = True,
        ridge: float = RIDGE,
        distill: int = 0,
        states: int = 4096,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.points = points_of(at)
        several = isinstance(at, Sequence)
        self.targets = widths_of("width", width, len(self.points), several)
        critics = width if critic_width is None else critic_width
        self.critic_targets = widths_of("critic_width", critics, len(self.points), several)
        checked("depth", 1 if depth is None else depth, 1)
        self.depth = depth
        checked("ridge", ridge, 1e-12)
        checked("distill", distill, 0)
        checked("states", states, 2)
        self.cut = Cut(criterion, refit, distill, ridge=ridge)
        self.states, self.seed = states, seed
        self.live: Live | None = None
        self.saved: Mapping[str, Any] | None = None
        self.done = 0
        self.changes: list[Resized] = []

    def __getstate__(self) -> dict[str, Any]:
        return stored(vars(self), self.live)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state

    def _init_callback(self) -> None:
        make = lambda: Live(self.model, self.cut, states=self.states, seed=self.seed)  # noqa: E731
        self.live = bound(self.live, self.model, make, self.saved)

    def _on_training_start(self) -> None:
        anew = self.num_timesteps == 0
        if anew:
            self.done = 0
        elif self.done == 0:
            self.done = sum(self._passed(i) for i in range(len(self.points)))
        if anew and self.changes:
            return  # an earlier run of this callback narrowed the model itself
        if self.done < len(self.points):
            check_depth(self._live(), self.depth)
        for i in range(self.done, len(self.points)):
            check_widths(self._live(), self._wanted(i), self.depth, anew=self.done == 0 and i == len(self.points) - 1)
        if self.done < len(self.points):
            check_time(self._live(), self.points[-1])

    def _on_rollout_end(self) -> None:
        live = self._live()
        if self.done < len(self.points):
            live.keep_rollout()
        live.record()

    def _on_rollout_start(self) -> None:
        # After an update and before the next rollout, no probability of the old policy is waiting to be compared.
        live = self._live()
        if self.done < len(self.points):
            live.check_free()  # what masks may have begun after this callback
        while self.done < len(self.points) and self._due(self.done) and live.ready():
            targets, present = self._wanted(self.done), live.widths()
            smaller = {n: tuple(map(min, targets[n], present[n])) for n in targets}
            if smaller != present:
                self.changes.append(live.shrink(smaller))
                tell(self, self.changes[-1])
            self.done += 1
        if self.done == len(self.points):
            live.recent.clear()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        late = [at for at in self.points[self.done :] if not callable(at) and progress(self) >= at]
        if late:
            warnings.warn(
                f"Nothing was removed at {', '.join(f'{at:g}' for at in late)} of training: no rollout began after "
                "that, or no update came before. Choose an earlier point, or shorter rollouts.",
                LearnWarning,
                stacklevel=2,
            )
        if any(map(callable, self.points[self.done :])):
            warnings.warn(
                f"Nothing was removed: no rollout began at which {self.points[0]} held and states had been visited.",
                LearnWarning,
                stacklevel=2,
            )

    def _live(self) -> Live:
        assert self.live is not None  # set before training starts
        return self.live

    def _wanted(self, point: int) -> dict[str, tuple[int, ...]]:
        return everywhere(self._live(), self.targets[point], self.critic_targets[point], self.depth)

    def _due(self, point: int) -> bool:
        at = self.points[point]
        return at(self.model) if callable(at) else progress(self) >= at

    def _passed(self, point: int) -> bool:
        present, wanted, at = self._live().widths(), self._wanted(point), self.points[point]
        there = all(
            len(present[name]) <= len(wanted[name])
            and all(p <= w for p, w in zip(present[name], wanted[name], strict=False))
            for name in wanted
        )
        return there and (callable(at) or progress(self) >= at)


def time_ratio(dense: float, cost: float) -> float:
    """Return the time of a training over that of the dense one: f + (1 − f)·c.

    Args:
        dense: f, the share of the dense training's time after which the network is narrow.
        cost: c, the time of a step at the final width over that at the full width.

    >>> round(time_ratio(0.4, 0.32), 3)
    0.592
    """
    return dense + (1.0 - dense) * cost


def stored(attributes: Mapping[str, Any], live: Live | None) -> dict[str, Any]:
    """Return a callback's attributes without its model, and with what it knows of that one, for a checkpoint."""
    gone: dict[str, Any] = {"locals": {}, "globals": {}, "parent": None, "live": None}
    own = {name: value for name, value in attributes.items() if name != "model"}
    return own | gone | {"saved": live.state() if live is not None else attributes["saved"]}


def bound(live: Live | None, model: object, make: Callable[[], Live], saved: Mapping[str, Any] | None = None) -> Live:
    """Return what a callback works on: made once, and never for another model; what was saved of it goes on.

    Raises:
        LearnError: The callback was used on another model before.
    """
    if live is None:
        made = make()
        if saved is not None:
            made.resume(saved)
        return made
    if live.model is not model:
        raise LearnError("This callback has changed another model already. Make a new one for each model.")
    return live


def progress(callback: BaseCallback) -> float:
    """Return the share of the training that is done."""
    return float(callback.model.num_timesteps / max(1, callback.model._total_timesteps))


def tell(callback: BaseCallback, change: Resized) -> None:
    """Say what a change did, where the callback is to be heard."""
    if callback.verbose:
        layers = ", ".join(f"{name} {'-'.join(map(str, units))}" for name, units in change.widths.items())
        print(f"step {change.step}: {layers}; {change.parameters:,} parameters; {change.seconds:.2f} s")
