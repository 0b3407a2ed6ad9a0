"""Dynamic network surgery: masked weights go on learning unseen, and are spliced back where they have grown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train.method import Change, Method, Sight, cubic, ranked

BETAS, EPSILON = (0.9, 0.999), 1e-8
KEYS = "wmvt"
"""Of a masked weight: its value, its two moments, and the updates that it has had unseen."""


@dataclass(frozen=True, kw_only=True)
class Surgery(Method):
    """Prune below one threshold and splice above a higher one.

    A kept weight goes when ``|w| < low · t``, a masked one comes back, with the value that it has grown to, when
    ``|w| > high · t``; in between nothing changes. t follows from the sparsity, which rises along the cubic curve: the
    original fixes t by each matrix's mean and deviation and takes what sparsity comes. Masked weights are trained by
    Adam at the learning rate of the optimizer that trains the others; the original trains all by SGD.

    Attributes:
        low, high: The two thresholds, as multiples of t.

    Reference: Guo, Yao & Chen 2016, *Dynamic network surgery*, eq. 3; 0.9 and 1.1 from the authors' code.
    """

    start: float = 0.2
    end: float = 0.8
    low: float = 0.9
    high: float = 1.1
    needs: ClassVar[frozenset[str]] = frozenset({"updates"})
    ramps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.low <= self.high:
            raise BudgetError(f"Surgery got low={self.low} and high={self.high}. Set 0 < low <= high.")

    def watch(self, sight: Sight, gradients: Mapping[str, Tensor], rate: float) -> None:
        """Train the masked weights, which the network does not see."""
        for name, gradient in gradients.items():
            unseen = {key: sight.memory.setdefault(f"{key}/{name}", torch.zeros_like(gradient)) for key in KEYS}
            adam(unseen["w"], unseen["m"], unseen["v"], unseen["t"].add_(1.0), gradient, rate)

    def change(self, sight: Sight) -> Change:
        """Prune and splice."""
        unseen = {n: sight.memory.get(f"w/{n}", torch.zeros_like(w)).cpu() for n, w in sight.weights.items()}
        whole = {n: torch.where(sight.masks[n], w, unseen[n]) for n, w in sight.weights.items()}
        scores = {n: hysteresis(w, sight.masks[n], self.low, self.high) for n, w in whole.items()}
        masks = ranked(sight, scores, self.distribution, cubic(sight))
        for name, weight in whole.items():
            remember(sight.memory, name, weight, sight.masks[name] & ~masks[name])
        spliced = {n: torch.where(masks[n], whole[n], torch.zeros_like(whole[n])) for n in masks}
        return Change(masks, {n: v for n, v in spliced.items() if bool((masks[n] & ~sight.masks[n]).any())})


def hysteresis(weight: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """Return for each weight the largest t at which it is kept.

    >>> hysteresis(torch.tensor([0.9, 1.1]), torch.tensor([True, False]), 0.9, 1.1)
    tensor([1., 1.])
    """
    return torch.where(mask, weight.abs() / low, weight.abs() / high)


def remember(memory: dict[str, Tensor], name: str, weight: Tensor, going: Tensor) -> None:
    """Keep the values of weights that are masked now; their moments and counts begin at zero."""
    for key in KEYS:
        if f"{key}/{name}" in memory:
            kept = memory[f"{key}/{name}"]
            kept[going.to(kept.device)] = weight[going].to(kept) if key == "w" else 0.0


def adam(weight: Tensor, first: Tensor, second: Tensor, count: Tensor, gradient: Tensor, rate: float) -> None:
    """Update a weight and its moments in place.

    Args:
        weight, first, second, gradient: Equal shapes.
        count: Updates of each entry with this one, the same shape.
        rate: The learning rate.

    Reference: Kingma & Ba 2015, algorithm 1.
    """
    first.lerp_(gradient, 1.0 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
    left, right = (torch.expm1(count * math.log(beta)).neg_() for beta in BETAS)  # 1 − β^t, exact for small t
    weight.addcdiv_(first / left, (second / right).sqrt_().add_(EPSILON), value=-rate)
