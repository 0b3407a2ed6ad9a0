"""Each simple operation of a program as operators of a TFLite graph; images are turned to channels last and back."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from prunerl.deploy.expand import one_hot_columns
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
from prunerl.deploy.tflite import images
from prunerl.deploy.tflite.graph import TYPES, Graph, refuse

FUNCTIONS = {
    "relu": "RELU", "relu6": "RELU6", "tanh": "TANH", "sigmoid": "LOGISTIC", "exp": "EXP", "log": "LOG",
    "abs": "ABS", "neg": "NEG", "sqrt": "SQRT", "square": "SQUARE", "gelu": "GELU", "leaky_relu": "LEAKY_RELU",
}  # fmt: skip
ARITHMETIC = {
    "add": "ADD", "sub": "SUB", "mul": "MUL", "div": "DIV", "max": "MAXIMUM", "min": "MINIMUM", "pow": "POW",
}  # fmt: skip
REDUCTIONS = {"mean": "MEAN", "sum": "SUM", "max": "REDUCE_MAX", "min": "REDUCE_MIN"}

Values = dict[str, int]
"""Name of a value of the program → its tensor."""


def write(program: Program, graph: Graph) -> tuple[Values, Values]:
    """Add all operations, between the casts of the observation and of the action; return the inputs and outputs.

    Raises:
        ExportError: LiteRT has no form of an operation.
    """
    if program.observation_dtype not in TYPES:
        raise refuse(OBSERVATION, f"observations of type {program.observation_dtype}")
    whole = (1, *program.observation_shape)
    inputs = {OBSERVATION: graph.tensor(whole, program.observation_dtype, OBSERVATION)}
    if program.allowed:
        inputs[ALLOWED] = graph.tensor((1, program.allowed), "bool", ALLOWED)
    inputs |= {name: graph.tensor((1, *program.shapes[name]), name=name) for name in program.memory}
    values = dict(inputs)
    if graph.tensors[inputs[OBSERVATION]].type != TYPES["float32"]:
        values[OBSERVATION] = graph.cast(inputs[OBSERVATION], whole, "float32")
    for operation in program.operations:
        values[operation.result] = apply(operation, graph, values)
    shape = (1, *program.action_shape)
    if program.action_dtype == "float32":
        outputs = {"action": graph.reshaped(values[program.action], shape, name="action")}
    else:
        flat = graph.reshaped(values[program.action], shape)
        outputs = {"action": graph.cast(flat, shape, program.action_dtype, name="action")}
    for before, after in program.memory.items():
        # A copy, because one value may be the memory of two.
        named = f"next_{before}"
        outputs[named] = graph.reshaped(values[after], (1, *program.shapes[before]), name=named)
    return inputs, outputs


@singledispatch
def apply(operation: Any, graph: Graph, values: Values) -> int:
    """Add the operators of an operation and return the tensor that they make."""
    raise refuse(operation.result, type(operation).__name__)


def _rounded(source: int, scale: float | None, graph: Graph) -> int:
    """Return inputs rounded to int8, as the floats that those are worth."""
    if scale is None:
        return source
    steps = graph.binary("DIV", source, graph.constant(scale))
    whole = graph.operator("ROUND", [steps], graph.shape_of(source))
    held = graph.binary("MAXIMUM", whole, graph.constant(-127.0))
    held = graph.binary("MINIMUM", held, graph.constant(127.0))
    return graph.binary("MUL", held, graph.constant(scale))


@apply.register
def _affine(operation: Affine, graph: Graph, values: Values) -> int:
    source = _rounded(values[operation.source], operation.input_scale, graph)
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    bias = [] if operation.bias is None else [graph.constant(operation.bias)]
    shape = (1, *graph.shapes[operation.result])
    return graph.operator("FULLY_CONNECTED", [source, graph.weight(operation.weight), *bias], shape, options=options)


@apply.register
def _conv(operation: Conv, graph: Graph, values: Values) -> int:
    return images.conv(operation, _rounded(values[operation.source], operation.input_scale, graph), graph)


@apply.register
def _pool(operation: Pool, graph: Graph, values: Values) -> int:
    return images.pool(operation, values[operation.source], graph)


@apply.register
def _activation(operation: Activation, graph: Graph, values: Values) -> int:
    source, options = values[operation.source], None
    if operation.function == "leaky_relu":
        options = schema.LeakyReluOptionsT()
        options.alpha = operation.parameters[0] if operation.parameters else 0.01
    elif operation.function == "gelu":
        options = schema.GeluOptionsT()
    return graph.operator(FUNCTIONS[operation.function], [source], graph.shape_of(source), options=options)


@apply.register
def _binary(operation: Binary, graph: Graph, values: Values) -> int:
    sides = (operation.left, operation.right)
    rank = max(len(graph.shapes[x]) if isinstance(x, str) else x.ndim for x in sides)
    left, right = (_wide(x, rank, graph, values) if isinstance(x, str) else graph.constant(x) for x in sides)
    return graph.binary(ARITHMETIC[operation.function], left, right)


def _wide(name: str, rank: int, graph: Graph, values: Values) -> int:
    """Return a value with ``rank`` dimensions behind the batch, new ones of length 1 first."""
    shape = graph.shapes[name]
    if len(shape) == rank:
        return values[name]
    return graph.reshaped(values[name], (1, *(1,) * (rank - len(shape)), *shape))


@apply.register
def _matmul(operation: MatMul, graph: Graph, values: Values) -> int:
    rank = max(len(graph.shapes[side]) for side in (operation.left, operation.right))
    sides = [_wide(side, rank, graph, values) for side in (operation.left, operation.right)]
    shape = (1, *graph.shapes[operation.result])
    return graph.operator("BATCH_MATMUL", sides, shape, options=schema.BatchMatMulOptionsT())


@apply.register
def _softmax(operation: Softmax, graph: Graph, values: Values) -> int:
    rank = len(graph.shapes[operation.source])
    axes = (*(axis for axis in range(rank + 1) if axis != operation.axis + 1), operation.axis + 1)
    last = operation.axis == rank - 1
    source = values[operation.source] if last else graph.turned(values[operation.source], axes)
    options = schema.LogSoftmaxOptionsT() if operation.log else schema.SoftmaxOptionsT()
    if not operation.log:
        options.beta = 1.0
    kind = "LOG_SOFTMAX" if operation.log else "SOFTMAX"
    made = graph.operator(kind, [source], graph.shape_of(source), options=options)
    return made if last else graph.turned(made, tuple(int(n) for n in np.argsort(axes)))


@apply.register
def _reduce(operation: Reduce, graph: Graph, values: Values) -> int:
    options = schema.ReducerOptionsT()
    options.keepDims = operation.keep
    axes = graph.constant([axis + 1 for axis in operation.axes], "int32")
    shape = (1, *graph.shapes[operation.result])
    return graph.operator(REDUCTIONS[operation.function], [values[operation.source], axes], shape, options=options)


@apply.register
def _reshape(operation: Reshape, graph: Graph, values: Values) -> int:
    return graph.reshaped(values[operation.source], (1, *graph.shapes[operation.result]))


@apply.register
def _transpose(operation: Transpose, graph: Graph, values: Values) -> int:
    return graph.turned(values[operation.source], (0, *(axis + 1 for axis in operation.axes)))


@apply.register
def _slice(operation: Slice, graph: Graph, values: Values) -> int:
    bounds = (operation.axis + 1, operation.start, operation.stop, operation.step)
    return _cut(values[operation.source], *bounds, graph=graph)


def _cut(source: int, axis: int, start: int, stop: int, step: int, *, graph: Graph, dtype: str = "float32") -> int:
    shape = graph.shape_of(source)
    begin, end, steps = [0] * len(shape), list(shape), [1] * len(shape)
    begin[axis], end[axis], steps[axis] = start, stop, step
    made = (*shape[:axis], len(range(start, stop, step)), *shape[axis + 1 :])
    numbers = [graph.constant(n, "int32") for n in (begin, end, steps)]
    return graph.operator("STRIDED_SLICE", [source, *numbers], made, dtype, schema.StridedSliceOptionsT())


@apply.register
def _concat(operation: Concat, graph: Graph, values: Values) -> int:
    options = schema.ConcatenationOptionsT()
    options.axis = operation.axis + 1
    shape = (1, *graph.shapes[operation.result])
    return graph.operator("CONCATENATION", [values[name] for name in operation.sources], shape, options=options)


@apply.register
def _constant(operation: Constant, graph: Graph, values: Values) -> int:
    return graph.constant(operation.value[None])


@apply.register
def _one_hot(operation: OneHot, graph: Graph, values: Values) -> int:
    columns, numbers = one_hot_columns(operation)
    shape = (1, len(columns))
    flat = graph.reshaped(values[operation.source], (1, len(operation.sizes)))
    options = schema.GatherOptionsT()
    options.axis = 1
    looked_at = graph.operator("GATHER", [flat, graph.constant(columns, "int32")], shape, options=options)
    same = graph.operator("EQUAL", [looked_at, graph.constant([numbers])], shape, "bool", schema.EqualOptionsT())
    return graph.cast(same, shape, "float32")


@apply.register
def _embedding(operation: Embedding, graph: Graph, values: Values) -> int:
    places = graph.cast(values[operation.source], (1, *graph.shapes[operation.source]), "int32")
    shape = (1, *graph.shapes[operation.result])
    return graph.operator("GATHER", [graph.weight(operation.table), places], shape, options=schema.GatherOptionsT())


@apply.register
def _choose(operation: Choose, graph: Graph, values: Values) -> int:
    width = sum(operation.sizes)
    source = graph.reshaped(values[operation.source], (1, width))
    if graph.masked:
        never = graph.constant(np.full((1, width), -np.inf))
        source = graph.operator(
            "SELECT_V2", [values[ALLOWED], source, never], (1, width), options=schema.SelectV2OptionsT()
        )
    parts, start = [], 0
    for size in operation.sizes:
        part = source if size == width else _cut(source, 1, start, start + size, 1, graph=graph)
        options = schema.ArgMaxOptionsT()
        options.outputType = TYPES["int32"]
        best = graph.operator("ARG_MAX", [part, graph.constant(1, "int32")], (1,), "int32", options)
        parts.append(graph.reshaped(graph.cast(best, (1,), "float32"), (1, 1)))
        start += size
    if len(parts) == 1:
        return parts[0]
    joined = schema.ConcatenationOptionsT()
    joined.axis = 1
    return graph.operator("CONCATENATION", parts, (1, len(parts)), options=joined)


@apply.register
def _positive(operation: Positive, graph: Graph, values: Values) -> int:
    source = values[operation.source]
    shape = graph.shape_of(source)
    zero = graph.constant(np.zeros(shape))
    chosen = graph.operator("GREATER", [source, zero], shape, "bool", schema.GreaterOptionsT())
    if graph.masked:
        pairs = graph.reshaped(values[ALLOWED], (math.prod(shape), 2), "bool")
        none, one = (
            graph.reshaped(_cut(pairs, 1, n, n + 1, 1, graph=graph, dtype="bool"), shape, "bool") for n in (0, 1)
        )
        both = graph.operator("LOGICAL_AND", [chosen, one], shape, "bool", schema.LogicalAndOptionsT())
        forced = graph.operator("LOGICAL_NOT", [none], shape, "bool", schema.LogicalNotOptionsT())
        chosen = graph.operator("LOGICAL_OR", [both, forced], shape, "bool", schema.LogicalOrOptionsT())
    return graph.cast(chosen, shape, "float32")
