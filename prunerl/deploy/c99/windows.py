"""Convolutions and pooling: windows that slide over the places of channels, as plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from prunerl.deploy.c99 import kernels, matrix
from prunerl.deploy.c99.layers import quantize
from prunerl.deploy.c99.matrix import Factor
from prunerl.deploy.c99.step import Context, Step
from prunerl.deploy.c99.text import Table, number, strides
from prunerl.deploy.program import Conv, Pool


def conv(op: Conv, context: Context) -> tuple[Step, ...]:
    """Gather each output from its window; where the inputs are rounded, that is a step before."""
    (channels, *places), (inner, *spans) = context.shape(op.result), context.shape(op.source)
    target, source, read = context.names[op.result], context.names[op.source], op.source
    before: tuple[Step, ...] = ()
    if op.input_scale is not None:
        read, source, n = f"{op.result} rounded", f"{target}_rounded", context.size(op.source)
        before = (quantize(context, op.source, read, source, op.input_scale, (1, n, n)),)
    meet, guard = _transposed(op, spans) if op.transposed else _gathered(op, spans)
    tables, worth, finish = _weights(op, context, _weight_index(op, channels, inner))
    group = f"i0 / {channels // op.groups} * {inner // op.groups} + k0" if op.groups > 1 else "k0"
    at = _index("t", spans, f"({group}) * {math.prod(spans)}")
    add = [f"sum += {worth} * {source}[{at}];"]
    kind = "float sum = 0.0f;" if op.input_scale is None else "int32_t sum = 0;"
    body = [
        kind,
        *_loops("k", (inner // op.groups, *op.weight.values.shape[2:]), [*meet, *(guarded(guard, add))]),
        f"{target}[{_index('i', (channels, *places))}] = {finish};",
    ]
    step = Step(
        lines=tuple(_loops("i", (channels, *places), body)),
        reads=(read,),
        makes={op.result: context.size(op.result)},
        tables=tables,
        macs=math.prod(spans if op.transposed else places) * op.weight.values.size,
        note=f"loops over {op.weight.bits}-bit weights",
    )
    return (*before, step)


def pool(op: Pool, context: Context) -> tuple[Step, ...]:
    """Take the mean or the largest of each window; the largest of numbers with NaN is NaN."""
    shape, (_, *spans) = context.shape(op.result), context.shape(op.source)
    source, target = context.names[op.source], context.names[op.result]
    lines, tests = [], []
    for d, (stride, padding, span) in enumerate(zip(op.stride, op.padding, spans, strict=True)):
        lines.append(f"const int32_t t{d} = i{d + 1} * {stride} + k{d} - {padding};")
        tests += [f"t{d} >= 0 && t{d} < {span}"] if padding else []
    value = f"{source}[{_index('t', spans, f'i0 * {math.prod(spans)}')}]"
    if op.function == "max":
        start, add, end = "float total = -INFINITY;", [f"const float v = {value};", KEEP], "total"
    elif op.counted or not tests:
        start, add, end = "float total = 0.0f;", [f"total += {value};"], f"total / {number(math.prod(op.window))}"
    else:
        start, add, end = "float total = 0.0f, n = 0.0f;", [f"total += {value};", "n += 1.0f;"], "total / n"
    body = [
        start,
        *_loops("k", op.window, [*lines, *guarded(" && ".join(tests), add)]),
        f"{target}[{_index('i', shape)}] = {end};",
    ]
    return (Step(tuple(_loops("i", shape, body)), (op.source,), {op.result: context.size(op.result)}),)


KEEP = "total = v > total || isnan(v) ? v : total;"


def guarded(test: str, lines: Sequence[str]) -> list[str]:
    """Put lines under a test, where there is one."""
    return [f"if ({test}) {{", *lines, "}"] if test else list(lines)


def _loops(letter: str, lengths: Sequence[int], body: Iterable[str]) -> list[str]:
    """Put lines into loops, those of length 1 included, for their variables are used by name."""
    heads = [f"for (int32_t {letter}{d} = 0; {letter}{d} < {n}; {letter}{d}++) {{" for d, n in enumerate(lengths)]
    return [*heads, *body, *("}" for _ in heads)]


def _index(letter: str, shape: Sequence[int], start: str = "") -> str:
    """Write the place of an entry by a variable for each dimension."""
    terms = [f"{letter}{d}" if s == 1 else f"{letter}{d} * {s}" for d, s in enumerate(strides(shape))]
    return " + ".join([start, *terms] if start else terms)


def _gathered(op: Conv, spans: Sequence[int]) -> tuple[list[str], str]:
    """Write where ``t`` the kernel's place ``k`` meets the input for the output's place ``i``, and whether inside."""
    lines, tests = [], []
    for d, (stride, padding, dilation, span) in enumerate(zip(op.stride, op.padding, op.dilation, spans, strict=True)):
        lines.append(f"const int32_t t{d} = i{d + 1} * {stride} + k{d + 1} * {dilation} - {padding};")
        tests += [f"t{d} >= 0 && t{d} < {span}"] if padding else []
    return lines, " && ".join(tests)


def _transposed(op: Conv, spans: Sequence[int]) -> tuple[list[str], str]:
    """Write the same of a transposed convolution, whose strides are those of the output."""
    lines, tests = [], []
    for d, (stride, padding, dilation, span) in enumerate(zip(op.stride, op.padding, op.dilation, spans, strict=True)):
        lines.append(f"const int32_t f{d} = i{d + 1} + {padding} - k{d + 1} * {dilation};")
        lines.append(f"const int32_t t{d} = f{d} / {stride};")
        tests.append(f"f{d} >= 0 && f{d} % {stride} == 0 && t{d} < {span}")
    return lines, " && ".join(tests)


def _weight_index(op: Conv, channels: int, inner: int) -> str:
    """Write the place of a weight, by the output's channel ``i0`` and the kernel's ``k0``, ``k1``, …"""
    first, second, *rest = strides(op.weight.values.shape)
    kernel = " + ".join(f"k{d + 1} * {s}" for d, s in enumerate(rest))
    if not op.transposed:
        return f"i0 * {first} + k0 * {second} + {kernel}"
    if op.groups == 1:
        return f"k0 * {first} + i0 * {second} + {kernel}"
    each = channels // op.groups
    return f"(i0 / {each} * {inner // op.groups} + k0) * {first} + i0 % {each} * {second} + {kernel}"


def _weights(op: Conv, context: Context, index: str) -> tuple[tuple[Table, ...], str, str]:
    """Return the tables, what a weight is worth, and what a sum becomes."""
    factor = Factor(op.weight, op.bias, op.result, input_scale=op.input_scale)
    entry, entries = matrix.entry_of(op.weight), matrix.stored_entries(op.weight)
    beside = matrix.beside(factor, context)
    name, finish = context.table(op.result, "weight"), "sum" if op.input_scale is None else "(float)sum"
    if op.weight.bits < 8 and entry in ("shared", "int8"):
        shift = 0 if entry == "shared" else kernels.offset(op.weight.bits)
        entries = matrix.pack((entries.astype(np.int16) + shift).astype(np.uint8), op.weight.bits)
        code = kernels.code_at(op.weight.bits, name, index)
        worth = f"({code} - {shift})" if shift else code
    else:
        worth = f"{name}[{index}]"
    if entry == "shared":
        worth = f"{beside[0].name}[{worth}]"
    elif entry != "float":
        worth = worth if factor.whole else f"(float){worth}"
        finish += f" * {beside[0].name}[i0]"
    tables = [Table(name, entries), *beside]
    if op.bias is not None:
        tables.append(Table(context.table(op.result, "bias"), op.bias.astype(np.float32)))
        finish += f" + {tables[-1].name}[i0]"
    return tuple(tables), worth, finish
