"""The shape of what each operation makes, from those of what it reads, with a check that all parts fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import (
    Activation,
    Affine,
    Binary,
    Choose,
    Clip,
    Concat,
    Constant,
    Conv,
    Embedding,
    GroupNorm,
    MatMul,
    Norm,
    Normalize,
    OneHot,
    Pool,
    Positive,
    Recurrent,
    Reduce,
    Reshape,
    Shape,
    Slice,
    Softmax,
    Squash,
    Transpose,
)

MOST = 2**24
"""Entries of one value, padding included. A policy's values are far smaller; what a hostile file claims is not."""

Shapes = Mapping[str, Shape]
PARAMETERS = {"elu": 1, "leaky_relu": 1, "hardtanh": 2, "softplus": 2}
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def need(holds: bool, what: str) -> None:
    """Raise ValueError with ``what`` unless it holds."""
    if not holds:
        raise ValueError(what)


@singledispatch
def shape_of(operation: Any, shapes: Shapes) -> Shape:
    """Return the shape of what an operation makes, after a check that all its parts fit.

    Raises:
        ValueError: They do not.
    """
    raise ValueError("unknown operation")


def _axis(axis: int, rank: int) -> int:
    need(0 <= axis < rank, f"axis {axis} of {rank}")
    return axis


def _fits(array: NDArray[Any] | None, shape: Shape, what: str) -> None:
    need(array is None or array.shape == shape, f"{what} needs shape {shape}")


def _spreads(shape: Shape, *arrays: NDArray[Any] | None) -> Shape:
    parts = [a.shape for a in arrays if a is not None]
    need(np.broadcast_shapes(shape, *parts) == shape, f"{parts} do not fit {shape}")
    return shape


@shape_of.register
def _normalize(operation: Normalize, shapes: Shapes) -> Shape:
    return _spreads(shapes[operation.source], operation.mean, operation.factor, operation.where)


@shape_of.register(Clip)
@shape_of.register(Squash)
def _bounded(operation: Clip | Squash, shapes: Shapes) -> Shape:
    return _spreads(shapes[operation.source], operation.low, operation.high)


@shape_of.register
def _one_hot(operation: OneHot, shapes: Shapes) -> Shape:
    need(all(n > 0 for n in operation.sizes), "empty parts")
    need(len(operation.starts) in (0, len(operation.sizes)), "a start for each part, or none")
    need(math.prod(shapes[operation.source]) == len(operation.sizes), "a size for each integer")
    return (sum(operation.sizes),)


@shape_of.register
def _embedding(operation: Embedding, shapes: Shapes) -> Shape:
    need(operation.table.values.ndim == 2, "the table needs two dimensions")
    return (*shapes[operation.source], operation.table.values.shape[1])


@shape_of.register
def _affine(operation: Affine, shapes: Shapes) -> Shape:
    need(operation.weight.values.ndim == 2, "the weight needs two dimensions")
    outputs, inputs = operation.weight.values.shape
    *others, last = shapes[operation.source]
    need(last == inputs, f"{inputs} inputs for {last}")
    _fits(operation.bias, (outputs,), "bias")
    _check_rounding(operation)
    return (*others, outputs)


def _check_rounding(operation: Affine | Conv) -> None:
    if operation.input_scale is not None:
        weight = operation.weight
        need(0.0 < operation.input_scale < math.inf, "the scale of inputs must be positive")
        need(weight.scale is not None and weight.bits <= 8, "rounded inputs need quantised weights of up to 8 bits")


@shape_of.register
def _conv(operation: Conv, shapes: Shapes) -> Shape:
    first, second, *kernel = operation.weight.values.shape
    channels, *places = shapes[operation.source]
    count, groups = len(places), operation.groups
    sizes = (operation.stride, operation.padding, operation.dilation)
    need(1 <= count <= 3 and len(kernel) == count and all(len(s) == count for s in sizes), "places do not fit")
    need(groups >= 1 and first % groups == 0, f"{first} channels in {groups} groups")
    inputs, outputs = (first, second * groups) if operation.transposed else (second * groups, first)
    need(channels == inputs, f"{inputs} channels for {channels}")
    _fits(operation.bias, (outputs,), "bias")
    _check_rounding(operation)
    need(min(*operation.stride, *operation.dilation) >= 1 and min(operation.padding) >= 0, "negative steps")
    extra = operation.extra or (0,) * count
    need(len(extra) == count and min(extra) >= 0, "extra places do not fit")
    spans = [d * (k - 1) + 1 for d, k in zip(operation.dilation, kernel, strict=True)]
    many = zip(places, operation.stride, operation.padding, spans, extra, strict=True)
    if operation.transposed:
        made = [(n - 1) * s - 2 * p + span + e for n, s, p, span, e in many]
    else:
        made = [_steps(n, s, p, span) for n, s, p, span, _ in many]
    padded = math.prod(n + 2 * p + span for n, p, span in zip(places, operation.padding, spans, strict=True))
    need(channels * padded <= MOST, "too much padding")
    return (outputs, *made)


def _steps(length: int, stride: int, padding: int, span: int) -> int:
    need(length + 2 * padding >= span, f"a window of {span} is longer than {length}")
    return (length + 2 * padding - span) // stride + 1


