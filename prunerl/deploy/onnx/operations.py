"""Each simple operation of a program as nodes of an ONNX graph."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from prunerl.deploy.expand import one_hot_columns
from prunerl.deploy.onnx.graph import Graph
from prunerl.deploy.program import (
    ALLOWED,
    OBSERVATION,
    Activation,
    Affine,
    Binary,
    Choose,
    Concat,
    Constant,
    Conv,
    Embedding,
    MatMul,
    OneHot,
    Pool,
    Positive,
    Program,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Transpose,
)
from prunerl.errors import ExportError

AXES_AS_INPUT = 18
"""From this opset on all reductions take their axes as an input; before, all but the sum as an attribute."""

FUNCTIONS = {
    "relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu", "leaky_relu": "LeakyRelu", "exp": "Exp",
    "log": "Log", "abs": "Abs", "neg": "Neg", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "selu": "Selu",
    "softsign": "Softsign",
}  # fmt: skip
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow"}
Values = dict[str, str]
"""Name of a value of the program → its name in the graph."""


def write(program: Program, graph: Graph) -> None:
    """Add the nodes of all operations, between the casts of the observation and of the action.

    Raises:
        ExportError: The opset lacks an operator.
    """
    graph.where = OBSERVATION
    values = {OBSERVATION: graph.node("Cast", OBSERVATION, to=TensorProto.FLOAT), **{n: n for n in program.memory}}
    for operation in program.operations:
        graph.where = operation.result
        values[operation.result] = apply(operation, graph, values)
    graph.where = "action"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(program.action_dtype))
    flat = graph.reshaped(values[program.action], program.action_shape)
    graph.node("Cast", flat, to=kind, result="action")
    for before, after in program.memory.items():
        graph.node("Identity", values[after], result=f"next_{before}")


@singledispatch
def apply(operation: Any, graph: Graph, values: Values) -> str:
    """Add the nodes of an operation and return the name of what they make."""
    raise ExportError(f"ONNX has no form of {type(operation).__name__} (value {operation.result!r}).")


@apply.register
def _affine(operation: Affine, graph: Graph, values: Values) -> str:
    source, weight = values[operation.source], operation.weight
    if operation.input_scale is None:
        product = graph.node("MatMul", source, graph.weight(weight, turned=True))
    else:
        assert weight.codes is not None  # rounded inputs have weights in codes
        assert weight.scale is not None
        whole = graph.node("Cast", _rounded(source, operation.input_scale, graph), to=TensorProto.INT8)
        codes = graph.constant(weight.codes.T, np.int8)
        total = graph.node("Cast", graph.node("MatMulInteger", whole, codes), to=TensorProto.FLOAT)
        product = graph.node("Mul", total, graph.constant(weight.scale * np.float32(operation.input_scale)))
    return product if operation.bias is None else graph.node("Add", product, graph.constant(operation.bias))


def _rounded(source: str, scale: float, graph: Graph) -> str:
    """Return the whole numbers that inputs are rounded to, as floats."""
    whole = graph.node("Round", graph.node("Div", source, graph.constant(scale)))
    return graph.node("Clip", whole, graph.constant(-127.0), graph.constant(127.0))


@apply.register
def _conv(operation: Conv, graph: Graph, values: Values) -> str:
    source = values[operation.source]
    numbers: dict[str, Any] = {
        "kernel_shape": operation.weight.values.shape[2:],
        "strides": operation.stride,
        "pads": (*operation.padding, *operation.padding),
        "dilations": operation.dilation,
        "group": operation.groups,
    }
    if operation.transposed:
        numbers["output_padding"] = operation.extra or (0,) * len(operation.stride)
    if operation.input_scale is not None:
        rounded = _rounded(source, operation.input_scale, graph)
        source = graph.node("Mul", rounded, graph.constant(operation.input_scale))
    bias = () if operation.bias is None else (graph.constant(operation.bias),)
    kind = "ConvTranspose" if operation.transposed else "Conv"
    return graph.node(kind, source, graph.weight(operation.weight), *bias, **numbers)


@apply.register
def _activation(operation: Activation, graph: Graph, values: Values) -> str:
    source, parameters = values[operation.source], operation.parameters
    if operation.function == "gelu":
        error = graph.node("Erf", graph.node("Mul", source, graph.constant(math.sqrt(0.5))))
        half = graph.node("Mul", source, graph.constant(0.5))
        return graph.node("Mul", half, graph.node("Add", error, graph.constant(1.0)))
    numbers: dict[str, Any] = {"alpha": parameters[0]} if parameters else {}
    return graph.node(FUNCTIONS[operation.function], source, **numbers)


@apply.register
def _binary(operation: Binary, graph: Graph, values: Values) -> str:
    sides = (operation.left, operation.right)
    rank = max(len(graph.shapes[x]) if isinstance(x, str) else x.ndim for x in sides)
    left, right = (_wide(x, rank, graph, values) if isinstance(x, str) else graph.constant(x) for x in sides)
    return graph.node(ARITHMETIC[operation.function], left, right)


def _wide(name: str, rank: int, graph: Graph, values: Values) -> str:
    """Return a value with ``rank`` dimensions behind the batch, new ones of length 1 first."""
    shape = graph.shapes[name]
    if len(shape) == rank:
        return values[name]
    return graph.reshaped(values[name], (*(1,) * (rank - len(shape)), *shape))


@apply.register
def _matmul(operation: MatMul, graph: Graph, values: Values) -> str:
    sides = (operation.left, operation.right)
    rank = max(len(graph.shapes[side]) for side in sides)
    return graph.node("MatMul", *(_wide(side, rank, graph, values) for side in sides))


@apply.register
def _softmax(operation: Softmax, graph: Graph, values: Values) -> str:
    axis = operation.axis + 1
    return graph.node("LogSoftmax" if operation.log else "Softmax", values[operation.source], axis=axis)


@apply.register
def _reduce(operation: Reduce, graph: Graph, values: Values) -> str:
    axes = [axis + 1 for axis in operation.axes]
    kind = f"Reduce{operation.function.capitalize()}"
    source, keep = values[operation.source], int(operation.keep)
    if graph.opset < AXES_AS_INPUT and operation.function != "sum":
        return graph.node(kind, source, axes=axes, keepdims=keep)
    return graph.node(kind, source, graph.constant(axes, np.int64), keepdims=keep)


@apply.register
def _pool(operation: Pool, graph: Graph, values: Values) -> str:
    numbers: dict[str, Any] = {
        "kernel_shape": operation.window,
        "strides": operation.stride,
        "pads": (*operation.padding, *operation.padding),
    }
    if operation.function == "mean":
        return graph.node("AveragePool", values[operation.source], count_include_pad=int(operation.counted), **numbers)
    return graph.node("MaxPool", values[operation.source], **numbers)


@apply.register
def _reshape(operation: Reshape, graph: Graph, values: Values) -> str:
    return graph.reshaped(values[operation.source], graph.shapes[operation.result])


@apply.register
def _transpose(operation: Transpose, graph: Graph, values: Values) -> str:
    axes = [0, *(axis + 1 for axis in operation.axes)]
    return graph.node("Transpose", values[operation.source], perm=axes)


@apply.register
def _slice(operation: Slice, graph: Graph, values: Values) -> str:
    axis = operation.axis + 1
    numbers = (operation.start, operation.stop, axis, operation.step)
    return graph.node("Slice", values[operation.source], *(graph.constant([n], np.int64) for n in numbers))


@apply.register
def _concat(operation: Concat, graph: Graph, values: Values) -> str:
    axis = operation.axis + 1
    return graph.node("Concat", *(values[name] for name in operation.sources), axis=axis)


@apply.register
def _constant(operation: Constant, graph: Graph, values: Values) -> str:
    return graph.spread(operation.value)


@apply.register
def _one_hot(operation: OneHot, graph: Graph, values: Values) -> str:
    columns, numbers = one_hot_columns(operation)
    flat = graph.reshaped(values[operation.source], (len(operation.sizes),))
    looked_at = graph.node("Gather", flat, graph.constant(columns, np.int64), axis=1)
    return graph.node("Cast", graph.node("Equal", looked_at, graph.constant(numbers)), to=TensorProto.FLOAT)


@apply.register
def _embedding(operation: Embedding, graph: Graph, values: Values) -> str:
    places = graph.node("Cast", values[operation.source], to=TensorProto.INT64)
    return graph.node("Gather", graph.weight(operation.table), places)


@apply.register
def _choose(operation: Choose, graph: Graph, values: Values) -> str:
    source = graph.reshaped(values[operation.source], (sum(operation.sizes),))
    if graph.masked:
        source = graph.node("Where", ALLOWED, source, graph.constant(-np.inf))
    ends = np.cumsum(operation.sizes)
    parts = []
    for start, stop in zip(ends - operation.sizes, ends, strict=True):
        bounds = (graph.constant([n], np.int64) for n in (start, stop, 1))
        part = source if len(ends) == 1 else graph.node("Slice", source, *bounds)
        parts.append(graph.node("ArgMax", part, axis=1, keepdims=1))
    best = parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=1)
    return graph.node("Cast", best, to=TensorProto.FLOAT)


@apply.register
def _positive(operation: Positive, graph: Graph, values: Values) -> str:
    shape = graph.shapes[operation.source]
    chosen = graph.node("Greater", values[operation.source], graph.constant(0.0))
    if graph.masked:
        pairs = graph.reshaped(ALLOWED, (*shape, 2))
        zero, one = (graph.node("Gather", pairs, graph.constant(n, np.int64), axis=len(shape) + 1) for n in (0, 1))
        chosen = graph.node("Or", graph.node("And", chosen, one), graph.node("Not", zero))
    return graph.node("Cast", chosen, to=TensorProto.FLOAT)
