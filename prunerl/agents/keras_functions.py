"""What the layers of Keras without weights compute, channels last, with Keras' defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Tensor]


def identity(x: Tensor) -> Tensor:
    """Return the input."""
    return x


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, -1)


ACTIVATIONS: Mapping[str, Function] = {
    "linear": identity,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "hard_tanh": F.hardtanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "exponential": torch.exp,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}
"""Keras' activations by name, with its defaults where PyTorch's differ."""


def flatten(x: Tensor) -> Tensor:
    """Keep the batch and flatten what remains, channels last."""
    return x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Give each observation another shape."""
    return flatten(x) if len(shape) == 1 else x.reshape(-1, *shape)


def permute(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """Reorder dimensions, counted from 1 without the batch."""
    return x.permute(0, *dims)


def pool(x: Tensor, *, function: Function, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pool over space."""
    return channels_last(function(channels_first(x), size, stride))


def global_pool(x: Tensor, *, largest: bool) -> Tensor:
    """Pool all of space into one number a channel."""
    space = list(range(1, x.dim() - 1))
    return x.amax(space) if largest else x.mean(space)


def scaled(x: Tensor, *, scale: float, offset: float) -> Tensor:
    """Return ``x · scale + offset``."""
    return x * scale + offset


def clipped_relu(x: Tensor, *, slope: float, largest: float | None) -> Tensor:
    """Return a leaky ReLU with an upper limit."""
    y = F.leaky_relu(x, slope) if slope else F.relu(x)
    return y if largest is None else y.clamp(max=largest)


def fold(*inputs: Any, function: Function) -> Tensor:
    """Apply a function of two arguments from left to right."""
    result = inputs[0]
    for other in inputs[1:]:
        result = function(result, other)
    return result  # type: ignore[no-any-return]


def average(*inputs: Tensor) -> Tensor:
    """Return the mean of several values."""
    return fold(*inputs, function=torch.add) / len(inputs)


def concatenate(*inputs: Tensor, axis: int) -> Tensor:
    """Join values along an axis."""
    return torch.cat(inputs, dim=axis)


def mean(x: Tensor, *, axis: int, keepdims: bool) -> Tensor:
    """Return the mean along an axis."""
    return x.mean(axis, keepdim=keepdims)


def channels_first(x: Tensor) -> Tensor:
    """Move the last dimension behind the batch."""
    return x if x.dim() < 3 else x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """Move the dimension behind the batch to the end."""
    return x if x.dim() < 3 else x.movedim(1, -1)
