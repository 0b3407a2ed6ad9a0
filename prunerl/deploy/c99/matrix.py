"""How a matrix is stored in the C file, and the step that multiplies by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.c99 import kernels
from prunerl.deploy.c99.kernels import Entry
from prunerl.deploy.c99.step import Context, Kernel, Step
from prunerl.deploy.c99.text import Table, each, number
from prunerl.deploy.program import Floats, Matrix

Form = Literal["dense", "sparse", "packed", "unrolled"]


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix in a product.

    Attributes:
        weight: The matrix.
        bias: What is added, shape (outputs,).
        value: The value that is made of it, after which its tables are named; with ``part`` where there are several.
        input_scale: Where the inputs are whole numbers, what one is worth.
    """

    weight: Matrix
    bias: Floats | None
    value: str
    part: str = ""
    input_scale: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the inputs are whole numbers."""
        return self.input_scale is not None


def entry_of(matrix: Matrix) -> Entry:
    """Return how one entry is stored."""
    if matrix.codes is not None and matrix.codebook is not None and len(matrix.codebook) <= 256:
        return "shared"
    if matrix.codes is None or matrix.scale is None or matrix.bits > 16:
        return "float"
    return "int8" if matrix.bits <= 8 else "int16"


def form_of(factor: Factor, context: Context) -> Form:
    """Return how the whole matrix is stored: the form that takes the fewest bytes, or formulae in a tiny policy."""
    entry, values = entry_of(factor.weight), factor.weight.values
    if context.unroll and not factor.whole:
        return "unrolled"
    zeros = 1.0 - np.count_nonzero(values) / max(values.size, 1)
    narrow = factor.weight.bits < 8 and entry in ("shared", "int8")
    if zeros >= context.sparse and values.shape[1] <= 65536:
        index = 1 if values.shape[1] <= 256 else 2
        taken = values.size * (1.0 - zeros) * (1 + index)
        if not narrow or context.sparse == 0.0 or taken < values.size * factor.weight.bits / 8:
            return "sparse"
    return "packed" if narrow else "dense"


def stored_entries(matrix: Matrix) -> NDArray[Any]:
    """Return the entries as they are stored, in the matrix's shape."""
    entry = entry_of(matrix)
    if entry == "float" or matrix.codes is None:
        return matrix.values.astype(np.float32)
    return matrix.codes.astype({"int8": np.int8, "int16": np.int16, "shared": np.uint8}[entry])


def pack(codes: NDArray[np.unsignedinteger[Any]], bits: int) -> NDArray[np.uint8]:
    """Pack codes of few bits without gaps, the first in the lowest bits, with a byte more than they need.

    >>> [int(byte) for byte in pack(np.array([1, 2, 3], np.uint8), 4)]
    [33, 3, 0]
    """
    spread = (codes.reshape(-1, 1).astype(np.uint32) >> np.arange(bits, dtype=np.uint32)) & 1
    return np.append(np.packbits(spread.astype(np.uint8).reshape(-1), bitorder="little"), np.uint8(0))


def blocks(entries: NDArray[Any], rows: int = kernels.ROWS) -> NDArray[Any]:
    """Lay rows side by side by column, block by block; the rest row by row.

    >>> blocks(np.arange(10).reshape(5, 2), 4).tolist()
    [0, 2, 4, 6, 1, 3, 5, 7, 8, 9]
    """
    full = len(entries) // rows * rows
    beside = entries[:full].reshape(-1, rows, entries.shape[1]).transpose(0, 2, 1)
    return np.concatenate([beside.reshape(-1), entries[full:].reshape(-1)])


