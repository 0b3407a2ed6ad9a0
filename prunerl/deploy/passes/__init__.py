"""Make a program smaller or faster without changing what it computes, but for the rounding of single numbers.

Each pass takes a program and gives another; :func:`simplify` applies them in turn until none finds anything.
"""

from __future__ import annotations

from collections.abc import Callable

from prunerl.deploy.passes.affine import fold_affine
from prunerl.deploy.passes.constants import fold_constants
from prunerl.deploy.passes.edit import drop_dead, entries
from prunerl.deploy.passes.layouts import drop_reshapes
from prunerl.deploy.passes.normalization import Bounds, fold_normalization
from prunerl.deploy.passes.units import by_count, drop_dead_units, permute_rows
from prunerl.deploy.program import Program

__all__ = [
    "Bounds",
    "by_count",
    "drop_dead",
    "drop_dead_units",
    "drop_reshapes",
    "entries",
    "fold_affine",
    "fold_constants",
    "fold_normalization",
    "permute_rows",
    "simplify",
]

Pass = Callable[[Program], Program]


def simplify(program: Program, *, bounds: Bounds | None = None) -> Program:
    """Apply every pass that makes a program smaller, until none does.

    Args:
        program: What is made smaller.
        bounds: Lowest and highest entries of any observation, shape as the observation or a number. Where they are
            given and say that no clip can happen, the normaliser is folded into the first layer.
    """

    def normalization(before: Program) -> Program:
        return before if bounds is None else fold_normalization(before, bounds)

    passes: tuple[Pass, ...] = (
        fold_constants, drop_reshapes, fold_affine, normalization, drop_dead_units, drop_dead,
    )  # fmt: skip
    while True:
        before = program
        for apply in passes:
            program = apply(program)
        if _size(program) == _size(before):
            return program


def _size(program: Program) -> tuple[int, int]:
    return len(program.operations), entries(program)
