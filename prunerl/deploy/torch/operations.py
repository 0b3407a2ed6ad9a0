"""Each simple operation of a program in PyTorch, for batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunerl.deploy.expand import one_hot_columns
from prunerl.deploy.program import (
    ALLOWED,
    OBSERVATION,
    Activation,
    Affine,
    Binary,
    Choose,
    Concat,
    Constant,
    Conv,
    Embedding,
    MatMul,
    OneHot,
    Pool,
    Positive,
    Reduce,
    Reshape,
    Shape,
    Slice,
    Softmax,
    Transpose,
)
from prunerl.errors import ExportError


@dataclass(frozen=True)
class Step:
    """What an operation is computed from: the values so far, its weights, and the shape of its result."""

    values: Mapping[str, Tensor]
    weight: Callable[[str], Tensor]
    shape: Shape


@singledispatch
def apply(operation: Any, step: Step) -> Tensor:
    """Return the value that an operation makes, shape (batch, *shape).

    Raises:
        ExportError: There is no form of it.
    """
    raise ExportError(f"PyTorch has no form of {type(operation).__name__} (value {operation.result!r}).")


@apply.register
def _affine(operation: Affine, step: Step) -> Tensor:
    source = step.values[operation.source]
    if operation.input_scale is not None:
        source = _rounded(source, operation.input_scale)
    bias = None if operation.bias is None else step.weight("bias")
    return F.linear(source, step.weight("weight"), bias)


@apply.register
def _conv(operation: Conv, step: Step) -> Tensor:
    source = step.values[operation.source]
    if operation.input_scale is not None:
        source = _rounded(source, operation.input_scale)
    bias = None if operation.bias is None else step.weight("bias")
    places = len(operation.stride)
    numbers = (step.weight("weight"), bias, operation.stride, operation.padding)
    if operation.transposed:
        function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[places - 1]
        extra = operation.extra or (0,) * places
        return function(source, *numbers, extra, operation.groups, operation.dilation)  # type: ignore[no-any-return]
    function = (F.conv1d, F.conv2d, F.conv3d)[places - 1]
    return function(source, *numbers, operation.dilation, operation.groups)  # type: ignore[no-any-return]


def _rounded(source: Tensor, scale: float) -> Tensor:
    return torch.clamp(torch.round(source / scale), -127, 127) * scale


@apply.register
def _activation(operation: Activation, step: Step) -> Tensor:
    return FUNCTIONS[operation.function](step.values[operation.source], *operation.parameters)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "neg": torch.neg,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "softsign": F.softsign,
    "mish": F.mish,
    "selu": F.selu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "reciprocal": torch.reciprocal,
    "log_sigmoid": F.logsigmoid,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "pow": torch.pow,
}


@apply.register
def _binary(operation: Binary, step: Step) -> Tensor:
    operands = {side: getattr(operation, side) for side in ("left", "right")}
    rank = max(step.values[x].ndim - 1 if isinstance(x, str) else x.ndim for x in operands.values())
    left, right = (
        _wide(step.values[x], rank) if isinstance(x, str) else step.weight(side) for side, x in operands.items()
    )
    return _ARITHMETIC[operation.function](left, right)


def _wide(value: Tensor, rank: int) -> Tensor:
    """Return a value with ``rank`` dimensions behind the batch, new ones of length 1 first."""
    return value.reshape(value.shape[0], *(1,) * (rank + 1 - value.ndim), *value.shape[1:])


@apply.register
def _matmul(operation: MatMul, step: Step) -> Tensor:
    left, right = step.values[operation.left], step.values[operation.right]
    rank = max(left.ndim, right.ndim) - 1
    return torch.matmul(_wide(left, rank), _wide(right, rank))


@apply.register
def _softmax(operation: Softmax, step: Step) -> Tensor:
    source = step.values[operation.source]
    function = F.log_softmax if operation.log else F.softmax
    return function(source, dim=operation.axis + 1)


@apply.register
def _reduce(operation: Reduce, step: Step) -> Tensor:
    source = step.values[operation.source]
    function: Any = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}[operation.function]
    axes = [axis + 1 for axis in operation.axes]
    return function(source, dim=axes, keepdim=operation.keep)  # type: ignore[no-any-return]


@apply.register
def _pool(operation: Pool, step: Step) -> Tensor:
    places = len(operation.window) - 1
    sizes = (operation.window, operation.stride, operation.padding)
    source = step.values[operation.source]
    if operation.function == "max":
        return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[places](source, *sizes)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[places]
    return function(source, *sizes, count_include_pad=operation.counted)  # type: ignore[no-any-return]


@apply.register
def _reshape(operation: Reshape, step: Step) -> Tensor:
    return step.values[operation.source].reshape(-1, *step.shape)


@apply.register
def _transpose(operation: Transpose, step: Step) -> Tensor:
    source = step.values[operation.source]
    return source.permute(0, *(axis + 1 for axis in operation.axes))


@apply.register
def _slice(operation: Slice, step: Step) -> Tensor:
    source = step.values[operation.source]
    parts: list[Any] = [slice(None)] * source.ndim
    parts[operation.axis + 1] = slice(operation.start, operation.stop, operation.step)
    return source[tuple(parts)]


@apply.register
def _concat(operation: Concat, step: Step) -> Tensor:
    sources = [step.values[name] for name in operation.sources]
    return torch.cat(sources, dim=operation.axis + 1)


@apply.register
def _constant(operation: Constant, step: Step) -> Tensor:
    batch = step.values[OBSERVATION].shape[0]
    return step.weight("value").expand(batch, *step.shape)


@apply.register
def _one_hot(operation: OneHot, step: Step) -> Tensor:
    columns, numbers = one_hot_columns(operation)
    flat = step.values[operation.source].reshape(-1, len(operation.sizes))
    return (flat[:, torch.tensor(columns)] == torch.tensor(numbers)).float()


@apply.register
def _embedding(operation: Embedding, step: Step) -> Tensor:
    return step.weight("table")[step.values[operation.source].long()]


@apply.register
def _choose(operation: Choose, step: Step) -> Tensor:
    source = step.values[operation.source].reshape(-1, sum(operation.sizes))
    if ALLOWED in step.values:
        source = source.masked_fill(~step.values[ALLOWED].bool(), -torch.inf)
    best = [part.argmax(dim=1) for part in torch.split(source, list(operation.sizes), dim=1)]
    return torch.stack(best, dim=1).float()


@apply.register
def _positive(operation: Positive, step: Step) -> Tensor:
    source = step.values[operation.source]
    chosen = source > 0
    if ALLOWED in step.values:
        zero, one = step.values[ALLOWED].bool().reshape(*source.shape, 2).unbind(dim=-1)
        chosen = (chosen & one) | ~zero
    return chosen.float()
