"""The intermediate form of a deployed policy: raw observation to environment action, as operations on named arrays.

Everything here is for one observation: shapes have no batch. An operation reads values that were made before it and
makes one value, a float32 array, once; a recurrent one also makes its next memory. NumPy alone is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Shape = tuple[int, ...]
Function = Literal[
    "relu", "tanh", "sigmoid", "elu", "leaky_relu", "gelu", "gelu_tanh", "silu", "softplus", "hardtanh", "exp", "log",
    "abs", "neg", "sqrt", "square", "softsign", "mish", "selu", "relu6", "hardsigmoid", "hardswish", "reciprocal",
    "log_sigmoid",
]  # fmt: skip

OBSERVATION, ALLOWED = "observation", "allowed"
"""Names of the two values that come from outside, beside the memory."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight as it is stored.

    Attributes:
        values: What it is worth, shape (outputs, inputs, *kernel). With codes it is exactly what they say.
        codes: Small integers of the same shape, or None: the values are stored as they are.
        scale: Of quantised codes, shape (outputs,): ``values = codes · scale`` by output.
        codebook: Of shared weights, shape (2**bits,) at most: ``values = codebook[codes]``.
        bits: Of one stored entry: 32 without codes.
    """

    values: Floats
    codes: NDArray[np.integer[Any]] | None = None
    scale: Floats | None = None
    codebook: Floats | None = None
    bits: int = 32


@dataclass(frozen=True, eq=False)
class Coding:
    """How a parameter is stored, where that is not as 32-bit numbers; its values are exactly what the codes say.

    Attributes:
        kind: ``quantized``: codes within ±(2**(bits − 1) − 1), times the scale of their output. ``shared``: places in
            a codebook.
        bits: Of one entry.
        scale: Shape (outputs,), of a quantised one.
        codebook: Shape (entries,), of a shared one.
        input_scale: Where the layer's inputs are rounded to int8 as well, their scale; see :class:`Affine`.
    """

    kind: Literal["quantized", "shared"]
    bits: int
    scale: Floats | None = None
    codebook: Floats | None = None
    input_scale: float | None = None


@dataclass(frozen=True, eq=False)
class Normalize:
    """``clip((source − mean) · factor, ±clip)``; an entry whose ``where`` is False passes as it is."""

    source: str
    result: str
    mean: Floats
    factor: Floats
    clip: float
    where: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class OneHot:
    """The integers of ``source``, flat, each as that many entries of which one is 1; one after another.

    Where ``starts`` are given they are subtracted first.
    """

    source: str
    result: str
    sizes: tuple[int, ...]
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of ``table``, shape (entries, width), picked by the integers of ``source``: (*source, width)."""

    source: str
    result: str
    table: Matrix


@dataclass(frozen=True, eq=False)
class Affine:
    """``weight @ source + bias`` over the last dimension.

    Attributes:
        input_scale: Inputs are rounded to int8, ``round(source / input_scale)`` within ±127, and the products are
            summed as integers; for quantised weights of 8 bits or fewer. None: in float32.
    """

    source: str
    result: str
    weight: Matrix
    bias: Floats | None = None
    input_scale: float | None = None


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution over ``source``, shape (channels, *places), as ``torch.nn.functional.conv1d`` to ``conv3d``.

    The weight has shape (outputs, inputs / groups, *kernel). ``padding`` is that on each side, with zeros. A
    transposed one has its weight as (inputs, outputs / groups, *kernel) and ``extra`` places at the ends, as PyTorch.
    """

    source: str
    result: str
    weight: Matrix
    bias: Floats | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    extra: tuple[int, ...] = ()
    input_scale: float | None = None


@dataclass(frozen=True, eq=False)
class Activation:
    """A function of each entry; ``parameters`` are its numbers, such as the slope of a leaky ReLU.

    Of ``elu`` (alpha,), ``leaky_relu`` (slope,), ``hardtanh`` (low, high), ``softplus`` (beta, threshold); of the
    others none. ``gelu`` is the exact one, by erf.
    """

    source: str
    result: str
    function: Function
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Binary:
    """Two operands, entry by entry, with NumPy's broadcasting; one of them may be a constant array."""

    left: str | Floats
    right: str | Floats
    result: str
    function: Literal["add", "sub", "mul", "div", "max", "min", "pow"]


@dataclass(frozen=True, eq=False)
class Norm:
    """Normalise over the last ``dims`` dimensions: ``layer`` with mean and variance, ``rms`` by the mean square."""

    source: str
    result: str
    kind: Literal["layer", "rms"]
    dims: int
    epsilon: float
    weight: Floats | None = None
    bias: Floats | None = None


