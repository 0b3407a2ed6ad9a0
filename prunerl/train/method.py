"""A method of sparse training: frozen settings, and pure functions from what it sees to masks.

To add one: a frozen dataclass in a file of its own below ``methods/``, with :meth:`Method.first` and
:meth:`Method.change`, and a test against masks computed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunerl import errors, schedules
from prunerl.errors import BudgetError
from prunerl.train import distributions
from prunerl.train.distributions import DISTRIBUTIONS
from prunerl.train.networks import Hidden
from prunerl.types import Masks


@dataclass(frozen=True, eq=False)
class Sight:
    """What a method sees when masks may change.

    Attributes:
        parameters: Every parameter of the networks by name.
        masks: Those that are held, of the matrices that may be pruned.
        parts: ``actor`` and ``critic`` → names of those matrices.
        kept: Matrix → weights that it keeps at the end of the schedule.
        done, span: Steps since the schedule began, and its length.
        gradients: Matrix → dense gradient, mean over the updates since the last step of the environment; where the
            method ``needs`` them.
        activity: Output of hidden units → mean absolute activation of each, likewise.
        hidden: Layers of hidden units.
        memory: The method's own tensors, kept from one call to the next.
        generator: Draws what is random.
    """

    parameters: Mapping[str, Tensor]
    masks: Masks
    parts: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, int]
    done: int
    span: int
    generator: torch.Generator
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    activity: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: tuple[Hidden, ...] = ()
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The matrices that may be pruned."""
        return {name: self.parameters[name].detach() for name in self.masks}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Matrix → shape."""
        return {name: tuple(mask.shape) for name, mask in self.masks.items()}

    def dense(self) -> dict[str, Tensor]:
        """Return masks that keep everything."""
        return {name: torch.ones_like(mask) for name, mask in self.masks.items()}


@dataclass(frozen=True, eq=False)
class Change:
    """What a method wants.

    Attributes:
        masks: The masks from now on.
        values: Parameters that take other values; targets are not told.
        forget: Parameter → where its moments start anew at zero.
    """

    masks: Masks
    values: Mapping[str, Tensor] = field(default_factory=dict)
    forget: Masks = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every method takes.

    Attributes:
        sparsity: Share removed of the weights of all matrices that may be pruned, in [0, 1).
        actor_sparsity, critic_sparsity: The same for one part; by default ``sparsity``.
        distribution: ``uniform``, ``er``, ``erk`` or ``global``, over the matrices of each part.
        dense_last: Matrices that make outputs are left dense and count for nothing.
        start, end: When masks begin to change and when they stay as they are, as shares of the steps of ``learn()``.
        every: Steps of the environment from one change to the next.
        seed: What is random follows from it.

    Raises:
        BudgetError: The schedule ends before it starts, or another number is out of its range.
    """

    sparsity: float = 0.9
    actor_sparsity: float | None = None
    critic_sparsity: float | None = None
    distribution: str = "erk"
    dense_last: bool = True
    start: float = 0.0
    end: float = 0.75
    every: int = 1000
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset()
    """``gradients`` or ``activity``, measured before each change; ``updates``: it watches every update."""
    at_once: ClassVar[bool] = False
    """It is called as soon as the schedule begins, and not only ``every`` steps later."""
    by_score: ClassVar[bool] = True
    """It ranks weights by scores, so that those of several matrices can compete."""
    ramps: ClassVar[bool] = False
    """Its sparsity is reached at the end of the schedule only."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise BudgetError(
                f"{type(self).__name__} starts at {self.start} and ends at {self.end} of training. "
                "Set 0 <= start < end <= 1."
            )
        if self.every < 1:
            raise BudgetError(f"{type(self).__name__} got every={self.every}. Set it to 1 step or more.")
        for part, value in (("", self.sparsity), ("actor_", self.actor_sparsity), ("critic_", self.critic_sparsity)):
            if value is not None and not 0.0 <= value < 1.0:
                raise BudgetError(
                    f"{type(self).__name__} got {part}sparsity={value}. Set it to at least 0 and less than 1."
                )
        if self.distribution not in DISTRIBUTIONS:
            raise errors.unknown("distribution", self.distribution, DISTRIBUTIONS)
        if self.distribution == "global" and not self.by_score:
            raise BudgetError(
                f"{type(self).__name__} draws its first masks at random, so no scores compete over all matrices. "
                "Set distribution to 'uniform', 'er' or 'erk'."
            )

    def sparsity_of(self, part: str) -> float:
        """Return the sparsity of ``actor`` or ``critic``."""
        own = self.actor_sparsity if part == "actor" else self.critic_sparsity
        return self.sparsity if own is None else own

    def first(self, sight: Sight) -> Masks:
        """Return the masks before the first update: by default everything is kept."""
        return sight.dense()

    def change(self, sight: Sight) -> Change:
        """Return what changes now."""
        raise NotImplementedError

    def watch(self, sight: Sight, gradients: Mapping[str, Tensor], rate: float) -> None:
        """See one update's dense gradients before they are masked; only where it needs ``updates``.

        Args:
            sight: What may be written to is ``memory``.
            gradients: Those of the matrices that this optimizer trains.
            rate: Its learning rate.
        """


def cubic(sight: Sight) -> float:
    """Return the share of the final sparsity that is reached now: ``1 − (1 − done/span)³``.

    Reference: Zhu & Gupta 2017, eq. 1.
    """
    if sight.done <= 0:
        return 0.0
    if sight.done >= sight.span:
        return 1.0
    return schedules.cubic(sight.done, sight.span, 0.5) / 0.5


def ranked(sight: Sight, scores: Mapping[str, Tensor], distribution: str, share: float) -> dict[str, Tensor]:
    """Keep the best scores when ``share`` of the final sparsity is reached, by matrix, or over each part (global)."""
    found: dict[str, Tensor] = {}
    for names in sight.parts.values():
        counts = {n: present(scores[n].numel(), sight.kept[n], share) for n in names}
        mine = {n: scores[n] for n in names}
        if distribution == "global" and names:
            found |= distributions.best_of_all(mine, sum(counts.values()))
        else:
            found |= distributions.best(mine, counts)
    return found


def present(size: int, kept: int, share: float) -> int:
    """Return how many of ``size`` weights are kept when ``share`` of their final sparsity is reached.

    >>> [present(100, 10, share) for share in (0.0, 0.5, 1.0)]
    [100, 55, 10]
    """
    return kept + round((size - kept) * (1.0 - share))


def settings(method: Method) -> dict[str, Any]:
    """Return a method's settings by name."""
    return {name: getattr(method, name) for name in method.__dataclass_fields__}
