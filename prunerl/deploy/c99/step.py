"""What an operation becomes: lines of C with the constants, helpers and memory that they need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prunerl.deploy.c99.text import Table
from prunerl.deploy.program import Program


@dataclass(frozen=True)
class Kernel:
    """A function of the C file; every name of its own begins with ``NAME_``, in place of the policy's name."""

    name: str
    text: str
    needs: tuple[Kernel, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """A piece of the policy's function.

    Attributes:
        lines: C, not indented.
        reads: Values that are read.
        makes: Values that are written, each with its number of entries; names that the program does not have are
            temporary: they live until the last step that reads them.
        whole: Those of the values made that are 16-bit integers; the others are floats.
        tables: Constants.
        kernels: Functions that the lines call.
        alike: The value made is entry by entry that which is read, so it may take its place in memory.
        alias: The value made is the one that is read under another name; there are no lines.
        constant: The value made is the table; there are no lines.
        unrolled: Weights that stand in the lines as numbers.
        macs: Multiply–accumulates.
        note: How it is done, for a reader.
    """

    lines: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    makes: Mapping[str, int] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    tables: tuple[Table, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    alike: bool = False
    alias: bool = False
    constant: bool = False
    unrolled: int = 0
    macs: int = 0
    note: str = ""


@dataclass(frozen=True, eq=False)
class Context:
    """What a rule may look at.

    Attributes:
        program: The whole policy.
        names: Value → identifier in C.
        name: What every name outside of functions begins with.
        sparse: Share of zeros from which a matrix is stored by its non-zeros.
        unroll: Write matrices as formulae.
        tanh: How the hyperbolic tangent is called.
    """

    program: Program
    names: Mapping[str, str]
    name: str
    sparse: float
    unroll: bool
    tanh: str

    def shape(self, value: str) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self.program.shapes[value]

    def size(self, value: str) -> int:
        """Return the number of entries of a value."""
        return math.prod(self.program.shapes[value])

    def table(self, value: str, what: str) -> str:
        """Return the name of a constant that belongs to the operation that makes ``value``."""
        return f"{self.name}_{self.names[value].removeprefix('v_')}_{what}"
