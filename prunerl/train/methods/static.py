"""Static: masks drawn at random before the first update, never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunerl.train import distributions
from prunerl.train.method import Change, Method, Sight
from prunerl.types import Masks


@dataclass(frozen=True, kw_only=True)
class Static(Method):
    """Train under masks that are drawn at random and stay.

    Reference: Graesser et al. 2022, *The State of Sparse Training in Deep RL*, section 2 ("static").
    """

    by_score: ClassVar[bool] = False

    def first(self, sight: Sight) -> Masks:
        """Draw the masks."""
        return distributions.at_random(sight.shapes, sight.kept, sight.generator)

    def change(self, sight: Sight) -> Change:
        """Change nothing."""
        return Change(sight.masks)
