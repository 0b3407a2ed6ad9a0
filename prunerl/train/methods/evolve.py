"""SET and RigL: masks of constant sparsity that move; the smallest weights make room for others.

RLx2 is RigL together with what it does to targets and the replay buffer: see ``rlx2.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train import distributions
from prunerl.train.method import Change, Method, Sight
from prunerl.types import Masks


@dataclass(frozen=True, kw_only=True)
class SET(Method):
    """Drop the smallest weights and grow as many at random places.

    Attributes:
        share: f₀: how many of the kept weights move at first; it falls to 0 along a cosine until ``end``.

    Reference: Mocanu et al. 2018, *Scalable training of artificial neural networks with adaptive sparse
    connectivity*; cosine and defaults from Graesser et al. 2022, table of tuned settings for DQN.
    """

    share: float = 0.5
    by_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise BudgetError(f"{type(self).__name__} got share={self.share}. Set it above 0 and to at most 1.")

    def first(self, sight: Sight) -> Masks:
        """Draw the masks at random."""
        return distributions.at_random(sight.shapes, sight.kept, sight.generator)

    def change(self, sight: Sight) -> Change:
        """Move a share of each matrix's weights."""
        growth = self.growth(sight)
        share = cosine(self.share, sight.done, sight.span)
        return Change(
            {name: moved(sight.weights[name], mask, growth[name], share) for name, mask in sight.masks.items()}
        )

    def growth(self, sight: Sight) -> Mapping[str, Tensor]:
        """Return a score of each place: the highest grow."""
        return {name: torch.rand(shape, generator=sight.generator) for name, shape in sight.shapes.items()}


@dataclass(frozen=True, kw_only=True)
class RigL(SET):
    """Drop the smallest weights and grow those with the largest dense gradient.

    Reference: Evci et al. 2020, *Rigging the lottery*, algorithm 1; defaults from Graesser et al. 2022 for DQN.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def growth(self, sight: Sight) -> Mapping[str, Tensor]:
        """Return the size of the gradients."""
        return {name: sight.gradients[name].abs() for name in sight.masks}


def cosine(share: float, done: int, span: int) -> float:
    """Return ``share/2 · (1 + cos(π·done/span))``, 0 from ``span`` on.

    >>> [round(cosine(0.5, done, 4), 3) for done in (0, 2, 4, 5)]
    [0.5, 0.25, 0.0, 0.0]
    """
    return share / 2.0 * (1.0 + math.cos(math.pi * min(done / span, 1.0)))


def moved(weight: Tensor, mask: Tensor, growth: Tensor, share: float) -> Tensor:
    """Return the mask without its smallest weights and with as many others, those of the highest ``growth``.

    Args:
        weight, mask, growth: Equal shapes.
        share: How many of the kept weights go, rounded down. One that goes may come back, as in the original.

    >>> weight = torch.tensor([4.0, 1.0, 3.0, 0.0, 0.0, 0.0])
    >>> moved(weight, weight != 0, torch.tensor([9.0, 1.0, 9.0, 5.0, 7.0, 6.0]), 0.5)
    tensor([ True, False,  True, False,  True, False])
    """
    going = int(share * int(mask.sum()) + 1e-9)
    stay = distributions.best({"": weight.abs().masked_fill(~mask, -1.0)}, {"": int(mask.sum()) - going})[""]
    # Places that are taken come last; a gradient is never below 0.
    return stay | distributions.best({"": growth.masked_fill(stay, -1.0)}, {"": going})[""]