@dataclass(frozen=True, eq=False)
class GroupNorm:
    """Normalise over groups of channels, dimension 0, and all places of each."""

    source: str
    result: str
    groups: int
    epsilon: float
    weight: Floats | None = None
    bias: Floats | None = None


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax over ``axis``; its logarithm where ``log``."""

    source: str
    result: str
    axis: int
    log: bool = False


@dataclass(frozen=True, eq=False)
class MatMul:
    """The matrix product of two values of two or more dimensions each, the leading ones broadcast."""

    left: str
    right: str
    result: str


@dataclass(frozen=True, eq=False)
class Reduce:
    """Reduce over ``axes``; they stay with length 1 where ``keep``."""

    source: str
    result: str
    function: Literal["mean", "sum", "max", "min"]
    axes: tuple[int, ...]
    keep: bool = False


@dataclass(frozen=True, eq=False)
class Pool:
    """Slide a window over the places of ``source``, shape (channels, *places). Padding never is a maximum.

    Of ``mean`` the padding counts as zeros where ``counted``.
    """

    source: str
    result: str
    function: Literal["mean", "max"]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    counted: bool = True


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same entries in the same order with another shape, that of ``result``."""

    source: str
    result: str


@dataclass(frozen=True, eq=False)
class Transpose:
    """Dimensions in another order, as ``numpy.transpose``."""

    source: str
    result: str
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Slice:
    """``source[start:stop:step]`` along ``axis``; ``step`` is positive."""

    source: str
    result: str
    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, eq=False)
class Concat:
    """Values one after another along ``axis``."""

    sources: tuple[str, ...]
    result: str
    axis: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that does not depend on the observation."""

    result: str
    value: Floats


@dataclass(frozen=True, eq=False)
class Recurrent:
    """One time step of one layer of an LSTM or GRU, with PyTorch's order of gates and its two biases.

    Attributes:
        source: Shape (inputs,).
        memory: Names of the values it reads: hidden and cell state of an LSTM, hidden state of a GRU; shape (units,).
        following: Names of the values it makes for the next step, in the same order; the first is its output.
        inner, outer: Weights (gates · units, inputs) and (gates · units, units).
        inner_bias, outer_bias: Shape (gates · units,), or None.
    """

    source: str
    memory: tuple[str, ...]
    following: tuple[str, ...]
    kind: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
    inner: Matrix
    outer: Matrix
    inner_bias: Floats | None = None
    outer_bias: Floats | None = None

    @property
    def result(self) -> str:
        """Name of the output."""
        return self.following[0]


@dataclass(frozen=True, eq=False)
class Choose:
    """The action of a discrete head: in each part of ``source`` the place of its largest entry, the first of equals.

    Where the program takes ``allowed``, entries that are not allowed count as −∞. Shape (parts,).
    """

    source: str
    result: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Positive:
    """The action of a Bernoulli head: 1 where ``source`` is above 0, else 0.

    Where the program takes ``allowed``, it holds two entries an action, for 0 and 1. Shape as ``source``.
    """

    source: str
    result: str


@dataclass(frozen=True, eq=False)
class Clip:
    """``clip(source, low, high)``, shape (actions,); a bound may be infinite."""

    source: str
    result: str
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class Squash:
    """``low + ½ (tanh(source) + 1) (high − low)``, shape (actions,)."""

    source: str
    result: str
    low: Floats
    high: Floats


Operation = (
    Normalize | OneHot | Embedding | Affine | Conv | Activation | Binary | Norm | GroupNorm | Softmax | MatMul | Reduce
    | Pool | Reshape | Transpose | Slice | Concat | Constant | Recurrent | Choose | Positive | Clip | Squash
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Program:
    """A policy that can be deployed.

    Attributes:
        operations: In the order of computation.
        shapes: Shape of every value by name, without a batch.
        action: Name of the value that is the action, flat or not; see ``action_shape``.
        observation_dtype: NumPy name of the raw observation's type, such as ``float32`` or ``uint8``.
        action_shape: Shape of one action in the environment, the same number of entries as the value ``action``.
        action_dtype: ``float32``, ``int64`` or ``int8``: what the environment is given.
        memory: Name of a value at the start of a step → name of the value it holds at the start of the next; zeros
            at the start of an episode.
        allowed: Entries of the mask of allowed actions that the policy takes beside the observation; 0 for none.
        notes: What was changed by a pass, for a reader.
    """

    operations: tuple[Operation, ...]
    shapes: Mapping[str, Shape]
    action: str
    observation_dtype: str
    action_shape: Shape
    action_dtype: str
    memory: Mapping[str, str] = field(default_factory=dict)
    allowed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def observation_shape(self) -> Shape:
        """Shape of one raw observation."""
        return self.shapes[OBSERVATION]


def reads(operation: Operation) -> tuple[str, ...]:
    """Return the names of the values that an operation reads."""
    if isinstance(operation, Constant):
        return ()
    if isinstance(operation, Concat):
        return operation.sources
    if isinstance(operation, Recurrent):
        return (operation.source, *operation.memory)
    if isinstance(operation, Binary | MatMul):
        return tuple(name for name in (operation.left, operation.right) if isinstance(name, str))
    return (operation.source,)


def makes(operation: Operation) -> tuple[str, ...]:
    """Return the names of the values that an operation makes."""
    return operation.following if isinstance(operation, Recurrent) else (operation.result,)


def matrices(operation: Operation) -> tuple[Matrix, ...]:
    """Return the weights of an operation."""
    if isinstance(operation, Affine | Conv):
        return (operation.weight,)
    if isinstance(operation, Recurrent):
        return (operation.inner, operation.outer)
    return (operation.table,) if isinstance(operation, Embedding) else ()
