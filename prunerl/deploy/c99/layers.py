"""Layers with weights that are no convolutions, activations and normalisations, as steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from prunerl.deploy.c99 import functions, kernels, matrix
from prunerl.deploy.c99.matrix import Factor
from prunerl.deploy.c99.step import Context, Step
from prunerl.deploy.c99.text import Table, each, number
from prunerl.deploy.program import Activation, Affine, Embedding, GroupNorm, Norm, Recurrent


def affine(op: Affine, context: Context) -> tuple[Step, ...]:
    """Multiply by the weights; where the inputs are rounded, that is a step before."""
    source, target = context.names[op.source], context.names[op.result]
    columns = op.weight.values.shape[1]
    positions = context.size(op.source) // columns
    factor = Factor(op.weight, op.bias, op.result, input_scale=op.input_scale)
    if op.input_scale is None:
        step = matrix.multiply(factor, context, target, source, positions)
        return (replace(step, reads=(op.source,), makes={op.result: context.size(op.result)}),)
    rounded = f"{op.result} rounded"
    padded = columns + (-columns % 4 if matrix.form_of(factor, context) == "dense" else 0)
    step = matrix.multiply(factor, context, target, f"{target}_rounded", positions)
    return (
        quantize(context, op.source, rounded, f"{target}_rounded", op.input_scale, (positions, columns, padded)),
        replace(step, reads=(rounded,), makes={op.result: context.size(op.result)}),
    )


def quantize(
    context: Context, source: str, rounded: str, target: str, scale: float, sizes: tuple[int, int, int]
) -> Step:
    """Round a value to whole numbers, (positions, columns), each position padded with zeros."""
    positions, columns, padded = sizes
    name, at = f"{context.name}_quantize", context.names[source]
    if positions == 1 or padded == columns:
        call = f"{name}({target}, {at}, {number(scale)}, {positions * columns}, {positions * padded});"
    else:
        call = f"{name}({target} + i0 * {padded}, {at} + i0 * {columns}, {number(scale)}, {columns}, {padded});"
    return Step(
        lines=(call,) if positions == 1 or padded == columns else each(positions, [call]),
        reads=(source,),
        makes={rounded: positions * padded},
        whole=frozenset((rounded,)),
        kernels=(kernels.QUANTIZE,),
    )


def embedding(op: Embedding, context: Context) -> tuple[Step, ...]:
    """Copy rows of the table; a number that is no row, or NaN, is the nearest one, or row 0."""
    entries, width = op.table.values.shape
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    table = Table(context.table(op.result, "table"), op.table.values.astype(np.float32))
    last = number(entries - 1)
    body = [
        f"const float v = {source}[i0];",
        f"const int32_t k = v > 0.0f ? (v < {last} ? (int32_t)v : {entries - 1}) : 0;",
        f"for (int32_t i1 = 0; i1 < {width}; i1++) {{",
        f"{target}[i0 * {width} + i1] = {table.name}[k * {width} + i1];",
        "}",
    ]
    return (Step(each(n, body), (op.source,), {op.result: context.size(op.result)}, tables=(table,)),)


def activation(op: Activation, context: Context) -> tuple[Step, ...]:
    """Apply a function to each entry."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    expression = functions.RULES[op.function](op.parameters, context.tanh)
    lines = each(n, [f"const float v = {source}[i0];", f"{target}[i0] = {expression};"])
    used = functions.tanh_kernels(lines, context.tanh)
    return (Step(lines, (op.source,), {op.result: n}, kernels=used, alike=True),)


def norm(op: Norm, context: Context) -> tuple[Step, ...]:
    """Normalise over the last dimensions."""
    shape = context.shape(op.source)
    width = math.prod(shape[len(shape) - op.dims :])
    return _normalize(op, context, width, tuple(range(width)), centred=op.kind == "layer")


def group_norm(op: GroupNorm, context: Context) -> tuple[Step, ...]:
    """Normalise over groups of channels."""
    channels, *places = context.shape(op.source)
    width = channels // op.groups * math.prod(places)
    picks = tuple(np.repeat(np.arange(channels), math.prod(places)).tolist())
    return _normalize(op, context, width, picks, centred=True)


