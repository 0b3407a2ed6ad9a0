"""Leave out what only moves entries about, where nothing needs them moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prunerl.deploy.passes.edit import reading, with_operations
from prunerl.deploy.program import (
    OBSERVATION,
    Concat,
    OneHot,
    Operation,
    Program,
    Reshape,
    Shape,
    Slice,
    Transpose,
    reads,
)

MOVES = (Reshape, Transpose, Slice, Concat)


def drop_reshapes(program: Program) -> Program:
    """Leave out reshapes, transpositions, slices and joins that change nothing, and join those that follow each other.

    What a memory holds next keeps an operation of its own where it would be another part of the memory.
    """
    same: dict[str, str] = {}
    made: dict[str, Operation] = {}
    operations = []
    for each in program.operations:
        operation = _plain(_merged(reading(each, same), made), program.shapes)
        source = _unchanged(operation, program.shapes)
        if source is not None and not _holds_memory(program, operation.result, source):
            same[operation.result] = source
            continue
        made[operation.result] = operation
        operations.append(operation)
    memory = {name: same.get(following, following) for name, following in program.memory.items()}
    moved = replace(program, memory=memory, action=same.get(program.action, program.action))
    used = {name for op in operations for name in reads(op)} | {moved.action, *memory.values()}
    return with_operations(moved, [op for op in operations if not isinstance(op, MOVES) or op.result in used])


def _holds_memory(program: Program, result: str, source: str) -> bool:
    return result in program.memory.values() and source in (OBSERVATION, *program.memory)


def _merged(operation: Operation, made: dict[str, Operation]) -> Operation:
    """Return an operation that reads what the one before it read, where they are one together."""
    if isinstance(operation, Reshape | OneHot):
        before = made.get(operation.source)
        return replace(operation, source=before.source) if isinstance(before, Reshape) else operation
    if isinstance(operation, Transpose):
        before = made.get(operation.source)
        if isinstance(before, Transpose):
            return replace(operation, source=before.source, axes=tuple(before.axes[a] for a in operation.axes))
    if isinstance(operation, Slice):
        before = made.get(operation.source)
        if isinstance(before, Slice) and before.axis == operation.axis:
            start = before.start + operation.start * before.step
            step = before.step * operation.step
            count = len(range(operation.start, operation.stop, operation.step))
            return replace(operation, source=before.source, start=start, stop=start + (count - 1) * step + 1, step=step)
    return operation


def _plain(operation: Operation, shapes: Mapping[str, Shape]) -> Operation:
    """Return a transposition that moves no entry as a reshape."""
    if isinstance(operation, Transpose):
        wide = [a for a in operation.axes if shapes[operation.source][a] > 1]
        if wide == sorted(wide):
            return Reshape(operation.source, operation.result)
    return operation


def _unchanged(operation: Operation, shapes: Mapping[str, Shape]) -> str | None:
    """Return the value that an operation gives as it is; None where it changes it."""
    if isinstance(operation, Concat):
        return operation.sources[0] if len(operation.sources) == 1 else None
    if isinstance(operation, Reshape | Slice) and shapes[operation.source] == shapes[operation.result]:
        return operation.source if not isinstance(operation, Slice) or operation.step == 1 else None
    return None
