"""The layers of a Keras model as PyTorch modules, channels last as in Keras, built from plain configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunerl.agents.keras_functions import ACTIVATIONS, Function, channels_first, channels_last
from prunerl.errors import LoadError

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
        mean, variance = (tensors[k] if k in tensors else numbers(node, k) for k in ("mean", "variance"))
        self.mean, self.deviation = mean, variance.sqrt().clamp_min(1e-7)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.device)) / self.deviation.to(x.device)


class Plain(nn.Module):
    """A layer without weights."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


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


def numbers(node: Node, key: str) -> Tensor:
    """Return one or several numbers of the configuration."""
    try:
        return torch.tensor(node.config[key], dtype=torch.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise refusal(node, f"has {key}={str(node.config.get(key))[:80]}, which are not numbers") from error


def sizes(node: Node, key: str, count: int) -> tuple[int, ...]:
    """Return ``count`` whole numbers of the configuration, one of which may stand for all."""
    value = node.config.get(key, 1)
    found = tuple(value) if isinstance(value, list | tuple) else (value,) * count
    if len(found) != count or any(type(n) is not int or not 1 <= n <= LARGEST for n in found):
        raise refusal(node, f"has {key}={str(value)[:80]}; {count} whole numbers from 1 to {LARGEST} were expected")
    return found
