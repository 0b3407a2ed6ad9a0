"""ReDo: units that have gone silent are recycled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train import distributions
from prunerl.train.method import Change, Method, Sight
from prunerl.types import Masks


@dataclass(frozen=True, kw_only=True)
class ReDo(Method):
    """Give dormant units fresh weights to read by, and none that read them.

    A unit is dormant when its mean absolute activation is at most ``tau`` of its layer's mean. The weights that it
    reads by are drawn anew from U(−1/√n, 1/√n), n inputs, its bias and those that read it become zero, and all their
    moments start anew. By default nothing is masked; with a sparsity the masks are drawn at random and stay.

    Attributes:
        tau: Share of the layer's mean activation.

    Reference: Sokar et al. 2023, *The dormant neuron phenomenon in deep RL*, definition 3.1 and algorithm 1.
    """

    sparsity: float = 0.0
    end: float = 1.0
    tau: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"activity"})
    by_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau < 0.0:
            raise BudgetError(f"ReDo got tau={self.tau}. Set it to 0 or more.")

    def first(self, sight: Sight) -> Masks:
        """Draw the masks at random."""
        return distributions.at_random(sight.shapes, sight.kept, sight.generator)

    def change(self, sight: Sight) -> Change:
        """Recycle dormant units."""
        values: dict[str, Tensor] = {}
        forget: dict[str, Tensor] = {}
        for layer in sight.hidden:
            silent = dormant(sight.activity[layer.output], self.tau)
            if not bool(silent.any()):
                continue
            old = values.get(layer.weight, sight.parameters[layer.weight].detach()).clone()
            bound = 1.0 / math.sqrt(old[0].numel())
            fresh = torch.empty(old[silent].shape).uniform_(-bound, bound, generator=sight.generator)
            old[silent] = fresh.to(old)
            values[layer.weight] = old
            _mark(forget, layer.weight, old, silent)
            if layer.bias is not None:
                values[layer.bias] = sight.parameters[layer.bias].detach().masked_fill(silent, 0.0)
                forget[layer.bias] = silent
            for reader in layer.readers:
                weight = values.get(reader, sight.parameters[reader].detach()).clone()
                weight[:, : len(silent)][:, silent] = 0.0
                values[reader] = weight
                columns = torch.zeros(weight.shape[1], dtype=torch.bool)
                columns[: len(silent)] = silent
                _mark(forget, reader, weight, columns[None].expand(weight.shape))
        return Change(sight.masks, values, forget)


def dormant(activity: Tensor, tau: float) -> Tensor:
    """Return which units are dormant.

    Args:
        activity: Mean absolute activation, shape (units,).
        tau: Share of the layer's mean.

    >>> dormant(torch.tensor([0.0, 0.1, 2.0, 1.9]), 0.1)
    tensor([ True,  True, False, False])
    """
    return activity <= tau * activity.mean()


def _mark(forget: dict[str, Tensor], name: str, weight: Tensor, where: Tensor) -> None:
    whole = where[:, None].expand(weight.shape) if where.dim() == 1 else where
    forget[name] = forget.get(name, torch.zeros(weight.shape, dtype=torch.bool)) | whole
