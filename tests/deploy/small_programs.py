"""Small programs with random weights which together use every operation in each of its forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from prunerl.deploy.program import (
    Activation,
    Affine,
    Binary,
    Choose,
    Clip,
    Concat,
    Constant,
    Conv,
    Embedding,
    Function,
    GroupNorm,
    MatMul,
    Matrix,
    Norm,
    Normalize,
    OneHot,
    Operation,
    Pool,
    Positive,
    Program,
    Recurrent,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Squash,
    Transpose,
)

rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def matrix(*shape: int) -> Matrix:
    return Matrix(floats(*shape) * np.float32(0.5))


def quantized(*shape: int, bits: int = 8) -> Matrix:
    most = 2 ** (bits - 1) - 1
    codes = rng.integers(-most, most + 1, shape).astype(np.int8)
    scale = (rng.uniform(0.5, 1.5, shape[0]) / most).astype(np.float32)
    values = codes * scale.reshape(-1, *(1,) * (len(shape) - 1))
    return Matrix(values, codes, scale, None, bits)


def shared(*shape: int, bits: int = 4) -> Matrix:
    codebook = floats(2**bits - 1)
    codes = rng.integers(0, len(codebook), shape).astype(np.uint8)
    return Matrix(codebook[codes], codes, None, codebook, bits)


def program(*operations: Operation, shapes: Mapping[str, tuple[int, ...]], **others: Any) -> Program:
    last = operations[-1]
    discrete = isinstance(last, Choose | Positive)
    told: dict[str, Any] = {
        "action": last.result,
        "observation_dtype": "float32",
        "action_shape": shapes[last.result],
        "action_dtype": ("int64" if isinstance(last, Choose) else "int8") if discrete else "float32",
        **others,
    }
    return Program(tuple(operations), shapes, **told)


def one(operation: Operation, source: tuple[int, ...], result: tuple[int, ...], **others: Any) -> Program:
    return program(operation, shapes={"observation": source, "out": result}, **others)


X, Y = "observation", "out"


def _mlp(first: Matrix, second: Matrix, input_scale: float | None = None) -> Program:
    return program(
        Normalize(X, "n", floats(5), np.abs(floats(5)), 2.0),
        Affine("n", "h", first, floats(7), input_scale),
        Activation("h", "a", "tanh"),
        Affine("a", "o", second, None, None if input_scale is None else 1 / 127),
        Choose("o", Y, (3, 2)),
        shapes={X: (5,), "n": (5,), "h": (7,), "a": (7,), "o": (5,), Y: (2,)},
    )


def _conv(weight: Matrix, shape: tuple[int, ...], result: tuple[int, ...], **others: Any) -> Program:
    places = len(shape) - 1
    told: dict[str, Any] = {"stride": (1,) * places, "padding": (0,) * places, "dilation": (1,) * places, **others}
    return one(Conv(X, Y, weight, floats(result[0]), **told), shape, result)


def _cell(kind: Any, gates: int, **others: Any) -> Program:
    memory = ("h", "c") if kind == "lstm" else ("h",)
    following = tuple(f"{name}_next" for name in memory)
    told: dict[str, Any] = {"inner_bias": floats(gates * 4), "outer_bias": floats(gates * 4), **others}
    cell = Recurrent(X, memory, following, kind, matrix(gates * 4, 3), matrix(gates * 4, 4), **told)
    return program(
        cell,
        Affine("h_next", Y, matrix(2, 4), floats(2)),
        shapes={X: (3,), Y: (2,), **dict.fromkeys((*memory, *following), (4,))},
        memory=dict(zip(memory, following, strict=True)),
    )


BOUNDS = (np.array([-1, -0.5, -np.inf], np.float32), np.array([0.5, np.inf, 1], np.float32))
PARAMETERS: dict[str, tuple[float, ...]] = {
    "elu": (0.7,),
    "leaky_relu": (0.2,),
    "hardtanh": (-0.5, 1.5),
    "softplus": (2.0, 20.0),
}

PROGRAMS: dict[str, Program] = {
    "mlp": _mlp(matrix(7, 5), matrix(5, 7)),
    "mlp int8": _mlp(quantized(7, 5), quantized(5, 7)),
    "mlp int4": _mlp(quantized(7, 5, bits=4), quantized(5, 7, bits=3)),
    "mlp shared": _mlp(shared(7, 5), shared(5, 7, bits=2)),
    "mlp int8 inputs": _mlp(quantized(7, 5), quantized(5, 7), 2 / 127),
    "normalize where": one(
        Normalize(X, Y, floats(3), np.abs(floats(3)), 10.0, np.array([True, False, True])), (3,), (3,)
    ),
    "normalize image": one(
        Normalize(X, Y, np.array(0, np.float32), np.array(1 / 255, np.float32), np.inf), (2, 3, 3), (2, 3, 3)
    ),
    "one hot": one(OneHot(X, Y, (3, 2)), (2,), (5,)),
    "one hot from": one(OneHot(X, Y, (3, 2), (1, -1)), (2,), (5,)),
    "discrete observation": one(OneHot(X, Y, (4,)), (), (4,), observation_dtype="int64"),
    "embedding": one(Embedding(X, Y, matrix(4, 3)), (2,), (2, 3), observation_dtype="int64"),
    "embedding int8": one(Embedding(X, Y, quantized(4, 3)), (), (3,), observation_dtype="int64"),
    "affine of tokens": one(Affine(X, Y, matrix(4, 3), floats(4)), (5, 3), (5, 4)),
    "affine of tokens int8": one(Affine(X, Y, quantized(4, 3), floats(4), 0.02), (5, 3), (5, 4)),
    "conv 1d": _conv(matrix(4, 2, 3), (2, 9), (4, 4), stride=(2,), padding=(1,), dilation=(2,)),
    "conv 2d": _conv(matrix(4, 3, 3, 2), (3, 8, 7), (4, 4, 4), stride=(2, 2), padding=(1, 1)),
    "conv 2d int8": _conv(quantized(4, 3, 3, 2), (3, 8, 7), (4, 6, 6)),
    "conv 2d shared": _conv(shared(4, 3, 3, 2), (3, 8, 7), (4, 6, 6)),
    "conv 2d int8 inputs": _conv(quantized(4, 3, 3, 2), (3, 8, 7), (4, 6, 6), input_scale=0.03),
    "conv 3d": _conv(matrix(2, 2, 2, 2, 2), (2, 4, 4, 4), (2, 3, 3, 3)),
    "conv groups": _conv(matrix(4, 1, 3, 3), (2, 5, 5), (4, 3, 3), groups=2),
    "conv depthwise": _conv(matrix(2, 1, 3, 3), (2, 5, 5), (2, 3, 3), groups=2),
    "conv transposed": _conv(
        matrix(3, 2, 3, 3), (3, 4, 4), (2, 10, 10), stride=(2, 2), padding=(0, 0), transposed=True, extra=(1, 1)
    ),
    "binary of ranks": program(
        Reduce(X, "r", "mean", (0,)),
        Binary("r", X, "d", "sub"),
        Binary(floats(2, 3, 4), "d", Y, "mul"),
        shapes={X: (3, 4), "r": (4,), "d": (3, 4), Y: (2, 3, 4)},
    ),
    "binary pow": one(Binary(X, np.array(2, np.float32), Y, "pow"), (3,), (3,)),
    "layer norm": one(Norm(X, Y, "layer", 1, 1e-5, floats(4), floats(4)), (3, 4), (3, 4)),
    "layer norm of two": one(Norm(X, Y, "layer", 2, 1e-5), (3, 4), (3, 4)),
    "rms norm": one(Norm(X, Y, "rms", 1, 1e-6, floats(4)), (4,), (4,)),
    "group norm": one(GroupNorm(X, Y, 2, 1e-5, floats(4), floats(4)), (4, 3, 3), (4, 3, 3)),
    "softmax": one(Softmax(X, Y, 1), (3, 4), (3, 4)),
    "softmax of columns": one(Softmax(X, Y, 0), (3, 4), (3, 4)),
    "log softmax": one(Softmax(X, Y, 0, log=True), (4,), (4,)),
    "attention": program(
        Affine(X, "q", matrix(4, 4)),
        Affine(X, "k", matrix(4, 4)),
        Transpose("k", "kt", (1, 0)),
        MatMul("q", "kt", "s"),
        Softmax("s", "p", 1),
        MatMul("p", X, Y),
        shapes={X: (3, 4), "q": (3, 4), "k": (3, 4), "kt": (4, 3), "s": (3, 3), "p": (3, 3), Y: (3, 4)},
    ),
    "product of ranks": program(
        Constant("w", floats(2, 1, 4, 5)),
        MatMul(X, "w", "l"),
        Transpose("l", "r", (0, 1, 3, 2)),
        MatMul("r", X, Y),
        shapes={X: (3, 6, 4), "w": (2, 1, 4, 5), "l": (2, 3, 6, 5), "r": (2, 3, 5, 6), Y: (2, 3, 5, 4)},
    ),
    **{
        f"reduce {f}": one(Reduce(X, Y, f, (0, 2), keep=f == "sum"), (2, 3, 4), (1, 3, 1) if f == "sum" else (3,))
        for f in ("mean", "sum", "max", "min")
    },
    "max pool": one(Pool(X, Y, "max", (3, 2), (2, 1), (1, 0)), (2, 6, 5), (2, 3, 4)),
    "mean pool": one(Pool(X, Y, "mean", (2, 2), (2, 2), (1, 1)), (2, 6, 6), (2, 4, 4)),
    "mean pool not counted": one(Pool(X, Y, "mean", (2, 2), (2, 2), (1, 1), counted=False), (2, 6, 6), (2, 4, 4)),
    "mean pool 1d": one(Pool(X, Y, "mean", (2,), (2,), (0,)), (2, 6), (2, 3)),
    "shapes": program(
        Transpose(X, "t", (2, 0, 1)),
        Reshape("t", "r", ),
        Slice("r", "s", 0, 1, 23, 3),
        Constant("one", np.ones(2, np.float32)),
        Concat(("s", "one"), Y, 0),
        shapes={X: (2, 3, 4), "t": (4, 2, 3), "r": (24,), "s": (8,), "one": (2,), Y: (10,)},
    ),
    "lstm": _cell("lstm", 4),
    "lstm without bias": _cell("lstm", 4, inner_bias=None, outer_bias=None),
    "gru": _cell("gru", 3),
    "rnn": _cell("rnn_tanh", 1),
    "rnn relu": _cell("rnn_relu", 1),
    "masked": one(Choose(X, Y, (3, 2)), (5,), (2,), allowed=5),
    "bernoulli": one(Positive(X, Y), (3,), (3,)),
    "bernoulli masked": one(Positive(X, Y), (3,), (3,), allowed=6),
    "one choice": one(Choose(X, Y, (4,)), (4,), (1,), action_shape=()),
    "clip": one(Clip(X, Y, *BOUNDS), (3,), (3,)),
    "squash": one(Squash(X, Y, np.array([-2, 0], np.float32), np.array([2, 3], np.float32)), (2,), (2,)),
    "action of another shape": one(Squash(X, Y, -floats(4) ** 2, floats(4) ** 2), (4,), (4,), action_shape=(2, 2)),
    "double": replace(_mlp(matrix(7, 5), matrix(5, 7)), observation_dtype="float64"),
    "bytes": program(
        Binary(X, np.array(1 / 255, np.float32), "f", "mul"),
        Affine("f", Y, matrix(2, 6), floats(2)),
        shapes={X: (6,), "f": (6,), Y: (2,)},
        observation_dtype="uint8",
    ),
    **{
        function: one(Activation(X, Y, function, PARAMETERS.get(function, ())), (6,), (6,))
        for function in get_args(Function)
    },
}  # fmt: skip


def inputs(made: Program, count: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """Return observations, memory and mask of allowed actions that fit a program."""
    draw = np.random.default_rng(seed)
    shape = (count, *made.observation_shape)
    integers = any(isinstance(o, OneHot | Embedding) for o in made.operations)
    if made.observation_dtype == "uint8":
        observations = draw.integers(0, 256, shape)
    elif integers:
        low = min((min(o.starts, default=0) for o in made.operations if isinstance(o, OneHot)), default=0)
        observations = draw.integers(max(low, 0), 2, shape)
    else:
        observations = draw.standard_normal(shape) * 2
        if any(isinstance(o, Activation) and o.function in ("log", "sqrt") for o in made.operations):
            observations = np.abs(observations) + 0.1
    memory = {name: draw.standard_normal((count, *made.shapes[name])).astype(np.float32) for name in made.memory}
    allowed = None
    if made.allowed:
        allowed = draw.random((count, made.allowed)) < 0.6
        allowed[:, ::2] |= ~allowed.any(axis=1, keepdims=True)
    return observations.astype(made.observation_dtype), memory, allowed
