"""A program as steps in C: products of matrix and vector apart, everything else as the portable C99 has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from prunerl.deploy.c99 import layers, operations
from prunerl.deploy.c99.step import Context, Step
from prunerl.deploy.kernels.layer import Layer
from prunerl.deploy.kernels.vector import FUSED
from prunerl.deploy.program import Activation, Affine, Floats, Matrix, Operation, Program, Recurrent, reads

ROUND = 32
"""Floats: values begin at multiples of that, so that vectors are aligned and blocks may end past the last entry."""


@dataclass(frozen=True, eq=False)
class Product:
    """A layer in its place in a program.

    Attributes:
        name: Of the value made, for a reader.
        source, result: Values.
        positions: Vectors that it is applied to in one observation.
    """

    name: str
    layer: Layer
    source: str
    result: str
    positions: int


@dataclass(frozen=True, eq=False)
class Sequence:
    """The steps of a program; those at the places in ``products`` are layers, whose lines are still to be written."""

    context: Context
    steps: tuple[Step, ...]
    products: Mapping[int, Product]


def sequence(program: Program, *, exact_tanh: bool) -> Sequence:
    """Return the steps of a program.

    Raises:
        ExportError: An operation has no form in C.
    """
    tanh = "tanhf" if exact_tanh else "policy_tanh"
    names = operations.identifiers(program)
    context = Context(program, names, "policy", sparse=math.inf, unroll=False, tanh=tanh)
    fused = _fused(program, exact_tanh=exact_tanh)
    gone = {id(activation) for activation in fused.values()}
    steps: list[Step] = []
    products: dict[int, Product] = {}
    for operation in program.operations:
        if id(operation) in gone:
            continue
        for step, product in _steps(operation, context, fused.get(id(operation))):
            if product is not None:
                products[len(steps)] = product
            steps.append(replace(step, makes={n: -(-size // ROUND) * ROUND for n, size in step.makes.items()}))
    return Sequence(context, tuple(steps), products)


def _fused(program: Program, *, exact_tanh: bool) -> dict[int, Activation]:
    """Find the layers whose result is read by one activation alone: identity of the layer → activation."""
    readers = Counter(name for operation in program.operations for name in reads(operation))
    readers.update((program.action, *program.memory.values()))
    made = {op.result: op for op in program.operations if isinstance(op, Affine)}
    functions = [f for f in FUSED if not (exact_tanh and f in ("tanh", "sigmoid", "silu"))]
    return {
        id(made[op.source]): op
        for op in program.operations
        if isinstance(op, Activation) and op.function in functions and op.source in made and readers[op.source] == 1
    }


def _steps(
    operation: Operation, context: Context, activation: Activation | None
) -> Iterator[tuple[Step, Product | None]]:
    if isinstance(operation, Affine):
        if operation.input_scale is not None:
            operations.steps(operation, context)  # refuses what cannot be rounded
        result = operation.result if activation is None else activation.result
        function = "" if activation is None else activation.function
        layer = layer_of(operation.weight, operation.bias, function, operation.input_scale)
        positions = context.size(operation.source) // layer.columns
        product = Product(operation.result, layer, operation.source, result, positions)
        yield Step(reads=(operation.source,), makes={result: context.size(result)}), product
    elif isinstance(operation, Recurrent):
        inner, outer, cell = layers.recurrent(operation, context)
        parts = ((inner, operation.inner, operation.inner_bias), (outer, operation.outer, operation.outer_bias))
        for step, weight, bias in parts:
            (result,) = step.makes
            layer = layer_of(weight, bias)
            yield Step(reads=step.reads, makes=step.makes), Product(result, layer, step.reads[0], result, 1)
        yield cell, None
    else:
        yield from ((step, None) for step in operations.steps(operation, context))


def layer_of(weight: Matrix, bias: Floats | None = None, function: str = "", input_scale: float | None = None) -> Layer:
    """Return a weight as a layer."""
    values = np.ascontiguousarray(weight.values, np.float32)
    zeros = np.zeros(len(values), np.float32) if bias is None else np.asarray(bias, np.float32)
    coded = weight.codes is not None and weight.scale is not None and weight.bits <= 8
    codes = np.ascontiguousarray(weight.codes, np.int8) if coded else None
    return Layer(values, zeros, function, codes, weight.scale if coded else None, input_scale)
