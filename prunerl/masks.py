"""Hold single weights at zero while an agent trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunerl.types import Masks


def hold(optimizer: Optimizer, parameters: Mapping[str, Tensor], masks: Masks) -> RemovableHandle:
    """Keep masked weights at exactly zero after every step of ``optimizer``, until the handle is removed.

    The weights and the optimizer's moments are multiplied by the mask: momentum alone would revive them.

    Args:
        optimizer: The live optimizer.
        parameters: Parameter name → the live parameter.
        masks: Parameter name → bool mask, True = keep.

    Returns:
        A handle whose ``remove()`` ends it.
    """
    pairs = [(parameters[name], mask.to(parameters[name].dtype)) for name, mask in masks.items()]

    @torch.no_grad()
    def enforce(optimizer: Optimizer, *_: Any) -> None:
        values: list[Tensor] = []
        factors: list[Tensor] = []
        for parameter, factor in pairs:
            moments = [v for v in optimizer.state.get(parameter, {}).values() if _shaped_like(v, parameter)]
            values += [parameter, *moments]
            factors += [factor] * (1 + len(moments))
        if values:
            torch._foreach_mul_(values, factors)

    enforce(optimizer)
    return optimizer.register_step_post_hook(enforce)


def _shaped_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def apply(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the tensors with masked entries set to zero."""
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in tensors.items()}