def tiles(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Lay out blocks of four rows and four columns for ``dot4``: of each row its columns 0, 2, 1, 3."""
    rows, columns = codes.shape
    wide = np.pad(codes, ((0, 0), (0, -columns % 4))).reshape(rows, -1, 4)[:, :, [0, 2, 1, 3]]
    full = rows // 4 * 4
    beside = wide[:full].reshape(-1, 4, wide.shape[1], 4).transpose(0, 2, 1, 3)
    return np.concatenate([beside.reshape(-1), wide[full:].reshape(-1)])


def multiply(factor: Factor, context: Context, target: str, source: str, positions: int = 1) -> Step:
    """Return the step that multiplies, ``target`` and ``source`` being identifiers; once for each position.

    What is read and made is the caller's to say.
    """
    form = form_of(factor, context)
    if form == "unrolled" and positions == 1:
        return _unrolled(factor, target, source)
    form = "dense" if form == "unrolled" else form
    entry, (rows, columns) = entry_of(factor.weight), factor.weight.values.shape
    kernel, tables, tail = {"dense": _dense, "sparse": _sparse, "packed": _packed}[form](factor, context)
    names = [*beside(factor, context), *([] if factor.bias is None else [_table(factor, context, "bias", factor.bias)])]
    stride = columns + (-columns % 4 if factor.whole and form == "dense" else 0)
    shift = (f" + i0 * {rows}", f" + i0 * {stride}") if positions > 1 else ("", "")
    words = [target + shift[0], source + shift[1], tables[0].name, *(t.name for t in names), *tail]
    call = f"{context.name}_{kernel.name}({', '.join(words)});"
    used = int(np.count_nonzero(factor.weight.values)) if form == "sparse" else rows * columns
    return Step(
        lines=each(positions, [call]) if positions > 1 else (call,),
        tables=(*tables, *names),
        kernels=(kernel,),
        macs=used * positions,
        note=_note(form, entry, factor),
    )


def _table(factor: Factor, context: Context, what: str, values: NDArray[Any]) -> Table:
    return Table(context.table(factor.value, factor.part + what), values)


def beside(factor: Factor, context: Context) -> list[Table]:
    """Return the table beside the weights: what a code of each row is worth, or the codebook."""
    weight = factor.weight
    if entry_of(weight) == "shared" and weight.codebook is not None:
        return [_table(factor, context, "book", weight.codebook.astype(np.float32))]
    if entry_of(weight) == "float" or weight.scale is None:
        return []
    worth = weight.scale.astype(np.float32) * np.float32(1.0 if factor.input_scale is None else factor.input_scale)
    return [_table(factor, context, "scale", worth)]


def _dense(factor: Factor, context: Context) -> tuple[Kernel, list[Table], list[str]]:
    rows, columns = factor.weight.values.shape
    entries, bias = stored_entries(factor.weight), factor.bias is not None
    if factor.whole:
        table = _table(factor, context, "weight", tiles(entries))
        return kernels.dense_whole(bias), [table], [str(rows), str(columns + -columns % 4)]
    table = _table(factor, context, "weight", blocks(entries))
    return kernels.dense(entry_of(factor.weight), bias), [table], [str(rows), str(columns)]


def _sparse(factor: Factor, context: Context) -> tuple[Kernel, list[Table], list[str]]:
    used = factor.weight.values != 0.0
    counts, columns = used.sum(axis=1), np.nonzero(used)[1]
    small = used.shape[1] <= 256 and counts.max(initial=0) < 256
    index = np.uint8 if small else np.uint16
    entries = stored_entries(factor.weight)[used]
    tables = [
        _table(factor, context, "weight", entries if len(entries) else np.zeros(1, entries.dtype)),
        _table(factor, context, "count", counts.astype(index)),
        _table(factor, context, "column", (columns if len(columns) else np.zeros(1)).astype(index)),
    ]
    kind = "uint8_t" if small else "uint16_t"
    kernel = kernels.csr(entry_of(factor.weight), factor.bias is not None, kind, whole=factor.whole)
    return kernel, tables, [tables[1].name, tables[2].name, str(len(used))]


def _packed(factor: Factor, context: Context) -> tuple[Kernel, list[Table], list[str]]:
    weight, entry = factor.weight, entry_of(factor.weight)
    codes = stored_entries(weight).astype(np.int16) + (0 if entry == "shared" else kernels.offset(weight.bits))
    table = _table(factor, context, "weight", pack(codes.astype(np.uint8), weight.bits))
    kernel = kernels.packed(entry, weight.bits, factor.bias is not None, whole=factor.whole)
    return kernel, [table], [str(n) for n in weight.values.shape]


def _unrolled(factor: Factor, target: str, source: str) -> Step:
    values, lines = factor.weight.values, []
    for r, row in enumerate(values):
        terms = [f"{number(row[c])} * {source}[{c}]" for c in np.flatnonzero(row)]
        if factor.bias is not None and (factor.bias[r] != 0.0 or not terms):
            terms.insert(0, number(factor.bias[r]))
        lines.append(f"{target}[{r}] = " + (" + ".join(terms).replace("+ -", "- ") or "0.0f") + ";")
    used = int(np.count_nonzero(values))
    return Step(lines=tuple(lines), unrolled=used, macs=used, note=f"formulae, {used} of {math.prod(values.shape)}")


def _note(form: Form, entry: Entry, factor: Factor) -> str:
    kept = np.count_nonzero(factor.weight.values)
    kind = {"float": "float32", "shared": f"{factor.weight.bits}-bit codebook"}.get(entry, f"{factor.weight.bits}-bit")
    share = f" with {kept} of {factor.weight.values.size}" if form == "sparse" else ""
    return f"{form} {kind}{share}" + (", int8 inputs" if factor.whole else "")
