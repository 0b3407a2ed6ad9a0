"""Dense matrices: rows side by side in vectors, an input at a time; or a row's columns in vectors, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.kernels.layer import Form, Layer, Machine

SUMS = 8
"""Vectors that are summed to at a time: a product takes four cycles, and two are begun in each."""
FIRST_CACHE, AHEAD = 32768, 2048
"""Bytes of the first cache, and how far ahead of their use weights beyond it are asked for; measured."""
ACROSS = 12
"""The same where several observations share the weights: all registers of AVX2 but four."""


def dense(layer: Layer, machine: Machine, *, block: int) -> Form | None:
    """Multiply blocks of ``block`` rows, whose weights lie side by side by column, so that an input serves all of them.

    Rows that fill no vector at the end are taken one by one. The codes of quantised weights are stored as bytes.
    """
    narrower = layer.rows < block and block > machine.width  # the same as with smaller blocks
    if narrower or block < machine.width or layer.rows < machine.width or layer.input_scale is not None:
        return None
    stored = _stored(layer)
    blocks, body, many, start, at = [], [], [], 0, 0
    for rows in _sizes(block, machine.width):
        count = (layer.rows - start) // rows
        if count:
            own = stored[start : start + count * rows].reshape(count, rows, layer.columns)
            blocks.append(own.transpose(0, 2, 1).reshape(-1))
            body.append(_loop(layer, machine, rows, count, start, at, 0))
            across = max(1, ACROSS // (rows // machine.width))
            many.append(_loop(layer, machine, rows, count, start, at, across))
            start, at = start + count * rows, at + own.size
    tail, end = _dots(layer, machine, start, 3)
    arrays = (np.concatenate(blocks), layer.bias, _scale(layer), tail)
    each = f"for (long i = 0; i < n; i++, x += xs, y += ys) {{\n{end}\n}}" if end else ""
    kind = "dense" if layer.codes is None else "dense int8"
    return Form(f"{kind} by {block} rows", arrays, "\n".join((*body, end)), "\n".join((*many, each)))


def by_row(layer: Layer, machine: Machine) -> Form | None:
    """Multiply row by row, several at a time; for few rows."""
    if layer.input_scale is not None or layer.rows > 64:
        return None
    tail, body = _dots(layer, machine, 0, 0)
    return Form("dense by columns", (tail, layer.bias), body)


def _stored(layer: Layer) -> NDArray[Any]:
    return np.ascontiguousarray(layer.weight if layer.codes is None else layer.codes)


def _scale(layer: Layer) -> NDArray[np.float32]:
    return np.ones(1, np.float32) if layer.scale is None else layer.scale.astype(np.float32)


def _sizes(block: int, width: int) -> Sequence[int]:
    """Return the sizes of blocks, each half the one before.

    >>> _sizes(32, 8)
    [32, 16, 8]
    """
    return [block >> k for k in range(block.bit_length()) if block >> k >= width]


def _loop(layer: Layer, machine: Machine, rows: int, count: int, start: int, at: int, across: int) -> str:
    """Write the product of ``count`` blocks: for one observation, or for ``n`` of them, ``across`` at a time."""
    kind = "float" if layer.codes is None else "int8_t"
    head = (
        f"for (int r = 0; r < {count}; r++) {{\n"
        f"const {kind} *const block = p0 + {at} + r * {rows * layer.columns};\n"
        f"const float *const b = p1 + {start} + r * {rows}, *const s = p2 + {start} + r * {rows};\n(void)s;\n"
    )
    if across == 0:
        single = _block(layer, machine, rows, 1, max(1, SUMS // (rows // machine.width)))
        return head + f"float *const o = y + {start} + r * {rows};\n{single}\n}}"
    several, rest = (_block(layer, machine, rows, i, 1) for i in (across, 1))
    where = f"const float *const x = xi + i * xs;\nfloat *const o = y + i * ys + {start} + r * {rows};\n"
    return (
        f"{{\nconst float *const xi = x;\n{head}long i = 0;\n"
        f"for (; i + {across} <= n; i += {across}) {{\n{where}{several}\n}}\n"
        f"for (; i < n; i++) {{\n{where}{rest}\n}}\n}}\n}}"
    )


def _block(layer: Layer, machine: Machine, rows: int, across: int, unroll: int) -> str:
    """Write the product of one block: ``unroll`` columns a pass, each with sums of its own."""
    width, columns, coded = machine.width, layer.columns, layer.codes is not None
    vectors = range(rows // width)
    unroll = min(unroll, columns)
    zero = "(vec){0}"
    lines = []
    for i in range(across):
        for u in range(unroll):
            first = [zero if u or coded else f"load_any(b + {v * width})" for v in vectors]
            lines.append("vec " + ", ".join(f"a{i}_{u}_{v} = {value}" for v, value in enumerate(first)) + ";")
    lines += [f"const {'int8_t' if coded else 'float'} *w = block;", "int j = 0;"]
    lines += [f"for (; j + {unroll} <= {columns}; j += {unroll}) {{"]
    lines += _prefetch(layer, rows * unroll)
    lines += [line for u in range(unroll) for line in _column(rows, width, across, u, coded)]
    lines += [f"w += {rows * unroll};", "}"]
    for u in range(columns % unroll):
        lines += _column(rows, width, across, u, coded)
    for i in range(across):
        for v in vectors:
            value = " + ".join(f"a{i}_{u}_{v}" for u in range(unroll))
            if coded:
                value = f"({value}) * load_any(s + {v * width}) + load_any(b + {v * width})"
            at = f"o + {v * width}" + (f" + {i} * ys" if i else "")
            lines.append(f"store({at}, {layer.finish(value)});")
    return "\n".join(lines)


def _prefetch(layer: Layer, entries: int) -> list[str]:
    """Ask for the weights of some passes later, where they do not stay in the first cache."""
    stored = _stored(layer)
    if stored.nbytes < FIRST_CACHE:
        return []
    line = 64 // stored.itemsize
    return [f"__builtin_prefetch(w + {AHEAD // stored.itemsize + k * line});" for k in range(max(1, entries // line))]


def _column(rows: int, width: int, across: int, u: int, coded: bool) -> list[str]:
    read = "load_code" if coded else "load"
    vectors = range(rows // width)
    lines = ["{", *(f"const vec w{v} = {read}(w + {u * rows + v * width});" for v in vectors)]
    for i in range(across):
        lines.append(f"const vec x{i} = splat(x[{f'{i} * xs + ' if i else ''}j + {u}]);")
        lines += [f"a{i}_{u}_{v} += w{v} * x{i};" for v in vectors]
    return [*lines, "}"]


def _dots(layer: Layer, machine: Machine, start: int, place: int) -> tuple[NDArray[np.float32], str]:
    """Write the rows from ``start`` on, four at a time, with table ``place`` for weights and ``p1`` for biases.

    The last vector of a row is moved back to end with the row, and its weights that were counted before are zeros.
    """
    width, columns, rows = machine.width, layer.columns, layer.rows - start
    weight = layer.weight[start:]
    if not rows:
        return np.zeros(1, np.float32), ""
    if columns < width:
        return np.ascontiguousarray(weight), _short(layer, start, rows, place)
    full, rest = divmod(columns, width)
    table = np.zeros((rows, full + bool(rest), width), np.float32)
    table[:, :full] = weight[:, : full * width].reshape(rows, full, width)
    if rest:
        table[:, full, width - rest :] = weight[:, full * width :]
    lines = []
    for first in range(0, rows, 4):
        lines.append(_group(layer, width, first, min(4, rows - first), start, place, (full, rest)))
    return table, "\n".join(lines)


def _group(layer: Layer, width: int, first: int, rows: int, start: int, place: int, lengths: tuple[int, int]) -> str:
    """Write up to four rows, in two halves where they are few, so that four sums are under way."""
    full, rest = lengths
    stride = (full + bool(rest)) * width
    unroll = 1 if rows > 2 or full < 2 else 2
    lines = ["{", f"const float *const t = p{place} + {first * stride};"]
    names = [f"a{r}_{u}" for r in range(rows) for u in range(unroll)]
    lines += ["vec " + ", ".join(f"{name} = (vec){{0}}" for name in names) + ";"]
    lines += [f"for (int j = 0; j + {unroll} <= {full}; j += {unroll}) {{"]
    for u in range(unroll):
        lines += [f"const vec x{u} = load_any(x + (j + {u}) * {width});"]
        lines += [f"a{r}_{u} += load(t + {r * stride} + (j + {u}) * {width}) * x{u};" for r in range(rows)]
    lines += ["}"]
    left = [full - 1] if full % unroll else []
    for k, at in [(k, k * width) for k in left] + ([(full, layer.columns - width)] if rest else []):
        lines += ["{", f"const vec x0 = load_any(x + {at});"]
        lines += [f"a{r}_0 += load(t + {r * stride + k * width}) * x0;" for r in range(rows)]
        lines += ["}"]
    for r in range(rows):
        at = start + first + r
        value = f"total({' + '.join(f'a{r}_{u}' for u in range(unroll))}) + p1[{at}]"
        lines += [f"y[{at}] = {layer.finish(value, 's')};"]
    return "\n".join([*lines, "}"])


def _short(layer: Layer, start: int, rows: int, place: int) -> str:
    """Write rows that are shorter than a vector."""
    lines = []
    for r in range(rows):
        terms = [f"p{place}[{r * layer.columns + c}] * x[{c}]" for c in range(layer.columns)]
        value = " + ".join([f"p1[{start + r}]", *terms])
        lines.append(f"y[{start + r}] = {layer.finish(value, 's')};")
    return "\n".join(lines)
