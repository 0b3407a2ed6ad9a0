"""Compound operations as simple ones, so that a file format needs a form for few of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from prunerl.deploy.forms import FORMS, Arithmetic
from prunerl.deploy.program import (
    Activation,
    Affine,
    Binary,
    Clip,
    Floats,
    Function,
    GroupNorm,
    Norm,
    Normalize,
    OneHot,
    Operation,
    Program,
    Recurrent,
    Reduce,
    Reshape,
    Shape,
    Slice,
    Squash,
    makes,
)
from prunerl.errors import ExportError

SIMPLE = ("tanh", "sigmoid", "exp", "log", "sqrt", "gelu")
"""Functions that have no form by others here."""


def expand(program: Program, functions: Collection[str] = SIMPLE) -> Program:
    """Return a program that computes the same without norms, recurrent layers, normalisation, clipping and squashing.

    Args:
        program: Any program.
        functions: Names of the activations that may stay; the others are written by arithmetic and ``SIMPLE`` ones.

    Raises:
        ExportError: An activation has no simpler form.
    """
    written = _Written(dict(program.shapes), functions)
    for operation in program.operations:
        _expand(operation, written)
    return replace(program, operations=tuple(written.operations), shapes=written.shapes)


def one_hot_columns(operation: OneHot) -> tuple[list[int], list[float]]:
    """Return of each entry of the result which integer it looks at, and which number it must be for a 1."""
    starts = operation.starts or (0,) * len(operation.sizes)
    columns = [i for i, size in enumerate(operation.sizes) for _ in range(size)]
    numbers = [float(start + k) for start, size in zip(starts, operation.sizes, strict=True) for k in range(size)]
    return columns, numbers


@dataclass
class _Written:
    """The operations written so far."""

    shapes: dict[str, Shape]
    functions: Collection[str]
    operations: list[Operation] = field(default_factory=list)

    def fresh(self, shape: Shape) -> str:
        name = f"part_{len(self.shapes)}"
        while name in self.shapes:
            name += "_"
        self.shapes[name] = shape
        return name

    def binary(self, function: Arithmetic, left: str | ArrayLike, right: str | ArrayLike) -> str:
        a, b = _operand(left), _operand(right)
        shape = np.broadcast_shapes(*(self.shapes[x] if isinstance(x, str) else x.shape for x in (a, b)))
        name = self.fresh(shape)
        self.operations.append(Binary(a, b, name, function))
        return name

    def call(self, function: Function, source: str, *parameters: float) -> str:
        name = self.fresh(self.shapes[source])
        _expand(Activation(source, name, function, parameters), self)
        return name

    def reduce(self, source: str, axes: tuple[int, ...]) -> str:
        shape = tuple(1 if i in axes else n for i, n in enumerate(self.shapes[source]))
        name = self.fresh(shape)
        self.operations.append(Reduce(source, name, "mean", axes, keep=True))
        return name

    def reshape(self, source: str, shape: Shape) -> str:
        name = self.fresh(shape)
        self.operations.append(Reshape(source, name))
        return name

    def part(self, source: str, start: int, stop: int) -> str:
        name = self.fresh((stop - start,))
        self.operations.append(Slice(source, name, 0, start, stop))
        return name

    def named(self, source: str, result: str) -> None:
        """Let ``result`` be the value that was just written as ``source``."""
        last = self.operations[-1]
        if makes(last) == (source,):
            del self.shapes[source]
            self.operations[-1] = replace(last, result=result)  # type: ignore[arg-type]
        else:
            self.operations.append(Reshape(source, result))


def _operand(value: str | ArrayLike) -> str | Floats:
    return value if isinstance(value, str) else np.asarray(value, dtype=np.float32)


@singledispatch
def _expand(operation: Any, written: _Written) -> None:
    written.operations.append(operation)


@_expand.register
def _normalize(operation: Normalize, written: _Written) -> None:
    centred = written.binary("sub", operation.source, operation.mean)
    scaled = written.binary("mul", centred, operation.factor)
    clipped = written.binary("min", written.binary("max", scaled, -operation.clip), operation.clip)
    if operation.where is not None:
        taken = operation.where.astype(np.float32)
        passed = written.binary("mul", operation.source, 1.0 - taken)
        clipped = written.binary("add", written.binary("mul", clipped, taken), passed)
    written.named(clipped, operation.result)


@_expand.register
def _norm(operation: Norm, written: _Written) -> None:
    rank = len(written.shapes[operation.source])
    axes = tuple(range(rank - operation.dims, rank))
    scaled = _normalized(operation.source, axes, operation.epsilon, operation.kind == "layer", written)
    written.named(_affine(scaled, operation.weight, operation.bias, written), operation.result)


@_expand.register
def _group_norm(operation: GroupNorm, written: _Written) -> None:
    channels, *places = shape = written.shapes[operation.source]
    grouped = written.reshape(operation.source, (operation.groups, channels // operation.groups, *places))
    scaled = _normalized(grouped, tuple(range(1, len(shape) + 1)), operation.epsilon, True, written)
    column = (channels, *(1,) * len(places))
    weight, bias = (None if x is None else x.reshape(column) for x in (operation.weight, operation.bias))
    written.named(_affine(written.reshape(scaled, shape), weight, bias, written), operation.result)


def _normalized(source: str, axes: tuple[int, ...], epsilon: float, centred: bool, written: _Written) -> str:
    if centred:
        source = written.binary("sub", source, written.reduce(source, axes))
    power = written.reduce(written.binary("mul", source, source), axes)
    deviation = written.call("sqrt", written.binary("add", power, epsilon))
    return written.binary("div", source, deviation)


def _affine(source: str, weight: Floats | None, bias: Floats | None, written: _Written) -> str:
    source = source if weight is None else written.binary("mul", source, weight)
    return source if bias is None else written.binary("add", source, bias)


@_expand.register
def _recurrent(operation: Recurrent, written: _Written) -> None:
    hidden = operation.memory[0]
    units = written.shapes[hidden][0]
    inner = _gates(operation.source, operation, "inner", written)
    outer = _gates(hidden, operation, "outer", written)
    if operation.kind == "lstm":
        both = written.binary("add", inner, outer)
        i, f, g, o = (written.part(both, n * units, (n + 1) * units) for n in range(4))
        kept = written.binary("mul", written.call("sigmoid", f), operation.memory[1])
        taken = written.binary("mul", written.call("sigmoid", i), written.call("tanh", g))
        written.named(written.binary("add", kept, taken), operation.following[1])
        shown = written.call("tanh", operation.following[1])
        result = written.binary("mul", written.call("sigmoid", o), shown)
    elif operation.kind == "gru":
        (ri, zi, ni), (rh, zh, nh) = (
            [written.part(gates, n * units, (n + 1) * units) for n in range(3)] for gates in (inner, outer)
        )
        reset = written.call("sigmoid", written.binary("add", ri, rh))
        update = written.call("sigmoid", written.binary("add", zi, zh))
        new = written.call("tanh", written.binary("add", ni, written.binary("mul", reset, nh)))
        taken = written.binary("mul", written.binary("sub", 1.0, update), new)
        result = written.binary("add", taken, written.binary("mul", update, hidden))
    else:
        function: Function = "tanh" if operation.kind == "rnn_tanh" else "relu"
        result = written.call(function, written.binary("add", inner, outer))
    written.named(result, operation.following[0])


def _gates(source: str, operation: Recurrent, side: Literal["inner", "outer"], written: _Written) -> str:
    weight = operation.inner if side == "inner" else operation.outer
    bias = operation.inner_bias if side == "inner" else operation.outer_bias
    name = written.fresh((weight.values.shape[0],))
    written.operations.append(Affine(source, name, weight, bias))
    return name


@_expand.register
def _clip(operation: Clip, written: _Written) -> None:
    raised = written.binary("max", operation.source, operation.low)
    written.named(written.binary("min", raised, operation.high), operation.result)


@_expand.register
def _squash(operation: Squash, written: _Written) -> None:
    half = written.binary("mul", written.binary("add", written.call("tanh", operation.source), 1.0), 0.5)
    scaled = written.binary("mul", half, operation.high - operation.low)
    written.named(written.binary("add", scaled, operation.low), operation.result)


@_expand.register
def _activation(operation: Activation, written: _Written) -> None:
    if operation.function in written.functions:
        written.operations.append(operation)
        return
    if operation.function not in FORMS:
        raise ExportError(
            f"Value {operation.result!r}: this format has no {operation.function}, and no simpler form of it is known. "
            "Choose another format, or another activation."
        )
    result = FORMS[operation.function](written, operation.source, *operation.parameters)
    written.named(result, operation.result)