def _normalize(
    op: Norm | GroupNorm, context: Context, width: int, picks: tuple[int, ...], *, centred: bool
) -> tuple[Step, ...]:
    """Normalise stretches of ``width``; ``picks`` are the entries of the weights, of one stretch or of all."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    at = f"i0 * {width} + i1"
    which = "i1" if len(picks) == width and picks == tuple(range(width)) else f"({at}) / {_run(picks)}"
    tables, factor, shift = [], "", ""
    if op.weight is not None:
        tables.append(Table(context.table(op.result, "weight"), op.weight.astype(np.float32)))
        factor = f" * {tables[-1].name}[{which}]"
    if op.bias is not None:
        tables.append(Table(context.table(op.result, "bias"), op.bias.astype(np.float32)))
        shift = f" + {tables[-1].name}[{which}]"
    loop, size = f"for (int32_t i1 = 0; i1 < {width}; i1++) {{", number(width)
    middle = [loop, f"mean += {source}[{at}];", "}", f"mean /= {size};"] if centred else []
    less = " - mean" if centred else ""
    body = [
        *(["float mean = 0.0f;"] if centred else []),
        "float square = 0.0f;",
        *middle,
        loop,
        f"const float v = {source}[{at}]{less};",
        "square += v * v;",
        "}",
        f"square = 1.0f / sqrtf(square / {size} + {number(op.epsilon)});",
        loop,
        f"{target}[{at}] = ({source}[{at}]{less}) * square{factor}{shift};",
        "}",
    ]
    return (Step(each(n // width, body), (op.source,), {op.result: n}, tables=tuple(tables), alike=True),)


def _run(picks: tuple[int, ...]) -> int:
    """Return how many neighbours share an entry."""
    return picks.count(picks[0])


def recurrent(op: Recurrent, context: Context) -> tuple[Step, ...]:
    """Do one time step: the gates of input and memory, then each unit."""
    units = context.size(op.memory[0])
    gates = op.inner.values.shape[0]
    inner, outer = f"{op.result} inner", f"{op.result} outer"
    a, b = f"{context.names[op.result]}_inner", f"{context.names[op.result]}_outer"
    first = matrix.multiply(Factor(op.inner, op.inner_bias, op.result, "inner_"), context, a, context.names[op.source])
    second = matrix.multiply(
        Factor(op.outer, op.outer_bias, op.result, "outer_"), context, b, context.names[op.memory[0]]
    )
    lines = each(units, _cell(op, context, units, a, b))
    return (
        replace(first, reads=(op.source,), makes={inner: gates}),
        replace(second, reads=(op.memory[0],), makes={outer: gates}),
        Step(
            lines,
            (inner, outer, *op.memory),
            dict.fromkeys(op.following, units),
            kernels=functions.tanh_kernels(lines, context.tanh),
        ),
    )


def _cell(op: Recurrent, context: Context, units: int, a: str, b: str) -> list[str]:
    """Write what one unit does with its gates, ``a`` of the input and ``b`` of the memory."""
    tanh, memory, following = context.tanh, *(tuple(context.names[n] for n in v) for v in (op.memory, op.following))

    def gate(k: int) -> str:
        at = f"i0 + {k * units}" if k else "i0"
        return f"({a}[{at}] + {b}[{at}])"

    if op.kind == "lstm":
        return [
            f"const float keep = {functions.sigmoid(tanh, gate(1))};",
            f"const float enter = {functions.sigmoid(tanh, gate(0))};",
            f"const float leave = {functions.sigmoid(tanh, gate(3))};",
            f"const float cell = keep * {memory[1]}[i0] + enter * {tanh}{gate(2)};",
            f"{following[1]}[i0] = cell;",
            f"{following[0]}[i0] = leave * {tanh}(cell);",
        ]
    if op.kind == "gru":
        return [
            f"const float reset = {functions.sigmoid(tanh, gate(0))};",
            f"const float keep = {functions.sigmoid(tanh, gate(1))};",
            f"const float fresh = {tanh}({a}[i0 + {2 * units}] + reset * {b}[i0 + {2 * units}]);",
            f"{following[0]}[i0] = (1.0f - keep) * fresh + keep * {memory[0]}[i0];",
        ]
    if op.kind == "rnn_tanh":
        return [f"{following[0]}[i0] = {tanh}{gate(0)};"]
    return [f"const float v = {gate(0)};", f"{following[0]}[i0] = v < 0.0f ? 0.0f : v;"]
