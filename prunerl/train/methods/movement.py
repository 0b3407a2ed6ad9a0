"""Movement pruning: weights that training moves towards zero go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunerl.train.method import Change, Method, Sight, cubic, ranked


@dataclass(frozen=True, kw_only=True)
class Movement(Method):
    """Mask the weights of the lowest ``−Σ w · ∂L/∂w``, summed over all updates, along the cubic curve.

    The original trains scores beside hidden weights; here a masked weight is zero, so its score stays what it was.

    Reference: Sanh et al. 2020, *Movement pruning*, eq. 4.
    """

    start: float = 0.2
    end: float = 0.8
    needs: ClassVar[frozenset[str]] = frozenset({"updates"})
    ramps: ClassVar[bool] = True

    def watch(self, sight: Sight, gradients: Mapping[str, Tensor], rate: float) -> None:
        """Add one update's scores."""
        for name, gradient in gradients.items():
            score = sight.memory.setdefault(name, torch.zeros_like(gradient))
            score.addcmul_(sight.parameters[name].detach(), gradient, value=-1.0)

    def change(self, sight: Sight) -> Change:
        """Mask the lowest scores; nothing as long as a matrix was not trained, whose scores say nothing."""
        if not sight.masks.keys() <= sight.memory.keys():
            return Change(sight.masks)
        scores = {n: sight.memory[n].cpu() for n in sight.masks}
        return Change(ranked(sight, scores, self.distribution, cubic(sight)))
