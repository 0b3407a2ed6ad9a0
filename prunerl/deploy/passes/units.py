"""Units between two layers: drop those that do nothing, and put the others in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.meaning import RULES, Values
from prunerl.deploy.passes.edit import readers, take, with_operations
from prunerl.deploy.program import Activation, Affine, Binary, Floats, Matrix, Operation, Program, reads

Order = Callable[[Matrix], NDArray[np.intp]]
"""From the weight that makes units, shape (units, inputs), to the order in which they are wanted."""


@dataclass(frozen=True)
class Units:
    """The units that one layer makes and others read, with functions of single units in between.

    Attributes:
        maker: Place of the layer that makes them.
        between: Places of the functions of each unit, in order.
        readers: Places of the layers that read them.
    """

    maker: int
    between: tuple[int, ...]
    readers: tuple[int, ...]


def hidden_units(program: Program) -> list[Units]:
    """Return the units whose number and order are nothing to the rest of the program."""
    found = readers(program)
    made = [_units(program, found, place) for place, op in enumerate(program.operations) if isinstance(op, Affine)]
    return [units for units in made if units is not None]


def _units(program: Program, found: dict[str, list[int]], maker: int) -> Units | None:
    layer: Any = program.operations[maker]
    shape = program.shapes[layer.result]
    values, between, layers, places = {layer.result}, [], [], set(found.get(layer.result, []))
    while places:
        place = min(places)
        places.discard(place)
        operation = program.operations[place] if place >= 0 else None
        if isinstance(operation, Affine) and len(shape) == 1:
            layers.append(place)
        elif isinstance(operation, Activation | Binary) and _by_unit(operation, values, shape, program):
            between.append(place)
            values.add(operation.result)
            places.update(found.get(operation.result, []))
        else:
            return None
    return Units(maker, tuple(between), tuple(layers)) if layers else None


def _by_unit(operation: Activation | Binary, values: set[str], shape: tuple[int, ...], program: Program) -> bool:
    """Return whether each unit's result depends on nothing but that unit."""
    if not set(reads(operation)) <= values or program.shapes[operation.result] != shape:
        return False
    arrays = [v for v in _operands(operation) if not isinstance(v, str)]
    return all(a.size == 1 or a.reshape(-1).shape == shape for a in arrays)


def _operands(operation: Activation | Binary) -> Sequence[str | Floats]:
    return (operation.left, operation.right) if isinstance(operation, Binary) else (operation.source,)


def selected(program: Program, units: Units, index: NDArray[np.intp]) -> Program:
    """Return the program with the given units alone, in this order."""
    operations: list[Any] = list(program.operations)
    layer = operations[units.maker]
    bias = None if layer.bias is None else layer.bias[index]
    operations[units.maker] = replace(layer, weight=take(layer.weight, index, axis=0), bias=bias)
    for place in units.between:
        operations[place] = _selected(operations[place], index)
    for place in units.readers:
        operations[place] = replace(operations[place], weight=take(operations[place].weight, index, axis=1))
    names = {layer.result, *(operations[place].result for place in units.between)}
    shapes = {name: (len(index),) if name in names else shape for name, shape in program.shapes.items()}
    return with_operations(replace(program, shapes=shapes), operations)


def _selected(operation: Activation | Binary, index: NDArray[np.intp]) -> Operation:
    if isinstance(operation, Activation):
        return operation
    left, right = (
        v if isinstance(v, str) or v.size == 1 else v.reshape(-1)[index] for v in (operation.left, operation.right)
    )
    return replace(operation, left=left, right=right)


def drop_dead_units(program: Program) -> Program:
    """Drop units that nobody reads, and those without inputs, whose constant goes into the next biases.

    Of each layer one unit stays.
    """
    while True:
        before = program
        for units in hidden_units(program):
            program = _without_dead(program, units)
        if program is before:
            return program


def _without_dead(program: Program, units: Units) -> Program:
    operations: list[Any] = list(program.operations)
    layer = operations[units.maker]
    columns = [operations[place].weight.values for place in units.readers]
    unread = ~np.logical_or.reduce([(c != 0).any(0) for c in columns])
    silent = ~(layer.weight.values != 0).any(1)
    constants = _constants(program, units)
    silent &= np.logical_and.reduce([np.isfinite(c) for c in constants.values()])
    gone = unread | silent
    if gone.all():
        gone[np.argmin(unread)] = False  # one stays: one that is read, if there is any
    if not gone.any():
        return program
    for place in units.readers:
        reader = operations[place]
        operations[place] = _with_constant(reader, np.where(gone & silent, constants[reader.source], 0))
    folded = replace(program, operations=tuple(operations))
    note = f"{int(gone.sum())} of {len(gone)} units of {layer.result!r} do nothing and are gone."
    smaller = selected(folded, units, np.flatnonzero(~gone))
    return replace(smaller, notes=(*smaller.notes, note))


def _constants(program: Program, units: Units) -> dict[str, Floats]:
    """Return what each unit would be without inputs, by the name of the value that a reader takes."""
    layer: Any = program.operations[units.maker]
    count = len(layer.weight.values)
    at: Values = {layer.result: (np.zeros(count, np.float32) if layer.bias is None else layer.bias).reshape(1, count)}
    with np.errstate(all="ignore"):
        for place in units.between:
            operation: Any = program.operations[place]
            at[operation.result] = RULES[type(operation)](operation, at).astype(np.float32).reshape(1, count)
    sources = {program.operations[place].source for place in units.readers}  # type: ignore[union-attr]
    return {name: at[name][0] for name in sources}


def _with_constant(layer: Affine, constant: Floats) -> Affine:
    """Return a layer whose bias holds what constant inputs give."""
    if not constant.any():
        return layer
    if layer.input_scale is not None:
        scale = np.float32(layer.input_scale)
        constant = np.clip(np.rint(constant / scale), -127, 127) * scale
    shift = layer.weight.values.astype(np.float64) @ constant.astype(np.float64)
    return replace(layer, bias=(shift if layer.bias is None else layer.bias + shift).astype(np.float32))


def by_count(weight: Matrix) -> NDArray[np.intp]:
    """Return the order of rows by their number of non-zeros, the fullest first; equal ones stay in order."""
    return np.argsort(-np.count_nonzero(weight.values, axis=1), kind="stable")


def permute_rows(program: Program, order: Order = by_count) -> Program:
    """Put the units of each hidden layer into another order, such as rows of similar length together.

    Args:
        program: What is changed.
        order: From the weight that makes the units to their order, a permutation.

    Raises:
        ValueError: What ``order`` gives is no permutation of the units.
    """
    for units in hidden_units(program):
        layer: Any = program.operations[units.maker]
        index = np.asarray(order(layer.weight), np.intp)
        if not np.array_equal(np.sort(index), np.arange(len(layer.weight.values))):
            raise ValueError(
                f"The order of the {len(layer.weight.values)} units of {layer.result!r} is no permutation."
            )
        if not np.array_equal(index, np.arange(len(index))):
            program = selected(program, units, index)
    return program
