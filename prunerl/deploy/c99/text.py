"""C as text: numbers that read back exactly, constant arrays, loops over arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 110
TYPES = {"f4": "float", "i1": "int8_t", "i2": "int16_t", "u1": "uint8_t", "u2": "uint16_t"}


@dataclass(frozen=True, eq=False)
class Table:
    """A constant array of the C file; the type of ``values`` is its type."""

    name: str
    values: NDArray[Any]


def number(value: float) -> str:
    """Write a float32 as the shortest C literal that reads back as the same one.

    >>> number(0.1), number(-0.0), number(float("-inf"))
    ('0.1f', '-0.0f', '-INFINITY')
    """
    short = np.float32(value)
    if np.isnan(short):
        return "NAN"
    if np.isinf(short):
        return "INFINITY" if short > 0 else "-INFINITY"
    return f"{short!s}f"


def define(table: Table) -> str:
    """Write a table as a constant array, flat, row by row."""
    flat = table.values.reshape(-1)
    words = [number(v) for v in flat] if flat.dtype == np.float32 else [str(int(v)) for v in flat]
    kind = TYPES[flat.dtype.str[1:]]
    return f"static const {kind} {table.name}[{len(words)}] = {{\n" + "\n".join(wrap(words)) + "\n};"


def wrap(words: Sequence[str]) -> Iterable[str]:
    """Yield lines of comma-separated words."""
    line = "   "
    for word in words:
        if len(line) + len(word) + 2 > WIDTH:
            yield line
            line = "   "
        line += f" {word},"
    yield line


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return how many entries apart neighbours along each dimension are.

    >>> strides((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def place(shape: Sequence[int], steps: Sequence[int], start: int = 0, letter: str = "i") -> str:
    """Write the index of an entry within the loops of :func:`nest` over ``shape``.

    >>> place((2, 1, 4), (8, 4, 1), 3)
    'i0 * 8 + i2 + 3'
    """
    terms = [
        f"{letter}{i}" if step == 1 else f"{letter}{i} * {step}"
        for i, (length, step) in enumerate(zip(shape, steps, strict=True))
        if length != 1 and step
    ]
    return " + ".join(terms + ([str(start)] if start or not terms else []))


def nest(shape: Sequence[int], body: Iterable[str], letter: str = "i") -> list[str]:
    """Put lines into loops over an array, with the variables ``i0``, ``i1``, …; there is none where a length is 1."""
    loops = [
        f"for (int32_t {letter}{i} = 0; {letter}{i} < {n}; {letter}{i}++) {{" for i, n in enumerate(shape) if n != 1
    ]
    return [*loops, *body, *("}" for _ in loops)]


def each(n: int, body: Iterable[str]) -> tuple[str, ...]:
    """Put lines into one loop over ``i0``."""
    return (f"for (int32_t i0 = 0; i0 < {n}; i0++) {{", *body, "}")


def indent(lines: Iterable[str]) -> str:
    """Indent lines by their braces."""
    depth, result = 1, []
    for line in lines:
        depth -= line.startswith("}")
        result.append("    " * depth + line)
        depth += line.endswith("{")
    return "\n".join(result)
