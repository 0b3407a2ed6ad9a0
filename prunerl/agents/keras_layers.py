"""The layers of a Keras model as PyTorch modules, channels last as in Keras, built from plain configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunerl.errors import LoadError

Function = Callable[..., Tensor]

LARGEST = 4096
"""Largest stride, dilation or pool that is believed: a file could otherwise ask for any amount of memory."""


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer or of an operation.

    Attributes:
        name: The layer's name in Keras.
        kind: Its class, with ``ops.`` before it where it is an operation without weights such as ``a + b``.
        config: Its configuration, as it stands in the file.
        inputs: Names of the nodes that it reads, or numbers.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str | float, ...]


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


class Dense(nn.Module):
    """``activation(x Wᵀ + b)``; the kernel is held as PyTorch has it, (outputs, inputs)."""

    kernel: Tensor

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _hold(self, tensors)
        self.activation = activation(node)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.linear(x, self.kernel, getattr(self, "bias", None)))


class Conv(nn.Module):
    """A convolution over (batch, *space, channels); the kernel is (outputs, inputs, *space)."""

    kernel: Tensor

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _hold(self, tensors)
        space = self.kernel.dim() - 2
        self.convolve: Function = F.conv1d if space == 1 else F.conv2d
        only(node, "data_format", "channels_last")
        self.same = choice(node, "padding", ("valid", "same")) == "same"
        self.stride = sizes(node, "strides", space)
        self.dilation = sizes(node, "dilation_rate", space)
        self.groups = sizes(node, "groups", 1)[0]
        self.activation = activation(node)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_first(x)
        if self.same:
            x = F.pad(x, self._margins(x.shape[2:]))
        bias = getattr(self, "bias", None)
        x = self.convolve(x, self.kernel, bias, stride=self.stride, dilation=self.dilation, groups=self.groups)
        return self.activation(channels_last(x))

    def _margins(self, lengths: Sequence[int]) -> list[int]:
        """Return the zeros before and after each dimension, last one first: the odd one comes after, as in Keras."""
        margins: list[int] = []
        for size, kernel, stride, dilation in zip(
            lengths, self.kernel.shape[2:], self.stride, self.dilation, strict=True
        ):
            total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            margins = [total // 2, total - total // 2, *margins]
        return margins


class BatchNormalization(nn.Module):
    """Normalise each channel by the statistics of training."""

    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _hold(self, {n: t for n, t in tensors.items() if not n.startswith("moving_")})
        for name in ("moving_mean", "moving_variance"):
            self.register_buffer(name, tensors[name])
        self.epsilon = number(node, "epsilon", 1e-3)
        if node.config.get("renorm"):
            raise refusal(node, "uses renorm")

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = getattr(self, "gamma", None), getattr(self, "beta", None)
        y = F.batch_norm(channels_first(x), self.moving_mean, self.moving_variance, scale, shift, eps=self.epsilon)
        return channels_last(y)


class LayerNormalization(nn.Module):
    """Normalise over the last dimension."""

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        _hold(self, tensors)
        self.epsilon = number(node, "epsilon", 1e-3)
        if node.config.get("rms_scaling"):
            raise refusal(node, "uses rms_scaling")

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = getattr(self, "gamma", None), getattr(self, "beta", None)
        return F.layer_norm(x, x.shape[-1:], scale, shift, eps=self.epsilon)


class Normalization(nn.Module):
    """Subtract a mean and divide by a deviation that were adapted to data; they are not trained."""

    def __init__(self, node: Node, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        if node.config.get("invert") or node.config.get("axis") not in (-1, [-1], 1, [1], None):
            raise refusal(node, "is inverted or works on several axes")
        # No buffers: they belong to the observation, and nothing may be removed from them.
        self.mean, self.deviation = tensors["mean"], tensors["variance"].sqrt().clamp_min(1e-7)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.device)) / self.deviation.to(x.device)


class Plain(nn.Module):
    """A layer without weights."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


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


def activation(node: Node) -> Function:
    """Return a layer's activation.

    Raises:
        LoadError: It is not one of Keras' own that are known here.
    """
    name = node.config.get("activation") or "linear"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise refusal(node, f"has the activation {str(name)[:80]!r}, which is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refusal(node: Node, why: str) -> LoadError:
    """Build the error for a layer that has no counterpart here."""
    return LoadError(
        f"Layer {node.name!r} of class {node.kind!r} {why}. Rebuild the policy from the layers that are supported "
        "(docs/keras.md), copy the weights over with set_weights, and save it again."
    )


def _hold(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def choice(node: Node, key: str, choices: tuple[str, ...]) -> str:
    """Return a setting that is one of ``choices``, the first by default."""
    value = node.config.get(key) or choices[0]
    if value not in choices:
        raise refusal(node, f"has {key}={str(value)[:80]!r}; {' and '.join(choices)} are known")
    return str(value)


def only(node: Node, key: str, value: str) -> None:
    """Refuse a layer whose setting is another one."""
    choice(node, key, (value,))


def number(node: Node, key: str, default: float) -> float:
    """Return a finite number of the configuration."""
    value = node.config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refusal(node, f"has {key}={str(value)[:80]}, which is not a number")
    return float(value)


def sizes(node: Node, key: str, count: int) -> tuple[int, ...]:
    """Return ``count`` whole numbers of the configuration, one of which may stand for all."""
    value = node.config.get(key, 1)
    found = tuple(value) if isinstance(value, list | tuple) else (value,) * count
    if len(found) != count or any(type(n) is not int or not 1 <= n <= LARGEST for n in found):
        raise refusal(node, f"has {key}={str(value)[:80]}; {count} whole numbers from 1 to {LARGEST} were expected")
    return found
