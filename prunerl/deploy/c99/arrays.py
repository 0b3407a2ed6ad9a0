"""Operations without weights on whole arrays, as loops with constant bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunerl.deploy.c99.step import Context, Step
from prunerl.deploy.c99.text import Table, nest, number, place, strides
from prunerl.deploy.program import (
    Binary,
    Concat,
    Constant,
    MatMul,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Transpose,
)

BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "max": "{0} > {1} || isnan({0}) ? {0} : {1}",
    "min": "{0} < {1} || isnan({0}) ? {0} : {1}",
    "pow": "powf({0}, {1})",
}


def binary(op: Binary, context: Context) -> tuple[Step, ...]:
    """Combine two operands entry by entry, the shorter one repeated; the maximum of NaN and a number is NaN."""
    shape, n, target = context.shape(op.result), context.size(op.result), context.names[op.result]
    flat = all(isinstance(o, str) and context.shape(o) == shape for o in (op.left, op.right))
    over = (n,) if flat else shape
    words, tables, reads = [], [], []
    for what, operand in (("left", op.left), ("right", op.right)):
        if isinstance(operand, str):
            reads.append(operand)
            own = over if flat else context.shape(operand)
            words.append(f"{context.names[operand]}[{place(over, repeated(own, over))}]")
        elif operand.size == 1:
            words.append(number(operand.reshape(-1)[0]))
        else:
            tables.append(Table(context.table(op.result, what), operand.astype(np.float32)))
            words.append(f"{tables[-1].name}[{place(over, repeated(operand.shape, over))}]")
    lines = nest(over, [f"{target}[{place(over, strides(over))}] = {BINARY[op.function].format(*words)};"])
    alike = all(context.size(name) == n for name in reads)
    return (Step(tuple(lines), tuple(reads), {op.result: n}, tables=tuple(tables), alike=alike),)


def repeated(shape: Sequence[int], over: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array that is repeated to the shape ``over``: 0 where it is.

    >>> repeated((3, 1), (2, 3, 4))
    (0, 1, 0)
    """
    own = (0,) * (len(over) - len(shape)) + strides(shape)
    wide = (1,) * (len(over) - len(shape)) + tuple(shape)
    return tuple(step if length != 1 else 0 for step, length in zip(own, wide, strict=True))


def softmax(op: Softmax, context: Context) -> tuple[Step, ...]:
    """Subtract the largest entry, then divide by the sum of the exponentials."""
    shape, source, target = context.shape(op.source), context.names[op.source], context.names[op.result]
    axis = op.axis % len(shape)
    inner = math.prod(shape[axis + 1 :])
    outer = (math.prod(shape[:axis]), inner)
    start = place(outer, (shape[axis] * inner, 1))
    at, loop = f"{start} + k * {inner}", f"for (int32_t k = 0; k < {shape[axis]}; k++) {{"
    last = f"{target}[{at}] = " + (f"{source}[{at}] - most - sum;" if op.log else f"expf({source}[{at}] - most) / sum;")
    body = [
        f"float most = {source}[{start}], sum = 0.0f;",
        loop,
        f"most = {source}[{at}] > most ? {source}[{at}] : most;",
        "}",
        loop,
        f"sum += expf({source}[{at}] - most);",
        "}",
        *(["sum = logf(sum);"] if op.log else []),
        loop,
        last,
        "}",
    ]
    lines = ("{", *nest(outer, body), "}")
    return (Step(lines, (op.source,), {op.result: context.size(op.result)}, alike=True),)


