"""What passes have in common: who reads a value, other names for it, and weights of which a part is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import (
    OBSERVATION,
    Binary,
    Concat,
    Constant,
    Floats,
    MatMul,
    Matrix,
    Operation,
    Program,
    Recurrent,
    makes,
    reads,
)


def readers(program: Program) -> dict[str, list[int]]:
    """Return the places of the operations that read each value; −1 where it is the action or the next memory."""
    found: dict[str, list[int]] = {}
    for place, operation in enumerate(program.operations):
        for name in reads(operation):
            found.setdefault(name, []).append(place)
    for name in (program.action, *program.memory.values()):
        found.setdefault(name, []).append(-1)
    return found


def makers(program: Program) -> dict[str, int]:
    """Return the place of the operation that makes each value."""
    return {name: place for place, operation in enumerate(program.operations) for name in makes(operation)}


def with_operations(program: Program, operations: Iterable[Operation], *, note: str | None = None) -> Program:
    """Return the program with other operations, without the shapes of values that are gone."""
    kept = tuple(operations)
    names = {OBSERVATION, *program.memory, *(name for op in kept for name in makes(op))}
    notes = program.notes if note is None else (*program.notes, note)
    return replace(
        program, operations=kept, shapes={n: s for n, s in program.shapes.items() if n in names}, notes=notes
    )


def reading(operation: Operation, names: Mapping[str, str]) -> Operation:
    """Return an operation that reads other values in place of those named."""

    def other(name: Any) -> Any:
        return names.get(name, name) if isinstance(name, str) else name

    if isinstance(operation, Constant):
        return operation
    if isinstance(operation, Concat):
        return replace(operation, sources=tuple(other(n) for n in operation.sources))
    if isinstance(operation, Binary | MatMul):
        return replace(operation, left=other(operation.left), right=other(operation.right))
    if isinstance(operation, Recurrent):
        memory = tuple(other(n) for n in operation.memory)
        return replace(operation, source=other(operation.source), memory=memory)
    return replace(operation, source=other(operation.source))


def drop_dead(program: Program) -> Program:
    """Leave out what neither the action nor a memory that matters for it depends on."""
    live = {program.action}
    while True:
        before = len(live)
        for operation in reversed(program.operations):
            if live & set(makes(operation)):
                live.update(reads(operation))
        live.update(following for name, following in program.memory.items() if name in live)
        if len(live) == before:
            break
    kept = tuple(op for op in program.operations if live & set(makes(op)))
    memory = {name: following for name, following in program.memory.items() if name in live}
    if len(kept) == len(program.operations) and len(memory) == len(program.memory):
        return program
    return with_operations(replace(program, memory=memory), kept)


def entries(program: Program) -> int:
    """Return how many numbers a program stores; of a weight with codes those, and its scale or codebook.

    What several operations share counts once.
    """
    return sum(array.size for array in {id(a): a for op in program.operations for a in _arrays(op)}.values())


def _arrays(stored: Any) -> Iterator[NDArray[Any]]:
    if isinstance(stored, np.ndarray):
        yield stored
    elif is_dataclass(stored):
        for field in fields(stored):
            if not (isinstance(stored, Matrix) and field.name == "codes"):  # there are as many as values
                yield from _arrays(getattr(stored, field.name))


def take(weight: Matrix, index: NDArray[np.intp], *, axis: int) -> Matrix:
    """Return some rows (axis 0) or columns (axis 1) of a weight, with their codes."""
    return replace(
        weight,
        values=np.ascontiguousarray(np.take(weight.values, index, axis)),
        codes=None if weight.codes is None else np.ascontiguousarray(np.take(weight.codes, index, axis)),
        scale=weight.scale[index] if axis == 0 and weight.scale is not None else weight.scale,
    )


def scaled(weight: Matrix, factor: Floats, *, axis: int) -> Matrix | None:
    """Return a weight times a factor for each row (axis 0) or column (axis 1); None where its codes cannot say that,
    or numbers become too large.

    Args:
        weight: Shape (outputs, inputs, *kernel).
        factor: Shape (outputs,), (inputs,) or (): one number for all.
        axis: What the factor is for.
    """
    with np.errstate(over="ignore"):
        made = _scaled(weight, factor, axis)
    return made if made is not None and bool(np.isfinite(made.values).all()) else None


def _scaled(weight: Matrix, factor: Floats, axis: int) -> Matrix | None:
    alone = factor.size == 1 or bool((factor == factor.flat[0]).all())
    factor = factor.reshape(-1)[:1] if alone else factor
    spread: list[int] = [1] * weight.values.ndim
    spread[axis] = -1
    if weight.codes is None:
        return replace(weight, values=weight.values * factor.reshape(spread))
    if weight.scale is not None and (axis == 0 or alone):
        return _decoded(replace(weight, scale=(weight.scale * factor).astype(np.float32)))
    if weight.codebook is not None and alone:
        return _decoded(replace(weight, codebook=(weight.codebook * factor).astype(np.float32)))
    return None


def _decoded(weight: Matrix) -> Matrix:
    """Return a coded weight with the values that its codes say."""
    assert weight.codes is not None  # the callers look
    if weight.codebook is not None:
        return replace(weight, values=weight.codebook[weight.codes])
    assert weight.scale is not None  # codes have one or the other
    by_output = weight.scale.reshape(-1, *[1] * (weight.codes.ndim - 1))
    return replace(weight, values=weight.codes.astype(np.float32) * by_output)


def sole(found: Mapping[str, Sequence[int]], name: str) -> int | None:
    """Return the place of the one operation that reads a value; None where there are others."""
    places = found.get(name, ())
    return places[0] if len(places) == 1 and places[0] >= 0 else None