@shape_of.register
def _pool(operation: Pool, shapes: Shapes) -> Shape:
    channels, *places = shapes[operation.source]
    sizes = (operation.window, operation.stride, operation.padding)
    need(1 <= len(places) <= 3 and all(len(s) == len(places) for s in sizes), "places do not fit")
    for window, stride, padding in zip(*sizes, strict=True):
        need(window >= 1 and stride >= 1 and 0 <= 2 * padding <= window, "padding is at most half the window")
    made = (_steps(n, s, p, w) for n, w, s, p in zip(places, *sizes, strict=True))
    return (channels, *made)


@shape_of.register
def _activation(operation: Activation, shapes: Shapes) -> Shape:
    need(len(operation.parameters) in (0, PARAMETERS.get(operation.function, 0)), "parameters do not fit")
    return shapes[operation.source]


@shape_of.register
def _binary(operation: Binary, shapes: Shapes) -> Shape:
    sides = (operation.left, operation.right)
    return np.broadcast_shapes(*(shapes[x] if isinstance(x, str) else x.shape for x in sides))


@shape_of.register
def _norm(operation: Norm, shapes: Shapes) -> Shape:
    shape = shapes[operation.source]
    need(1 <= operation.dims <= len(shape), f"{operation.dims} of {len(shape)} dimensions")
    for array, what in ((operation.weight, "weight"), (operation.bias, "bias")):
        _fits(array, shape[-operation.dims :], what)
    return shape


@shape_of.register
def _group_norm(operation: GroupNorm, shapes: Shapes) -> Shape:
    shape = shapes[operation.source]
    need(operation.groups >= 1 and shape[0] % operation.groups == 0, "channels do not divide into the groups")
    for array, what in ((operation.weight, "weight"), (operation.bias, "bias")):
        _fits(array, shape[:1], what)
    return shape


@shape_of.register
def _softmax(operation: Softmax, shapes: Shapes) -> Shape:
    _axis(operation.axis, len(shapes[operation.source]))
    return shapes[operation.source]


@shape_of.register
def _matmul(operation: MatMul, shapes: Shapes) -> Shape:
    left, right = shapes[operation.left], shapes[operation.right]
    need(min(len(left), len(right)) >= 2 and left[-1] == right[-2], f"{left} times {right}")
    return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])


@shape_of.register
def _reduce(operation: Reduce, shapes: Shapes) -> Shape:
    shape = shapes[operation.source]
    axes = [_axis(axis, len(shape)) for axis in operation.axes]
    need(len(set(axes)) == len(axes) >= 1, "axes occur twice, or there is none")
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if operation.keep or i not in axes)


@shape_of.register
def _reshape(operation: Reshape, shapes: Shapes) -> Shape:
    shape = shapes[operation.result]
    need(math.prod(shape) == math.prod(shapes[operation.source]), "another number of entries")
    return shape


@shape_of.register
def _transpose(operation: Transpose, shapes: Shapes) -> Shape:
    shape = shapes[operation.source]
    need(sorted(operation.axes) == list(range(len(shape))), f"axes {operation.axes} of {len(shape)}")
    return tuple(shape[axis] for axis in operation.axes)


@shape_of.register
def _slice(operation: Slice, shapes: Shapes) -> Shape:
    shape = shapes[operation.source]
    axis = _axis(operation.axis, len(shape))
    need(0 <= operation.start < operation.stop <= shape[axis] and operation.step >= 1, "beyond the ends")
    return (*shape[:axis], len(range(operation.start, operation.stop, operation.step)), *shape[axis + 1 :])


@shape_of.register
def _concat(operation: Concat, shapes: Shapes) -> Shape:
    parts = [shapes[name] for name in operation.sources]
    need(bool(parts), "nothing to join")
    axis = _axis(operation.axis, len(parts[0]))
    around = {(*part[:axis], *part[axis + 1 :], len(part)) for part in parts}
    need(len(around) == 1, "parts do not fit each other")
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])


@shape_of.register
def _constant(operation: Constant, shapes: Shapes) -> Shape:
    return operation.value.shape


@shape_of.register
def _recurrent(operation: Recurrent, shapes: Shapes) -> Shape:
    parts, gates = (2 if operation.kind == "lstm" else 1), GATES[operation.kind]
    need(len(operation.memory) == len(operation.following) == parts, "memory does not fit")
    shape = shapes[operation.memory[0]]
    need(len(shape) == 1 and {shapes[name] for name in operation.memory} == {shape}, "memory does not fit")
    rows = gates * shape[0]
    need(len(shapes[operation.source]) == 1, "the input needs one dimension")
    _fits(operation.inner.values, (rows, *shapes[operation.source]), "inner")
    _fits(operation.outer.values, (rows, *shape), "outer")
    for bias in (operation.inner_bias, operation.outer_bias):
        _fits(bias, (rows,), "bias")
    return shape


@shape_of.register
def _choose(operation: Choose, shapes: Shapes) -> Shape:
    need(all(n > 0 for n in operation.sizes), "empty parts")
    need(math.prod(shapes[operation.source]) == sum(operation.sizes), "a choice for each entry")
    return (len(operation.sizes),)


@shape_of.register
def _positive(operation: Positive, shapes: Shapes) -> Shape:
    return shapes[operation.source]
