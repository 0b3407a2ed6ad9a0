"""Dense matrices: rows side by side in vectors, an input at a time; or a row's columns in vectors, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.kernels.layer import Form, Layer, Machine

SUMS = 8
"""Vectors that are summed to at a time: a product takes four cycles, and two are begun in each."""
FIRST_CACHE, AHEAD = 32768, 2048
"""Bytes of the first cache, and how far ahead of their use weights beyond it may be asked for; measured."""
ACROSS = 12
"""The same where several observations share the weights: all registers of AVX2 but four."""


@dataclass(frozen=True)
class _Part:
    """Blocks of one size: ``count`` of ``rows`` rows from row ``start`` on, the first ``kept`` of each block's real."""

    rows: int
    count: int
    start: int
    kept: int


def dense(layer: Layer, machine: Machine, *, block: int, ahead: bool = False) -> Form | None:
    """Multiply blocks of ``block`` rows, whose weights lie side by side by column, so that an input serves all of them.

    Rows that fill no vector at the end are filled up by zeros, or, where they are few, taken one by one. The codes of
    quantised weights are stored as bytes.
    With ``ahead`` they are asked for before they are read, which one processor needs and another one is hindered by;
    None where they stay in the first cache.
    """
    narrower = layer.rows < block and block > machine.width  # the same as with smaller blocks
    if narrower or block < machine.width or layer.rows < machine.width or layer.input_scale is not None:
        return None
    stored = _stored(layer)
    if ahead and stored.nbytes < FIRST_CACHE:
        return None
    parts = _parts(layer, machine, block)
    end = max(part.start + part.count * part.rows for part in parts)
    more = max(0, end - layer.rows)
    stored = np.concatenate([stored, np.zeros((more, layer.columns), stored.dtype)])
    bias, scale = (np.concatenate([values, np.zeros(more, np.float32)]) for values in (layer.bias, _scale(layer)))
    blocks, body, many = [], [], []
    for part in parts:
        own = stored[part.start : part.start + part.count * part.rows].reshape(part.count, part.rows, layer.columns)
        blocks.append(own.transpose(0, 2, 1).reshape(-1))
        body.append(_loop(layer, machine, part, 0, ahead))
        many.append(_loop(layer, machine, part, max(1, ACROSS // (part.rows // machine.width)), ahead))
    tail, dots = _dots(layer, machine, min(end, layer.rows), 3)
    each = f"for (long i = 0; i < n; i++, x += xs, y += ys) {{\n{dots}\n}}" if dots else ""
    kind = "dense" if layer.codes is None else "dense int8"
    name = f"{kind} by {block} rows{', fetched ahead' if ahead else ''}"
    return Form(name, (np.concatenate(blocks), bias, scale, tail), "\n".join((*body, dots)), "\n".join((*many, each)))


def by_row(layer: Layer, machine: Machine) -> Form | None:
    """Multiply row by row, several at a time; for few rows."""
    if layer.input_scale is not None or layer.rows > 64:
        return None
    tail, body = _dots(layer, machine, 0, 0)
    return Form("dense by columns", (tail, layer.bias), body)


def _stored(layer: Layer) -> NDArray[Any]:
    return np.ascontiguousarray(layer.weight if layer.codes is None else layer.codes)


def _scale(layer: Layer) -> NDArray[np.float32]:
    return np.ones(layer.rows, np.float32) if layer.scale is None else layer.scale.astype(np.float32)


def _sizes(block: int, width: int) -> Sequence[int]:
    """Return the sizes of blocks, each half the one before.

    >>> _sizes(32, 8)
    [32, 16, 8]
    """
    return [block >> k for k in range(block.bit_length()) if block >> k >= width]


def _parts(layer: Layer, machine: Machine, block: int) -> list[_Part]:
    """Cut the rows into blocks of halving sizes; the last vector is filled up where that is less than rows of dots."""
    left = layer.rows % machine.width
    filled = left > machine.width // 4 or (left > 0 and layer.columns < machine.width)
    total = layer.rows + (machine.width - left if filled else -left)
    parts, start = [], 0
    for rows in _sizes(block, machine.width):
        count = (total - start) // rows
        over = start + count * rows - layer.rows if count else 0
        whole = count - (over > 0)
        parts += [_Part(rows, whole, start, rows)] if whole else []
        parts += [_Part(rows, 1, start + whole * rows, rows - over)] if over > 0 else []
        start += count * rows
    return parts


def _loop(layer: Layer, machine: Machine, part: _Part, across: int, ahead: bool) -> str:
    """Write the product of blocks: for one observation, or for ``n`` of them, ``across`` at a time."""
    kind = "float" if layer.codes is None else "int8_t"
    rows, start = part.rows, part.start
    head = (
        f"for (int r = 0; r < {part.count}; r++) {{\n"
        f"const {kind} *const block = p0 + {start * layer.columns} + r * {rows * layer.columns};\n"
        f"const float *const b = p1 + {start} + r * {rows}, *const s = p2 + {start} + r * {rows};\n(void)s;\n"
    )
    if across == 0:
        single = _block(layer, machine, part, 1, max(1, SUMS // (rows // machine.width)), ahead)
        return head + f"float *const o = y + {start} + r * {rows};\n{single}\n}}"
    several, rest = (_block(layer, machine, part, i, 1, ahead) for i in (across, 1))
    where = f"const float *const x = xi + i * xs;\nfloat *const o = y + i * ys + {start} + r * {rows};\n"
    return (
        f"{{\nconst float *const xi = x;\n{head}long i = 0;\n"
        f"for (; i + {across} <= n; i += {across}) {{\n{where}{several}\n}}\n"
        f"for (; i < n; i++) {{\n{where}{rest}\n}}\n}}\n}}"
    )


def _block(layer: Layer, machine: Machine, part: _Part, across: int, unroll: int, ahead: bool) -> str:
    """Write the product of one block: ``unroll`` columns a pass, each with sums of its own."""
    rows, width, columns, coded = part.rows, machine.width, layer.columns, layer.codes is not None
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
    lines += _prefetch(layer, rows * unroll) if ahead else []
    lines += [line for u in range(unroll) for line in _column(rows, width, across, u, coded)]
    lines += [f"w += {rows * unroll};", "}"]
    for u in range(columns % unroll):
        lines += _column(rows, width, across, u, coded)
    for i in range(across):
        for v in vectors:
            value = " + ".join(f"a{i}_{u}_{v}" for u in range(unroll))
            if coded:
                value = f"({value}) * load_any(s + {v * width}) + load_any(b + {v * width})"
            at, kept = f"o + {v * width}" + (f" + {i} * ys" if i else ""), part.kept - v * width
            if kept >= width:
                lines.append(f"store({at}, {layer.finish(value)});")
            elif kept > 0:
                lines.append(f"{{\nconst vec end = {layer.finish(value)};\nmemcpy({at}, &end, {4 * kept});\n}}")
    return "\n".join(lines)


def _prefetch(layer: Layer, entries: int) -> list[str]:
    """Ask for the weights of some passes later."""
    size = _stored(layer).itemsize
    line = 64 // size
    return [f"__builtin_prefetch(w + {AHEAD // size + k * line});" for k in range(max(1, entries // line))]


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
