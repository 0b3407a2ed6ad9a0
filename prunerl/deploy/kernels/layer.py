"""The nouns: a layer, the machine that it is for, and a form of it in C."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import Floats

ALIGNED = 64
"""Bytes: tables and values begin at multiples of that, the widest vector."""


@dataclass(frozen=True)
class Machine:
    """What code is written for.

    Attributes:
        name: A word for it, which can be part of an identifier.
        width: Floats of a vector.
        flags: Of the compiler.
    """

    name: str
    width: int
    flags: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """``function(weight @ x + bias)``.

    Attributes:
        weight: Shape (rows, columns).
        bias: Shape (rows,).
        function: One of :data:`FUSED`, or empty.
        codes: Of quantised weights, int8, in the weight's shape.
        scale: Of the codes, shape (rows,).
        input_scale: Inputs are rounded to int8, ``round(x / input_scale)``, and products summed as integers.
    """

    weight: Floats
    bias: Floats
    function: str = ""
    codes: NDArray[np.int8] | None = None
    scale: Floats | None = None
    input_scale: float | None = None

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return int(self.weight.shape[0])

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return int(self.weight.shape[1])

    def finish(self, value: str, kind: str = "v") -> str:
        """Apply the function to an expression, a vector (``v``) or a scalar (``s``)."""
        return f"{self.function}_{kind}({value})" if self.function else value


@dataclass(frozen=True, eq=False)
class Form:
    """A layer in C.

    Attributes:
        kernel: Which, for a reader.
        arrays: Tables, which the code knows as ``p0``, ``p1``, …
        body: From ``x`` to ``y``, both of floats.
        many: The same for ``n`` vectors, the next one ``xs`` and ``ys`` floats further; None where it is no better
            than one after another.
    """

    kernel: str
    arrays: tuple[NDArray[Any], ...]
    body: str
    many: str | None = None


Kernel = Callable[[Layer, Machine], Form | None]
"""Writes a layer for a machine, or says by None that it has no form for it there."""

TYPES = {"f4": "float", "i1": "int8_t", "u1": "uint8_t", "u2": "uint16_t", "i2": "int16_t", "i4": "int32_t"}


def aligned(size: int) -> int:
    """Round bytes up.

    >>> aligned(1), aligned(64), aligned(65)
    (64, 64, 128)
    """
    return math.ceil(size / ALIGNED) * ALIGNED


def offsets(arrays: tuple[NDArray[Any], ...]) -> list[int]:
    """Return where tables begin that lie one after another, and, last, where they end."""
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] + aligned(array.nbytes))
    return ends


def packed(arrays: tuple[NDArray[Any], ...]) -> bytes:
    """Return tables as they lie in memory."""
    return b"".join(array.tobytes().ljust(aligned(array.nbytes), b"\0") for array in arrays)


def define(name: str, form: Form) -> str:
    """Write a form as functions.

    Returns:
        ``name(y, x, base)`` and, where there is one for many, ``name_many(y, x, base, n, ys, xs)``.
    """
    kinds = [TYPES[array.dtype.str[1:]] for array in form.arrays]
    tables = "\n".join(
        f"    const {kind} *restrict const p{i} = __builtin_assume_aligned(base + {at}, {ALIGNED});"
        for i, (kind, at) in enumerate(zip(kinds, offsets(form.arrays), strict=False))
    )
    arguments = "float *restrict y, const float *restrict x, const char *restrict base"
    begin = f"{{\n    (void)base;\n{tables}\n"
    text = f"static void {name}({arguments})\n{begin}{form.body}\n}}\n"
    if form.many is not None:
        text += f"static void {name}_many({arguments}, long n, long ys, long xs)\n{begin}{form.many}\n}}\n"
    return text
