"""What a policy would need on a device, by structure and numbers: flash, memory and instructions, estimated.

The instructions of a product of matrix and vector are linear in its multiplications and its rows. The two factors of
a structure are fitted to what ``benchmarks/cortex.py`` counts of the C files on an emulated Cortex-M4F and Cortex-M0;
``docs/targets.md`` shows how close it comes. What is not from there says that it is an assumption.
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

CODE = 1300
"""Bytes of code beside the weights; 360 to 1,310 in what was measured."""
UNROLLED = 18
"""Bytes of code that one unrolled weight takes."""
PLAIN, SMOOTH = 3, 20
"""Instructions of one entry with an FPU: of a tanh, or another smooth function, as measured; of others assumed."""
SOFTWARE = 95
"""Instructions of one float32 operation in software, on a Cortex-M0."""
SMOOTH_OPERATIONS, SCALING_OPERATIONS = 21, 9
"""Float32 operations of one tanh; and of rounding the inputs and scaling the result of whole products, a row."""

PER_PRODUCT_AND_ROW: dict[tuple[Structure, Numbers], tuple[float, float]] = {
    ("dense", "f32"): (2.5, 10.0),
    ("csr", "f32"): (7.0, 14.0),
    ("unrolled", "f32"): (3.5, 4.0),  # an assumption: instructions of four bytes, and the weight itself
    ("dense", "int8"): (1.4, 42.0),
    ("csr", "int8"): (5.2, 52.0),
    ("dense", "int4"): (6.0, 42.0),  # an assumption
}
CONVERTED = 3.0
"""Instructions more where small integers meet inputs in float32: an assumption."""
WHOLE_M0 = 4.6
"""Instructions more of a product of whole numbers on a Cortex-M0, which has none that takes several at once."""
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
    """A matrix that is multiplied with ``positions`` vectors.

    ``looked_up``: its rows are only picked. ``whole``: quantised, it meets inputs that are rounded as well.
    """

    rows: int
    columns: int
    nonzeros: int
    biases: int
    positions: int
    looked_up: bool = False
    whole: bool = True


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
    ram = math.ceil(share * scratch(program, rounded=layout.numbers != "f32"))
    spent = sum(_instructions(each, layout, target) for each in all_products if not each.looked_up)
    count = math.ceil(spent + share * sum(_beside(op, program, target) for op in program.operations))
    latency = None if target.clock is None else count * target.cycles / target.clock
    return Estimate(layout, flash, ram, count, latency)


def parameters(program: Program, *, share: float = 1.0) -> int:
    """Return the numbers of all matrices and biases."""
    return sum(each.rows * each.columns + each.biases for each in products(program, share=share))


def products(program: Program, *, share: float = 1.0) -> Iterator[Product]:
    """Yield the matrices of a program; a convolution is a matrix for each place of its result."""
    rounding = _rounding(program)
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
                whole=op in rounding,
            )


def scratch(program: Program, *, rounded: bool = False) -> int:
    """Return the bytes of the values that are alive at once, and of the memory between steps.

    The observation and the action lie with the caller; functions of single entries work in place.

    Args:
        program: The policy.
        rounded: Whether inputs of layers are rounded to whole numbers, which are kept in 16 bits.
    """
    alias = {op.result: op.source for op in program.operations if isinstance(op, Reshape)}

    def root(name: str) -> str:
        while name in alias:
            name = alias[name]
        return name

    def taken(names: set[str]) -> int:
        return 4 * sum(math.prod(program.shapes[name]) for name in names)

    last = {root(name): i for i, op in enumerate(program.operations) for name in reads(op)}
    kept = {root(name) for name in program.memory.values()}
    outside = {OBSERVATION, root(program.action), *program.memory}
    rounding = _rounding(program) if rounded else set()
    alive: set[str] = set()
    most = 0
    for i, op in enumerate(program.operations):
        left = {name for name in alive if last.get(name, -1) > i or name in kept}
        made = {root(name) for name in makes(op)} - outside
        codes = sum(2 * math.prod(program.shapes[name]) for name in reads(op)) if op in rounding else 0
        most = max(most, taken(alive) + codes)
        frees = isinstance(op, Activation) or op in rounding
        most = max(most, taken((left if frees else alive) | made) + codes)
        alive = left | {name for name in made if last.get(name, -1) > i or name in kept}
    return most + taken(set(program.memory))


def _rounding(program: Program) -> set[Operation]:
    """Return the layers whose inputs are rounded: those that say so, else those that would be, all but the first."""
    layers = [op for op in program.operations if isinstance(op, Affine | Conv)]
    return {op for op in layers if op.input_scale is not None} or set(layers[1:])


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
    return each.nonzeros * (width // 8 + index) + index * each.rows + beside


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
    whole = layout.numbers != "f32" and each.whole
    if layout.numbers != "f32" and not whole:
        product += CONVERTED
    if layout.structure == "dense":
        product /= target.lanes
    if not target.fpu:
        operations = 2 if layout.numbers == "f32" else 3  # the third turns a code into a float32
        product += WHOLE_M0 if whole else operations * SOFTWARE
        row += SCALING_OPERATIONS * SOFTWARE if whole else 0
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
    if not target.fpu:
        each = SOFTWARE * (SMOOTH_OPERATIONS if smooth else 1)
    return size * each * (5 if isinstance(op, Recurrent) else 1)
