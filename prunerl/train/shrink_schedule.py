"""When units go and how many are left: what may be asked for, and whether a live model can do it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from prunerl.errors import BudgetError
from prunerl.train.course import last_rollout
from prunerl.train.shrink_live import Live, Widths

Layers = int | Sequence[int]
"""Width of each hidden layer; one number is that of all."""
Point = float | Callable[[Any], bool]
"""A share of the training, or what tells of the live model whether it is time."""


@dataclass(frozen=True)
class Reached:
    """Tell whether a model's last training episodes returned so much on average.

    Attributes:
        returned: Mean return, as Stable-Baselines3's ``Monitor`` reports it.
        episodes: Over so many episodes, which must have ended; at most the ``stats_window_size`` of the model, 100 by
            default.

    Raises:
        BudgetError: The number of episodes is below 1, or, when a model is looked at, more than it keeps.
    """

    returned: float
    episodes: int = 20

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise BudgetError(f"A mean of returns got episodes={self.episodes}. Set 1 or more.")

    def __call__(self, model: Any) -> bool:
        """Look at the last episodes."""
        known = model.ep_info_buffer
        if known.maxlen is not None and known.maxlen < self.episodes:
            raise BudgetError(
                f"The model keeps its last {known.maxlen} returns, and the mean of {self.episodes} is asked for. "
                f"Set episodes to {known.maxlen} or less, or make the model with stats_window_size={self.episodes}."
            )
        if len(known) < self.episodes:
            return False
        last = [known[-1 - i]["r"] for i in range(self.episodes)]
        return bool(sum(last) >= self.returned * self.episodes)


def points_of(at: Point | Sequence[float]) -> tuple[Point, ...]:
    """Return the points of a schedule.

    Raises:
        BudgetError: They do not rise within (0, 1).
    """
    if callable(at):
        return (at,)
    points = (float(at),) if isinstance(at, int | float) else tuple(float(p) for p in at)
    rising = all(a < b for a, b in itertools.pairwise(points))
    if not points or not rising or not all(0.0 < p < 1.0 for p in points):
        raise BudgetError(
            f"The schedule ends before it starts, or lies outside of the training: at={at}. "
            "Give rising shares of the training, each above 0 and below 1."
        )
    return points


def widths_of(name: str, width: Layers | Sequence[Layers], points: int, several: bool) -> list[Layers]:
    """Return the widths at each point.

    Raises:
        BudgetError: There are more or fewer of them than points, a layer would be empty, or would grow.
    """
    entries: list[Layers] = list(width) if several and not isinstance(width, int) else [width]  # type: ignore[list-item]
    if len(entries) != points:
        raise BudgetError(f"There are {points} points and {name}={width}. Give one width for each point.")
    if any(units < 1 for entry in entries for units in ((entry,) if isinstance(entry, int) else entry)):
        raise BudgetError(f"A layer cannot be without units: {name}={width}. Keep 1 unit or more.")
    if any(_rises(before, after) for before, after in itertools.pairwise(entries)):
        raise BudgetError(f"Layers cannot grow at a later point: {name}={width}. Give widths that fall or stay.")
    return entries


def _rises(before: Layers, after: Layers) -> bool:
    if isinstance(before, int) and isinstance(after, int):
        return after > before
    pairs = zip(*(itertools.repeat(e) if isinstance(e, int) else e for e in (before, after)), strict=False)
    return any(later > earlier for earlier, later in pairs)


def check_time(live: Live, last: Point) -> None:
    """Check that the last point is one at which there is something to do, as far as that is known before.

    Raises:
        BudgetError: No rollout begins after it, or nothing is learnt before the training ends.
    """
    model = live.model
    begun, total = model.num_timesteps, model._total_timesteps
    starts = getattr(model, "learning_starts", 0)
    if starts >= total:
        raise BudgetError(
            f"Training ends at step {total}, before learning starts at step {starts}, so nothing can be scored. "
            "Train for more steps, or set a smaller learning_starts."
        )
    if callable(last) or not isinstance(model, OnPolicyAlgorithm):
        return
    latest, length = last_rollout(model), model.n_steps * model.n_envs
    if last * total > latest or (latest == begun and not live.ready()):
        raise BudgetError(
            f"Units are to go at step {last * total:.0f}, but the last rollout of {length} steps begins at step "
            f"{latest}, and the first has to end before. Choose an earlier point, train for more steps, or set a "
            "smaller n_steps."
        )


def check_widths(live: Live, targets: Widths, depth: int | None, *, anew: bool) -> None:
    """Check that a target fits the layers as they are now, and leaves something to do where training begins anew.

    Without ``depth`` it has an entry for each of them; with it, for each that is left.

    Raises:
        BudgetError: It does not.
    """
    whole = live.widths()
    present = {name: layers[: depth or None] for name, layers in whole.items()}
    for name, wanted in targets.items():
        if len(wanted) != len(present[name]):
            raise BudgetError(
                f"Network {name!r} has hidden layers of {present[name]} units, got widths {wanted}. "
                f"Give one number, or {len(present[name])}."
            )
        if any(w > p for w, p in zip(wanted, present[name], strict=True)):
            raise BudgetError(
                f"Network {name!r} has hidden layers of {present[name]} units and cannot shrink to {wanted}. "
                "Set no width above the present one; give one for each layer where they differ."
            )
    if anew and all(targets[name] == whole[name] for name in targets):
        raise BudgetError(
            f"There is nothing to shrink: the hidden layers have {present} units already. Set a smaller width."
        )


def check_depth(live: Live, depth: int | None) -> None:
    """Check that the networks have so many hidden layers.

    Raises:
        BudgetError: All have fewer.
    """
    most = max(len(network.hidden) for network in live.networks)
    if depth is not None and depth > most:
        raise BudgetError(f"The networks have {most} hidden layers or fewer, got depth={depth}. Set 1 to {most}.")


def checked(name: str, value: float, least: float) -> None:
    """Check an amount.

    Raises:
        BudgetError: It is below ``least``.
    """
    if not value >= least:
        raise BudgetError(f"Shrinking got {name}={value}. Set it to {least} or more.")
