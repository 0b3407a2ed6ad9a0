"""Compute beforehand what does not depend on the observation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prunerl.deploy.meaning import RULES, Values
from prunerl.deploy.passes.edit import with_operations
from prunerl.deploy.program import (
    Binary,
    Choose,
    Clip,
    Constant,
    Floats,
    Operation,
    Positive,
    Program,
    Recurrent,
    Squash,
    reads,
)

NOT_FOLDED = (Constant, Recurrent, Choose, Positive, Clip, Squash)
"""What makes the action stays, and what makes several values."""


def fold_constants(program: Program) -> Program:
    """Replace what reads constants alone by what it computes, where that is not larger; others hold them themselves."""
    known: dict[str, Floats] = {}
    operations = []
    for each in program.operations:
        operation = _with_constants(each, known)
        value = _value(operation, known, program)
        if value is not None:
            operation = Constant(operation.result, value)
        if isinstance(operation, Constant):
            known[operation.result] = operation.value
        operations.append(operation)
    used = {name for op in operations for name in reads(op)} | {program.action, *program.memory.values()}
    kept = [op for op in operations if not isinstance(op, Constant) or op.result in used]
    return with_operations(program, kept)


def _with_constants(operation: Operation, known: dict[str, Floats]) -> Operation:
    """Return a Binary with one of its operands as an array, where that is known."""
    if not isinstance(operation, Binary) or set(reads(operation)) <= known.keys():
        return operation
    left, right = (known.get(v, v) if isinstance(v, str) else v for v in (operation.left, operation.right))
    return replace(operation, left=left, right=right)


def _value(operation: Operation, known: dict[str, Floats], program: Program) -> Floats | None:
    names = reads(operation)
    if isinstance(operation, NOT_FOLDED) or not names or not set(names) <= known.keys():
        return None
    shape = program.shapes[operation.result]
    if np.prod(shape) > sum(known[name].size for name in names):
        return None
    at: Values = {name: known[name].reshape(1, *program.shapes[name]) for name in names}
    with np.errstate(all="ignore"):
        made = RULES[type(operation)](operation, at)
    return np.ascontiguousarray(made.reshape(shape), dtype=np.float32)