def matmul(op: MatMul, context: Context) -> tuple[Step, ...]:
    """Multiply matrices, leading dimensions repeated."""
    left, right, shape = context.shape(op.left), context.shape(op.right), context.shape(op.result)
    a, b = left if len(left) > 1 else (1, *left), right if len(right) > 1 else (*right, 1)
    lead = shape[: len(shape) - (len(left) > 1) - (len(right) > 1)]
    rows, inner, columns = a[-2], a[-1], b[-1]
    over = (*lead, rows, columns)

    def steps(own: Sequence[int]) -> tuple[int, ...]:
        return tuple(s * own[-2] * own[-1] for s in repeated(own[:-2], lead))

    ats = (place(over, (*steps(a), inner, 0)), place(over, (*steps(b), 0, 1)), place(over, strides(over)))
    x, y, target = (context.names[n] for n in (op.left, op.right, op.result))
    body = [
        "float sum = 0.0f;",
        f"for (int32_t k = 0; k < {inner}; k++) {{",
        f"sum += {x}[{ats[0]} + k] * {y}[{ats[1]} + k * {columns}];",
        "}",
        f"{target}[{ats[2]}] = sum;",
    ]
    lines = ("{", *nest(over, body), "}")
    macs = math.prod(over) * inner
    return (Step(lines, (op.left, op.right), {op.result: context.size(op.result)}, macs=macs),)


def reduce(op: Reduce, context: Context) -> tuple[Step, ...]:
    """Reduce over axes; the largest and the smallest of numbers with NaN is NaN."""
    shape, source, target = context.shape(op.source), context.names[op.source], context.names[op.result]
    axes, steps = sorted(axis % len(shape) for axis in op.axes), strides(shape)
    kept = [d for d in range(len(shape)) if d not in axes]
    over, within = [shape[d] for d in kept], [shape[d] for d in axes]
    start = place(over, [steps[d] for d in kept])
    at = f"{start} + {place(within, [steps[d] for d in axes], letter='k')}"
    if op.function in ("max", "min"):
        sign = ">" if op.function == "max" else "<"
        first, add = f"{source}[{start}]", f"total = v {sign} total || isnan(v) ? v : total;"
    else:
        first, add = "0.0f", "total += v;"
    mean = f" / {number(math.prod(within))}" if op.function == "mean" else ""
    body = [
        f"float total = {first};",
        *nest(within, [f"const float v = {source}[{at}];", add], letter="k"),
        f"{target}[{place(over, strides(over))}] = total{mean};",
    ]
    lines = ("{", *nest(over, body), "}")
    return (Step(lines, (op.source,), {op.result: context.size(op.result)}),)


def reshape(op: Reshape, context: Context) -> tuple[Step, ...]:
    """Give the same entries another name."""
    return (Step((), (op.source,), {op.result: context.size(op.result)}, alias=True),)


def transpose(op: Transpose, context: Context) -> tuple[Step, ...]:
    """Copy in another order."""
    shape, own = context.shape(op.result), strides(context.shape(op.source))
    return _copy(op, context, place(shape, [own[axis] for axis in op.axes]), shape)


def cut(op: Slice, context: Context) -> tuple[Step, ...]:
    """Copy a part."""
    shape, own = context.shape(op.result), list(strides(context.shape(op.source)))
    axis = op.axis % len(shape)
    start = (op.start % context.shape(op.source)[axis] if op.start < 0 else op.start) * own[axis]
    own[axis] *= op.step
    return _copy(op, context, place(shape, own, start), shape)


def _copy(op: Transpose | Slice, context: Context, at: str, shape: tuple[int, ...]) -> tuple[Step, ...]:
    source, target = context.names[op.source], context.names[op.result]
    lines = nest(shape, [f"{target}[{place(shape, strides(shape))}] = {source}[{at}];"])
    return (Step(tuple(lines), (op.source,), {op.result: context.size(op.result)}),)


def concat(op: Concat, context: Context) -> tuple[Step, ...]:
    """Copy one after another."""
    shape = context.shape(op.result)
    axis, steps, lines, start = op.axis % len(shape), strides(shape), [], 0
    for source in op.sources:
        own = context.shape(source)
        at = place(own, steps, start * steps[axis])
        lines += nest(own, [f"{context.names[op.result]}[{at}] = {context.names[source]}[{place(own, strides(own))}];"])
        start += own[axis]
    return (Step(tuple(lines), op.sources, {op.result: context.size(op.result)}),)


def constant(op: Constant, context: Context) -> tuple[Step, ...]:
    """Name a table."""
    table = Table(context.table(op.result, "value"), op.value.astype(np.float32))
    return (Step((), (), {op.result: context.size(op.result)}, tables=(table,), constant=True),)
