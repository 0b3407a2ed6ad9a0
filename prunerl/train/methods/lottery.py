"""Lottery rewinding: mask the smallest weights, and set the others back to what they were at first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train.method import Change, Method, Sight, ranked


@dataclass(frozen=True, kw_only=True)
class Lottery(Method):
    """Remove a fifth of what is left in each round, and rewind all parameters, biases and heads too.

    Rounds fill the time until ``end``; after the last one the ticket trains to the end of ``learn()``. The original
    trains each round as long as the whole: for that, give ``learn()`` the steps of all rounds. Moments start anew,
    the replay buffer stays.

    Attributes:
        round_share: Share of the present weights that goes in a round.
        start: Share of training after which the parameters that are rewound to are taken; 0 is the initialisation.

    Reference: Frankle & Carbin 2019, *The lottery ticket hypothesis*, and Frankle et al. 2020 for the rewinding.
    """

    round_share: float = 0.2
    end: float = 0.8
    every: int = 1
    at_once: ClassVar[bool] = True
    ramps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.round_share < 1.0:
            raise BudgetError(f"Lottery got round_share={self.round_share}. Set it between 0 and 1.")

    @property
    def rounds(self) -> int:
        """Rounds until the highest sparsity is reached."""
        most = max(self.sparsity_of(part) for part in ("actor", "critic"))
        return rounds(most, self.round_share)

    def change(self, sight: Sight) -> Change:
        """Take the parameters that are rewound to; at the end of a round mask and rewind."""
        if "round" not in sight.memory:
            sight.memory["round"] = torch.zeros(())
            sight.memory.update({f"start/{n}": p.detach().clone() for n, p in sight.parameters.items()})
        due = min(sight.done * self.rounds // sight.span, self.rounds)
        if due <= int(sight.memory["round"]):
            return Change(sight.masks)
        sight.memory["round"].fill_(due)
        share = reached(due, self.rounds, self.round_share)
        scores = {n: w.abs().masked_fill(~sight.masks[n], -1.0) for n, w in sight.weights.items()}
        masks = ranked(sight, scores, self.distribution, share)
        values: dict[str, Tensor] = {}
        forget: dict[str, Tensor] = {}
        for name, parameter in sight.parameters.items():
            values[name] = sight.memory[f"start/{name}"].clone()
            forget[name] = torch.ones(parameter.shape, dtype=torch.bool)
        return Change(masks, values, forget)


def rounds(sparsity: float, share: float) -> int:
    """Return how many rounds that each remove ``share`` of the rest lead to ``sparsity``.

    >>> rounds(0.9, 0.2), rounds(0.0, 0.2)
    (11, 1)
    """
    return max(1, math.ceil(math.log(1.0 - sparsity) / math.log(1.0 - share) - 1e-9))


def reached(round_: int, total: int, share: float) -> float:
    """Return the share of the final sparsity after a round.

    >>> [round(reached(r, 3, 0.5), 3) for r in (1, 2, 3)]
    [0.571, 0.857, 1.0]
    """
    return (1.0 - (1.0 - share) ** round_) / (1.0 - (1.0 - share) ** total)
