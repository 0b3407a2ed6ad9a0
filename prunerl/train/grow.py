"""Make a network wider without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train.shrink_networks import Network, ties
from prunerl.types import State

SILENT = -20.0
"""Logarithm of the deviation of exploration noise that new units add."""


def grown(network: Network, state: State, targets: Sequence[int], *, generator: torch.Generator) -> State:
    """Return the network with more units, each of them read by zeros, so that no output changes.

    New units read with weights as PyTorch initialises a linear layer, U(−1/√n, 1/√n) for n inputs, the same ones in
    the target. Whatever was there reads them with weight zero; moments of all new entries are zero. Exploration noise
    of gSDE does not see them either.

    Args:
        network: The network.
        state: Its tensors and moments, and what follows.
        targets: Width of each hidden layer.
        generator: Draws the new weights.

    Raises:
        BudgetError: A target is below the present width.

    Reference: Chen 2016 (Net2Net) for growth that preserves the function; the zeros are those of Evci 2022
    (GradMax), without its choice of incoming weights.
    """
    tensors, moments = dict(state.tensors), dict(state.moments)
    gained, inputs = 0, 0
    for layer, target in zip(network.hidden, targets, strict=True):
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        present, reads = state.tensors[weight].shape
        if target < present:
            raise BudgetError(
                f"Layer {layer!r} has {present} units and cannot grow to {target}. Set {present} or more."
            )
        inputs = reads + gained
        bound = inputs**-0.5
        for name, shape in ((weight, (target, inputs)), (bias, (target,))):
            if name in tensors:
                new = (2.0 * torch.rand(target - present, *shape[1:], generator=generator) - 1.0) * bound
                _widen(tensors, moments, _names(name, tensors), shape, new)
        gained = target - present
    for reader in network.readers:
        weight = f"{reader}.weight"
        outputs, reads = state.tensors[weight].shape
        _widen(tensors, moments, _names(weight, tensors), (outputs, reads + gained), torch.empty(0, reads + gained))
    for tie in (t for t in ties(network, state) if not t.copies):
        old = state.tensors[tie.target]
        extra = [*old.shape[: tie.target_dim], gained, *old.shape[tie.target_dim + 1 :]]
        fill = SILENT if tie.target == network.noise else 0.0
        tensors[tie.target] = torch.cat([old, old.new_full(extra, fill)], dim=tie.target_dim)
        if tie.target in moments:
            moments[tie.target] = _padded(moments[tie.target], old.shape, tensors[tie.target].shape)
    return replace(state, tensors=tensors, moments=moments)


def _names(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    root, _, rest = name.partition(".")
    return [n for n in (name, f"{root}_target.{rest}") if n in tensors]


def _widen(
    tensors: dict[str, Tensor],
    moments: dict[str, Mapping[str, Tensor]],
    names: Sequence[str],
    shape: Sequence[int],
    rows: Tensor,
) -> None:
    """Enlarge a tensor and its copies by zeros, then by ``rows`` along the first dimension."""
    for name in names:
        old = tensors[name]
        wide = _corner(old, shape)
        if len(rows):
            wide[old.shape[0] :] = rows.to(wide)
        tensors[name] = wide
        if name in moments:
            moments[name] = _padded(moments[name], old.shape, shape)


def _padded(entries: Mapping[str, Tensor], old: Sequence[int], new: Sequence[int]) -> dict[str, Tensor]:
    return {key: _corner(m, new) if tuple(m.shape) == tuple(old) else m for key, m in entries.items()}


def _corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    wide = tensor.new_zeros(*shape)
    wide[tuple(slice(0, length) for length in tensor.shape)] = tensor
    return wide
