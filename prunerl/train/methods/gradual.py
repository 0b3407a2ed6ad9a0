"""Gradual magnitude pruning: from dense to sparse along a cubic curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunerl import errors
from prunerl.errors import BudgetError
from prunerl.train import distributions
from prunerl.train.method import Change, Method, Sight, cubic, present, ranked

RULES = ("best", "probability")


@dataclass(frozen=True, kw_only=True)
class Gradual(Method):
    """Mask the smallest weights, more and more of them.

    Each matrix goes from dense to its own final sparsity by ``1 − (1 − p)³``.

    Attributes:
        rule: ``best`` keeps the largest; ``probability`` lets each go with a probability that falls with its size,
            for good, so that the sparsity is the one asked for on average only.

    Reference: Zhu & Gupta 2017, *To prune, or not to prune*; defaults from Graesser et al. 2022.
    """

    start: float = 0.2
    end: float = 0.8
    rule: str = "best"
    ramps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in RULES:
            raise errors.unknown("rule", self.rule, RULES)

    def change(self, sight: Sight) -> Change:
        """Mask what is smallest now."""
        scores = {name: weight.abs() for name, weight in sight.weights.items()}
        share = cubic(sight)
        if self.rule == "best":
            return Change(ranked(sight, scores, self.distribution, share))
        found: dict[str, Tensor] = {}
        for part, names in sight.parts.items():
            groups = [names] if self.distribution == "global" else [(name,) for name in names]
            for group in filter(None, groups):
                size = sum(scores[n].numel() for n in group)
                kept = sum(present(scores[n].numel(), sight.kept[n], share) for n in group)
                if kept < 1:
                    raise BudgetError(f"The {part} would keep 0 of {size} weights. Lower the sparsity.")
                found |= distributions.drawn(
                    {n: scores[n] for n in group}, {n: sight.masks[n] for n in group}, kept / size, sight.generator
                )
        return Change(found)
