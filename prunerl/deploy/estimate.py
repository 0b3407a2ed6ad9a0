"""What a policy would need on a device, by structure and numbers: flash, memory and instructions, estimated.

The instructions of a product of matrix and vector are linear in its multiplications and its rows. The two factors of
each structure are a fit to counts from an emulated Cortex-M4F, of networks 4-64-64-2 and 24-256-256-6, dense and at
90 % sparsity; ``docs/targets.md`` shows how close it comes. What is not from there says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunerl.deploy.program import (
    OBSERVATION,
    Activation,
    Affine,
    Conv,
    Embedding,
    MatMul,
    Matrix,
    Operation,
    Program,
    Recurrent,
    Reshape,
    Softmax,
    Squash,
    makes,
    matrices,
    reads,
)
from prunerl.deploy.targets import Target

Structure = Literal["dense", "csr", "unrolled"]
Numbers = Literal["f32", "int8", "int4"]

CODE = 1000
"""Bytes of code beside the weights; 300 to 1,000 in what was measured."""
UNROLLED = 18
"""Bytes of code that one unrolled weight takes."""
SMOOTH = 40
"""Instructions of one tanh, exponential or the like with an FPU: an assumption."""
PLAIN = 3
"""Instructions of any other entry that is made, with an FPU: an assumption."""
SOFTWARE = 70
"""Instructions of one float32 operation in software: an assumption, for a Cortex-M0."""

PER_PRODUCT_AND_ROW: dict[tuple[Structure, Numbers], tuple[float, float]] = {
    ("dense", "f32"): (3.0, 13.0),
    ("csr", "f32"): (7.2, 18.0),
    ("unrolled", "f32"): (3.5, 4.0),  # an assumption: instructions of four bytes, and the weight itself
    ("dense", "int8"): (2.5, 50.0),
    ("csr", "int8"): (6.2, 57.0),
    ("dense", "int4"): (4.5, 50.0),  # an assumption: two more to unpack
}
BITS: dict[Numbers, int] = {"f32": 32, "int8": 8, "int4": 4}
_SMOOTH = frozenset(
    "tanh sigmoid elu gelu gelu_tanh silu softplus exp log mish selu log_sigmoid".split(),
)


@dataclass(frozen=True)
class Layout:
    """How weights are stored and multiplied: where the zeros go, and what numbers are."""

    structure: Structure
    numbers: Numbers

    def __str__(self) -> str:
        return f"{self.numbers} {'CSR' if self.structure == 'csr' else self.structure}"


LAYOUTS = tuple(Layout(*key) for key in PER_PRODUCT_AND_ROW)


@dataclass(frozen=True)
class Estimate:
    """What a policy in one layout is estimated to need.

    Attributes:
        layout: Of the weights.
        flash: Bytes of weights and code.
        ram: Bytes of intermediate values and memory.
        instructions: Of one decision.
        latency: Of one decision in microseconds; None where the clock is not known.
    """

    layout: Layout
    flash: int
    ram: int
    instructions: int
    latency: float | None


@dataclass(frozen=True)
class Product:
    """A matrix that is multiplied with ``positions`` vectors; ``looked_up`` where its rows are only picked."""

    rows: int
    columns: int
    nonzeros: int
    biases: int
    positions: int
    looked_up: bool = False


def estimate(program: Program, layout: Layout, target: Target, *, share: float = 1.0) -> Estimate:
    """Estimate what a policy needs on a device, in one layout.

    A program that is quantised already is judged in the same way: a layout in f32 stores what its codes are worth.

    Args:
        program: The policy.
        layout: Of its weights.
        target: The device.
        share: Of every layer's width, as if the policy were that much narrower.
    """
    all_products = list(products(program, share=share))
    flash = CODE + sum(_bytes(each, layout) for each in all_products) + 4 * _constants(program)
    inputs = max((each.columns for each in all_products), default=0) if layout.numbers != "f32" else 0
    spent = sum(_instructions(each, layout, target) for each in all_products if not each.looked_up)
    count = math.ceil(spent + share * sum(_beside(op, program, target) for op in program.operations))
    latency = None if target.clock is None else count * target.cycles / target.clock
    return Estimate(layout, flash, math.ceil(share * scratch(program)) + inputs, count, latency)


def parameters(program: Program, *, share: float = 1.0) -> int:
    """Return the numbers of all matrices and biases."""
    return sum(each.rows * each.columns + each.biases for each in products(program, share=share))


def products(program: Program, *, share: float = 1.0) -> Iterator[Product]:
    """Yield the matrices of a program; a convolution is a matrix for each place of its result."""
    for op in program.operations:
        biases = [op.inner_bias, op.outer_bias] if isinstance(op, Recurrent) else [getattr(op, "bias", None)]
        for matrix, bias in zip(matrices(op), biases, strict=False):
            rows = len(matrix.values)
            yield Product(
                rows=math.ceil(share * rows),
                columns=math.ceil(share * (matrix.values.size // max(rows, 1))),
                nonzeros=math.ceil(share**2 * np.count_nonzero(matrix.values)),
                biases=0 if bias is None else math.ceil(share * bias.size),
                positions=_positions(op, program, rows),
                looked_up=isinstance(op, Embedding),
            )


def scratch(program: Program) -> int:
    """Return the bytes of the values that are alive at once, and of the memory between steps.

    The observation and the action lie with the caller.
    """
    alias = {op.result: op.source for op in program.operations if isinstance(op, Reshape)}

    def root(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    last = {root(name): i for i, op in enumerate(program.operations) for name in reads(op)}
    outside = {OBSERVATION, root(program.action), *program.memory}
    alive: set[str] = set()
    most = 0
    for i, op in enumerate(program.operations):
        alive |= {root(name) for name in makes(op)} - outside
        most = max(most, sum(math.prod(program.shapes[name]) for name in alive))
        kept = {root(name) for name in program.memory.values()}
        alive = {name for name in alive if last.get(name, -1) > i or name in kept}
    return 4 * (most + sum(math.prod(program.shapes[name]) for name in program.memory))


def bits(matrix: Matrix) -> int:
    """Return the bits of one stored entry."""
    return 32 if matrix.codes is None else matrix.bits


def _positions(op: Operation, program: Program, rows: int) -> int:
    if isinstance(op, Conv):
        return math.prod(program.shapes[op.source if op.transposed else op.result][1:])
    return math.prod(program.shapes[op.result]) // max(rows, 1) if isinstance(op, Affine) else 1


def _bytes(each: Product, layout: Layout) -> int:
    beside = 4 * each.biases + (0 if layout.numbers == "f32" else 4 * each.rows)
    if layout.structure == "unrolled":
        return UNROLLED * each.nonzeros + beside
    width = BITS[layout.numbers]
    if layout.structure == "dense":
        return math.ceil(each.rows * each.columns * width / 8) + beside
    index = 1 if each.columns <= 256 else 2
    return each.nonzeros * (width // 8 + index) + 2 * (each.rows + 1) + beside


def _constants(program: Program) -> int:
    """Return the numbers beside the matrices, such as observation statistics and the scales of a norm."""
    names = ("mean", "factor", "low", "high", "value", "weight", "bias")
    others = [op for op in program.operations if not matrices(op)]
    arrays = [getattr(op, name, None) for op in others for name in names]
    return sum(array.size for array in arrays if isinstance(array, np.ndarray))


def _instructions(each: Product, layout: Layout, target: Target) -> float:
    product, row = PER_PRODUCT_AND_ROW[layout.structure, layout.numbers]
    macs = each.positions * (each.rows * each.columns if layout.structure == "dense" else each.nonzeros)
    rows = each.positions * each.rows
    if layout.structure == "dense":
        product /= target.lanes
    if not target.fpu:
        # A multiplication and a sum each; with whole numbers, rounding the inputs and scaling the rows are left.
        product, row = (product + 2 * SOFTWARE, row) if layout.numbers == "f32" else (product, row + 3 * SOFTWARE)
    return product * macs + row * rows


def _beside(op: Operation, program: Program, target: Target) -> float:
    """Return the instructions of what an operation does beside its matrices."""
    size = sum(math.prod(program.shapes[name]) for name in makes(op))
    if isinstance(op, Reshape) or (matrices(op) and not isinstance(op, Recurrent)):
        return 0.0
    if isinstance(op, MatMul):
        return size * program.shapes[op.left][-1] * (PLAIN if target.fpu else 2 * SOFTWARE)
    smooth = isinstance(op, Recurrent | Softmax | Squash) or (isinstance(op, Activation) and op.function in _SMOOTH)
    each = SMOOTH if smooth else PLAIN
    return size * each * (5 if isinstance(op, Recurrent) else 1) * (1 if target.fpu else SOFTWARE / PLAIN)
