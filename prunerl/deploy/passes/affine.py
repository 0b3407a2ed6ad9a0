"""Fold what is affine into the layer before or after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from prunerl.deploy.passes.edit import makers, readers, scaled, sole, with_operations
from prunerl.deploy.program import (
    Affine,
    Binary,
    Conv,
    Floats,
    Matrix,
    Operation,
    Program,
    Reduce,
    Reshape,
    Shape,
    reads,
)

Layer = Affine | Conv
"""What a factor or an offset can be folded into."""


def fold_affine(program: Program) -> Program:
    """Fold sums and products with constants, and means over outputs, into layers, and layers into each other.

    A layer is only folded into where nothing else reads what is between; two layers become one where that has no more
    weights than both. Codes are kept: a factor goes into the scale or the codebook, or stays where it is.
    """
    while True:
        folded = _once(program) or _averaged(program)
        if folded is None:
            return program
        program = folded


def _once(program: Program) -> Program | None:
    found, made = readers(program), makers(program)
    for place, layer in enumerate(program.operations):
        if not isinstance(layer, Affine | Conv):
            continue
        after = sole(found, layer.result)
        if after is not None:
            new = _with_next(layer, program.operations[after], program)
            if new is not None:
                return _replaced(program, place, after, new)
        before = made.get(layer.source)
        if before is not None and sole(found, layer.source) == place:
            new = _with_before(layer, program.operations[before], program)
            if new is not None:
                return _replaced(program, before, place, new)
    return None


def _replaced(program: Program, first: int, second: int, new: Operation) -> Program:
    """Return the program with one operation in place of two; it stands where the second one did."""
    operations = list(program.operations)
    operations[second] = new
    del operations[first]
    return with_operations(program, operations)


def _with_next(layer: Layer, after: Operation, program: Program) -> Layer | None:
    """Return a layer that also does what reads its output."""
    if isinstance(after, Binary):
        return _rows(layer, after, program.shapes[layer.result], program.shapes[after.result])
    if isinstance(after, Affine) and isinstance(layer, Affine):
        return _composed(layer, after)
    return None


def _with_before(layer: Layer, before: Operation, program: Program) -> Layer | None:
    """Return a layer that also does what makes its input."""
    if not isinstance(before, Binary) or layer.input_scale is not None:
        return None
    if any(program.shapes[name] != program.shapes[before.result] for name in reads(before)):
        return None
    return _columns(layer, before, program.shapes[before.result])


def _constant(operation: Binary) -> tuple[str, Floats, bool] | None:
    """Return what an operation with a constant reads, the constant, and whether it stands on the right."""
    if isinstance(operation.left, str) and not isinstance(operation.right, str):
        return operation.left, operation.right, True
    if isinstance(operation.right, str) and not isinstance(operation.left, str):
        return operation.right, operation.left, False
    return None


def _line(operation: Binary, shape: Shape, axis: int) -> tuple[str, Floats, Floats] | None:
    """Return what an operation reads, and the factor and offset of each entry along one axis; None if not affine.

    Args:
        operation: With one constant.
        shape: Of what it reads.
        axis: Along which its constant may differ.
    """
    found = _constant(operation)
    if found is None or not np.isfinite(found[1]).all():
        return None
    source, constant, right = found
    if np.broadcast_shapes(constant.shape, shape) != shape:
        return None
    full = constant.reshape(*[1] * (len(shape) - constant.ndim), *constant.shape)
    if any(n > 1 and a != axis for a, n in enumerate(full.shape)):
        return None
    vector = np.broadcast_to(full.reshape(-1), (shape[axis],)).astype(np.float32)
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    if operation.function == "div" and (not right or not vector.all()):
        return None
    lines: dict[str, tuple[Floats, Floats]] = {
        "add": (ones, vector),
        "sub": (ones, -vector) if right else (-ones, vector),
        "mul": (vector, zeros),
        "div": (np.divide(ones, vector, out=ones.copy(), where=vector != 0), zeros),
    }
    return (source, *lines[operation.function]) if operation.function in lines else None


def _rows(layer: Layer, after: Binary, shape: Shape, made: Shape) -> Layer | None:
    """Fold a factor and an offset of each output into weight and bias."""
    if shape != made or (isinstance(layer, Conv) and layer.transposed):
        return None
    line = _line(after, shape, len(shape) - 1 if isinstance(layer, Affine) else 0)
    if line is None:
        return None
    _, factor, offset = line
    weight = layer.weight if bool((factor == 1).all()) else scaled(layer.weight, factor, axis=0)
    if weight is None:
        return None
    bias = offset if layer.bias is None else layer.bias * factor + offset
    biased = layer.bias is not None or bool(bias.any())
    return replace(layer, result=after.result, weight=weight, bias=bias if biased else None)


def _columns(layer: Layer, before: Binary, shape: Shape) -> Layer | None:
    """Fold a factor and an offset of each input into weight and bias."""
    if isinstance(layer, Conv) and (layer.transposed or layer.groups > 1):
        return None
    line = _line(before, shape, len(shape) - 1 if isinstance(layer, Affine) else 0)
    if line is None:
        return None
    source, factor, offset = line
    if offset.any() and isinstance(layer, Conv) and any(layer.padding):
        return None  # the padding is zeros after the sum, not before it
    if offset.any() and layer.bias is None and len(layer.weight.values) > offset.size:
        return None  # the bias would be longer than what it replaces
    weight = layer.weight if bool((factor == 1).all()) else scaled(layer.weight, factor, axis=1)
    if weight is None:
        return None
    axes = tuple(range(2, layer.weight.values.ndim))
    shift = layer.weight.values.astype(np.float64).sum(axes) @ offset.astype(np.float64)
    bias = layer.bias
    if shift.any():
        bias = (shift if bias is None else bias + shift).astype(np.float32)
    return replace(layer, source=source, weight=weight, bias=bias)


def _composed(first: Affine, second: Affine) -> Affine | None:
    """Return two layers as one, if that has no more weights than both."""
    if first.weight.codes is not None or second.weight.codes is not None:
        return None
    inner, outer = first.weight.values.astype(np.float64), second.weight.values.astype(np.float64)
    if len(outer) * inner.shape[1] > inner.size + outer.size:
        return None
    product = (outer @ inner).astype(np.float32)
    if np.count_nonzero(product) > np.count_nonzero(inner) + np.count_nonzero(outer):
        return None
    bias = second.bias
    if first.bias is not None:
        shift = outer @ first.bias
        bias = (shift if bias is None else shift + bias).astype(np.float32)
    return Affine(first.source, second.result, Matrix(product), bias)


def _averaged(program: Program) -> Program | None:
    """Fold a mean or sum over a layer's outputs into it, as over the quantiles of each action, if there is one."""
    found, made = readers(program), makers(program)
    for place, reduce in enumerate(program.operations):
        if not isinstance(reduce, Reduce) or reduce.function not in ("mean", "sum"):
            continue
        chain = _chain_to(program, reduce.source, found, made)
        if chain is None or len(program.shapes[reduce.result]) != 1:
            continue
        layer: Any = program.operations[chain[0]]
        new = _mean(layer, reduce, program.shapes[reduce.source])
        kept = [op for i, op in enumerate(program.operations) if i not in chain and i != place]
        kept.insert(place - len(chain), new)
        return with_operations(program, kept)
    return None


def _chain_to(program: Program, source: str, found: dict[str, list[int]], made: dict[str, int]) -> list[int] | None:
    """Return the places of a layer without codes and the reshape after it, if any, that alone make a value."""
    places: list[int] = []
    while sole(found, source) is not None and source in made:
        operation = program.operations[made[source]]
        places.insert(0, made[source])
        if isinstance(operation, Affine):
            plain = operation.weight.codes is None and len(program.shapes[operation.result]) == 1
            return places if plain else None
        if not isinstance(operation, Reshape):
            return None
        source = operation.source
    return None


def _mean(layer: Affine, reduce: Reduce, shape: Shape) -> Affine:
    function: Any = np.mean if reduce.function == "mean" else np.sum
    inputs = layer.weight.values.shape[1]
    weight = function(layer.weight.values.reshape(*shape, inputs), axis=reduce.axes, dtype=np.float64)
    bias = None if layer.bias is None else function(layer.bias.reshape(shape), axis=reduce.axes, dtype=np.float64)
    return Affine(
        layer.source,
        reduce.result,
        Matrix(weight.reshape(-1, inputs).astype(np.float32)),
        None if bias is None else bias.reshape(-1).astype(np.float32),
        layer.input_scale,
    )
