"""What each operation computes, in NumPy, for many observations at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy import windows
from prunerl.deploy.functions import F32, FUNCTIONS, sigmoid
from prunerl.deploy.program import (
    ALLOWED,
    Activation,
    Affine,
    Binary,
    Choose,
    Clip,
    Concat,
    Constant,
    Conv,
    Embedding,
    Floats,
    GroupNorm,
    MatMul,
    Matrix,
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

Values = dict[str, NDArray[Any]]
"""Values by name, shape (batch, *value)."""


def _normalize(op: Normalize, at: Values) -> NDArray[Any]:
    x = at[op.source]
    scaled = np.clip((x - op.mean) * op.factor, -F32(op.clip), F32(op.clip))
    return scaled if op.where is None else np.where(op.where, scaled, x)


def _one_hot(op: OneHot, at: Values) -> NDArray[Any]:
    whole = np.trunc(at[op.source]).reshape(len(at[op.source]), -1)
    if op.starts:
        whole = whole - np.asarray(op.starts, F32)
    return np.concatenate([whole[:, [i]] == np.arange(n) for i, n in enumerate(op.sizes)], 1).astype(F32)


def _embedding(op: Embedding, at: Values) -> NDArray[Any]:
    rows: NDArray[Any] = op.table.values[at[op.source].astype(np.int64)]
    return rows


def _rounded(x: NDArray[Any], scale: float) -> NDArray[np.int64]:
    """Round inputs to int8 as a layer with ``input_scale`` does: half to even, within ±127."""
    return np.clip(np.rint(x / F32(scale)), -127, 127).astype(np.int64)


def _integer_scale(weight: Matrix, input_scale: float) -> Floats:
    if weight.codes is None or weight.scale is None:
        raise ValueError("A layer with input_scale needs a quantised weight. Give its codes and scale, or no scale.")
    return (F32(input_scale) * weight.scale).astype(F32)


def _affine(op: Affine, at: Values) -> NDArray[Any]:
    x = at[op.source]
    if op.input_scale is None:
        made = x @ op.weight.values.T
    else:
        scale = _integer_scale(op.weight, op.input_scale)
        assert op.weight.codes is not None  # else there would be no scale
        made = (_rounded(x, op.input_scale) @ op.weight.codes.T.astype(np.int64)).astype(F32) * scale
    return made if op.bias is None else made + op.bias


def _conv(op: Conv, at: Values) -> NDArray[Any]:
    x = at[op.source]
    column = (-1, *[1] * (x.ndim - 2))
    if op.transposed:
        made = windows.transposed(op, x)
    elif op.input_scale is None:
        made = windows.convolved(op, x, op.weight.values)
    else:
        scale = _integer_scale(op.weight, op.input_scale)
        assert op.weight.codes is not None  # else there would be no scale
        sums = windows.convolved(op, _rounded(x, op.input_scale), op.weight.codes.astype(np.int64))
        made = sums.astype(F32) * scale.reshape(column)
    return made if op.bias is None else made + op.bias.reshape(column)


def _activation(op: Activation, at: Values) -> NDArray[Any]:
    return FUNCTIONS[op.function](at[op.source], *op.parameters)


def _binary(op: Binary, at: Values) -> NDArray[Any]:
    names = [v for v in (op.left, op.right) if isinstance(v, str)]
    shapes = [at[v].shape[1:] if isinstance(v, str) else v.shape for v in (op.left, op.right)]
    dims, batch = max(len(s) for s in shapes), len(at[names[0]])

    def operand(value: str | Floats) -> NDArray[Any]:
        if not isinstance(value, str):
            return value
        own = at[value]
        return own.reshape(batch, *[1] * (dims - own.ndim + 1), *own.shape[1:])

    function: Any = BINARY[op.function]
    made: NDArray[Any] = function(operand(op.left), operand(op.right))
    return made


BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power,
}  # fmt: skip


def _scaled(made: NDArray[Any], weight: Floats | None, bias: Floats | None, shape: Shape) -> NDArray[Any]:
    made = made if weight is None else made * weight.reshape(shape)
    return made if bias is None else made + bias.reshape(shape)


def _norm(op: Norm, at: Values) -> NDArray[Any]:
    x = at[op.source]
    axes = tuple(range(x.ndim - op.dims, x.ndim))
    away = x - x.mean(axes, keepdims=True) if op.kind == "layer" else x
    made = away / np.sqrt(np.square(away).mean(axes, keepdims=True) + F32(op.epsilon))
    return _scaled(made, op.weight, op.bias, x.shape[-op.dims :])


def _group_norm(op: GroupNorm, at: Values) -> NDArray[Any]:
    x = at[op.source]
    grouped = x.reshape(len(x), op.groups, -1)
    away = grouped - grouped.mean(2, keepdims=True)
    made = (away / np.sqrt(np.square(away).mean(2, keepdims=True) + F32(op.epsilon))).reshape(x.shape)
    return _scaled(made, op.weight, op.bias, (-1, *[1] * (x.ndim - 2)))


def _softmax(op: Softmax, at: Values) -> NDArray[Any]:
    x, axis = at[op.source], op.axis + 1
    below = x - x.max(axis, keepdims=True)
    if op.log:
        logarithms: NDArray[Any] = below - np.log(np.exp(below).sum(axis, keepdims=True))
        return logarithms
    made = np.exp(below)
    shares: NDArray[Any] = made / made.sum(axis, keepdims=True)
    return shares


def _matmul(op: MatMul, at: Values) -> NDArray[Any]:
    left, right = at[op.left], at[op.right]
    dims = max(left.ndim, right.ndim)
    left, right = (v.reshape(len(v), *[1] * (dims - v.ndim), *v.shape[1:]) for v in (left, right))
    made: NDArray[Any] = left @ right
    return made


def _reduce(op: Reduce, at: Values) -> NDArray[Any]:
    function: Any = {"mean": np.mean, "sum": np.sum, "max": np.max, "min": np.min}[op.function]
    made: NDArray[Any] = function(at[op.source], axis=tuple(a + 1 for a in op.axes), keepdims=op.keep)
    return made


def _slice(op: Slice, at: Values) -> NDArray[Any]:
    place = [slice(None)] * (op.axis + 1) + [slice(op.start, op.stop, op.step)]
    return at[op.source][tuple(place)]


def step(op: Recurrent, at: Values) -> tuple[NDArray[Any], ...]:
    """Compute the next memory of a recurrent layer, the first of which is its output."""
    before = [at[name] for name in op.memory]
    hidden = before[0]
    inward, again = at[op.source] @ op.inner.values.T, hidden @ op.outer.values.T
    inward = inward if op.inner_bias is None else inward + op.inner_bias
    again = again if op.outer_bias is None else again + op.outer_bias
    if op.kind == "lstm":
        enter, forget, new, leave = np.split(inward + again, 4, axis=1)
        cell = sigmoid(forget) * before[1] + sigmoid(enter) * np.tanh(new)
        return sigmoid(leave) * np.tanh(cell), cell
    if op.kind == "gru":
        reset, keep, new = np.split(inward, 3, axis=1)
        reset_again, keep_again, new_again = np.split(again, 3, axis=1)
        proposed = np.tanh(new + sigmoid(reset + reset_again) * new_again)
        kept = sigmoid(keep + keep_again)
        return ((1 - kept) * proposed + kept * hidden,)
    return (FUNCTIONS[op.kind.removeprefix("rnn_")](inward + again),)


def _choose(op: Choose, at: Values) -> NDArray[Any]:
    x = at[op.source]
    x = np.where(at[ALLOWED], x, -np.inf) if ALLOWED in at else x
    parts = np.split(x, np.cumsum(op.sizes)[:-1], axis=1)
    return np.stack([part.argmax(1) for part in parts], 1)


def _positive(op: Positive, at: Values) -> NDArray[Any]:
    x = at[op.source]
    if ALLOWED in at:
        pairs = at[ALLOWED].reshape(*x.shape, 2)
        x = np.where(pairs[..., 1], x, -np.inf)
        x = np.where(pairs[..., 0], x, np.inf)
    return x > 0


def _squash(op: Squash, at: Values) -> NDArray[Any]:
    made: NDArray[Any] = op.low + F32(0.5) * (np.tanh(at[op.source]) + 1) * (op.high - op.low)
    return made


RULES: dict[type, Callable[[Any, Values], NDArray[Any]]] = {
    Normalize: _normalize,
    OneHot: _one_hot,
    Embedding: _embedding,
    Affine: _affine,
    Conv: _conv,
    Activation: _activation,
    Binary: _binary,
    Norm: _norm,
    GroupNorm: _group_norm,
    Softmax: _softmax,
    MatMul: _matmul,
    Reduce: _reduce,
    Pool: lambda op, at: windows.pooled(op, at[op.source]),
    Reshape: lambda op, at: at[op.source],
    Transpose: lambda op, at: np.transpose(at[op.source], (0, *(a + 1 for a in op.axes))),
    Slice: _slice,
    Concat: lambda op, at: np.concatenate([at[name] for name in op.sources], op.axis + 1),
    Constant: lambda op, at: op.value,
    Choose: _choose,
    Positive: _positive,
    Clip: lambda op, at: np.clip(at[op.source], op.low, op.high),
    Squash: _squash,
}
"""How each operation but the recurrent ones computes its value."""
