"""Convolutions and pooling in a TFLite graph, where images have their channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from prunerl.deploy.program import Conv, Pool, Shape
from prunerl.deploy.tflite.graph import Graph, refuse


def conv(operation: Conv, source: int, graph: Graph) -> int:
    """Add a convolution over a value with its channels first, and return the tensor that it makes.

    Raises:
        ExportError: LiteRT has none of that kind.
    """
    places = len(operation.stride)
    if places > 2:
        raise refuse(operation.result, f"a convolution over {places} dimensions")
    source = _last(source, graph)
    if operation.transposed:
        made = _transposed(operation, source, graph)
    else:
        source = _padded(source, operation.padding, 0.0, graph)
        weight = _kernel(operation, graph)
        (stride_h, stride_w), (dilation_h, dilation_w) = _two(operation.stride), _two(operation.dilation)
        options = schema.Conv2DOptionsT()
        options.padding = schema.Padding.VALID
        options.strideH, options.strideW = stride_h, stride_w
        options.dilationHFactor, options.dilationWFactor = dilation_h, dilation_w
        outputs = operation.weight.values.shape[0]
        bias = graph.constant(np.zeros(outputs) if operation.bias is None else operation.bias)
        channels, *size = graph.shapes[operation.result]
        made = graph.operator("CONV_2D", [source, weight, bias], (1, *_two(size), channels), options=options)
    return _first(made, graph.shapes[operation.result], graph)


def _two(places: Any) -> tuple[int, int]:
    """Return sizes along height and width; one place is a width of an image of height 1."""
    height, width = (1, *places) if len(places) == 1 else places
    return int(height), int(width)


def _kernel(operation: Conv, graph: Graph) -> int:
    order = (0, *range(2, operation.weight.values.ndim), 1)
    weight = graph.weight(operation.weight, order)
    shape = graph.shape_of(weight)
    return weight if len(shape) == 4 else graph.reshaped(weight, (shape[0], 1, *shape[1:]))


def _last(source: int, graph: Graph) -> int:
    """Return an image, or a sequence as an image of height 1, with its channels last."""
    shape = graph.shape_of(source)
    source = graph.reshaped(source, (*shape[:2], 1, shape[2])) if len(shape) == 3 else source
    return graph.turned(source, (0, 2, 3, 1))


def _first(source: int, shape: Shape, graph: Graph) -> int:
    turned = graph.turned(source, (0, 3, 1, 2))
    return turned if len(shape) == 3 else graph.reshaped(turned, (1, *shape))


def _padded(source: int, padding: Shape, value: float, graph: Graph) -> int:
    if not any(padding):
        return source
    height, width = (0, padding[0]) if len(padding) == 1 else padding
    sides = [[0, 0], [height, height], [width, width], [0, 0]]
    batch, h, w, channels = graph.shape_of(source)
    shape = (batch, h + 2 * height, w + 2 * width, channels)
    given = [source, graph.constant(sides, "int32"), graph.constant(value)]
    return graph.operator("PADV2", given, shape, options=schema.PadV2OptionsT())


def _transposed(operation: Conv, source: int, graph: Graph) -> int:
    if operation.groups != 1 or set(operation.dilation) != {1} or len(operation.stride) != 2:
        raise refuse(operation.result, "a transposed convolution with groups, dilation or one dimension")
    outputs = operation.weight.values.shape[1]
    kernel = graph.turned(graph.weight(operation.weight), (1, 2, 3, 0))
    _, h, w, _ = graph.shape_of(source)
    spans = [
        (n - 1) * s + k for n, s, k in zip((h, w), operation.stride, operation.weight.values.shape[2:], strict=True)
    ]
    options = schema.TransposeConvOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH, options.strideW = operation.stride
    shape = (1, *spans, outputs)
    made = graph.operator("TRANSPOSE_CONV", [graph.constant(shape, "int32"), kernel, source], shape, options=options)
    extra = operation.extra or (0, 0)
    made = _padded_after(made, extra, graph)
    sizes = [span + e - 2 * p for span, e, p in zip(spans, extra, operation.padding, strict=True)]
    begin = graph.constant([0, *operation.padding, 0], "int32")
    cut = (1, *sizes, outputs)
    made = graph.operator("SLICE", [made, begin, graph.constant(cut, "int32")], cut, options=schema.SliceOptionsT())
    return made if operation.bias is None else graph.binary("ADD", made, graph.constant(operation.bias))


def _padded_after(source: int, extra: Shape, graph: Graph) -> int:
    if not any(extra):
        return source
    batch, h, w, channels = graph.shape_of(source)
    shape = (batch, h + extra[0], w + extra[1], channels)
    sides = graph.constant([[0, 0], [0, extra[0]], [0, extra[1]], [0, 0]], "int32")
    return graph.operator("PAD", [source, sides], shape, options=schema.PadOptionsT())


def pool(operation: Pool, source: int, graph: Graph) -> int:
    """Add a pooling over a value with its channels first, and return the tensor that it makes.

    Raises:
        ExportError: LiteRT has none of that kind.
    """
    if len(operation.window) > 2:
        raise refuse(operation.result, f"pooling over {len(operation.window)} dimensions")
    source = _last(source, graph)
    channels, *size = graph.shapes[operation.result]
    shape = (1, *_two(size), channels)
    lowest = float(np.finfo(np.float32).min)
    made = _pooled(
        operation,
        _padded(source, operation.padding, lowest if operation.function == "max" else 0.0, graph),
        shape,
        graph,
    )
    if operation.function == "mean" and any(operation.padding) and not operation.counted:
        # The mean over the window, padding included, times the window's share that is not padding.
        ones = graph.constant(np.ones(graph.shape_of(source)))
        share = _pooled(operation, _padded(ones, operation.padding, 0.0, graph), shape, graph)
        made = graph.binary("DIV", made, share)
    return _first(made, graph.shapes[operation.result], graph)


def _pooled(operation: Pool, source: int, shape: Shape, graph: Graph) -> int:
    options = schema.Pool2DOptionsT()
    options.padding = schema.Padding.VALID
    options.filterHeight, options.filterWidth = _two(operation.window)
    options.strideH, options.strideW = _two(operation.stride)
    kind = "MAX_POOL_2D" if operation.function == "max" else "AVERAGE_POOL_2D"
    return graph.operator(kind, [source], shape, options=options)
