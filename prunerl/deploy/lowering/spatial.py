"""Rules for convolutions, pooling and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from prunerl.deploy.lowering.entries import binary
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.reductions import reduce
from prunerl.deploy.lowering.values import Known, Made, Rule, Value
from prunerl.deploy.program import Concat, Constant, Conv, Pool, Shape


def convolution(
    to: Lowering, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Made:  # fmt: skip
    """Rule for convolutions."""
    places = len(to.out) - 2 if len(to.made(x).shape) > weight.tensor.dim() - 1 else len(to.out) - 1
    dilations = _each(dilation, places)
    if padding in ("valid", "same"):
        padding = _padding(to, padding, weight, dilations)
    options = (_each(stride, places), _each(padding, places), dilations, groups)
    return _convolved(to, x, weight, bias, options, False, ())


def transposed(
    to: Lowering, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0, extra: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Made:  # fmt: skip
    """Rule for transposed convolutions."""
    places = weight.tensor.dim() - 2
    options = (_each(stride, places), _each(padding, places), _each(dilation, places), groups)
    return _convolved(to, x, weight, bias, options, True, _each(extra, places))


def _convolved(
    to: Lowering,
    x: Value,
    weight: Value,
    bias: Value,
    options: tuple[Shape, Shape, Shape, int],
    over: bool,
    extra: Shape,
) -> Made:
    if not isinstance(weight, Known):
        to.refuse("a kernel depends on the observation. Only stored kernels are convolved with.")
    if over and weight.roots & set(to.codings):
        to.refuse("a transposed convolution's weight cannot be stored in codes. Leave it out of the codings.")
    source, batch = _images(to, x, weight.tensor.dim() - 1)
    matrix, vector = to.matrix(weight), to.vector(bias)
    scale = to.input_scale(weight)
    made = to.out[batch:]
    return to.add(lambda r: Conv(source, r, matrix, vector, *options, over, extra, scale), made)


def _images(to: Lowering, x: Value, dims: int) -> tuple[str, int]:
    """Return a value as (channels, *places), and how many dimensions there are before the channels."""
    value = to.made(x)
    batch = len(value.shape) - dims
    if any(n != 1 for n in value.shape[:batch]):
        to.refuse(f"is applied to {value.shape[0]} images at once, which a program cannot. Apply it to one alone.")
    return to.read(value, value.shape[batch:]), batch


def _each(value: Any, places: int) -> Shape:
    values = list(value) if isinstance(value, Sequence) else [value]
    return tuple(int(v) for v in (values * places if len(values) == 1 else values))


def _padding(to: Lowering, padding: str, weight: Known, dilation: Shape) -> Shape:
    total = [d * (n - 1) for d, n in zip(dilation, weight.tensor.shape[2:], strict=True)]
    if padding == "valid":
        return (0,) * len(total)
    if any(n % 2 for n in total):
        to.refuse("padding='same' with an even kernel pads one side more. Pad before it, by nn.ZeroPad2d.")
    return tuple(n // 2 for n in total)


def max_pool(
    to: Lowering, x: Value, window: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Made:
    """Rule for maxima over windows."""
    if any(d != 1 for d in _each(dilation, 1)):
        to.refuse("looks at places with gaps in between. Use a dilation of 1.")
    return _pooled(to, x, "max", (window, stride, padding), True)


def avg_pool(
    to: Lowering, x: Value, window: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    counted: bool = True, divisor: int | None = None,
) -> Made:  # fmt: skip
    """Rule for means over windows."""
    if divisor is not None:
        to.refuse("divides by a number of its own. Leave divisor_override out.")
    return _pooled(to, x, "mean", (window, stride, padding), counted)


def _pooled(to: Lowering, x: Value, function: Literal["mean", "max"], sizes: Any, counted: bool) -> Made:
    places = int(next(c for c in to.operator if c.isdigit()))
    source, batch = _images(to, x, places + 1)
    window = _each(sizes[0], places)
    stride = _each(sizes[1] or window, places)
    padding = _each(sizes[2], places)
    before = to.shapes[source][1:]
    after = tuple((n + 2 * p - w) // s + 1 for n, p, w, s in zip(before, padding, window, stride, strict=True))
    if after != to.out[batch + 1 :]:
        to.refuse("has a last window that is not full. Use ceil_mode=False.")
    return to.add(lambda r: Pool(source, r, function, window, stride, padding, counted), to.out[batch:])


def adaptive(to: Lowering, x: Value, sizes: Any) -> Value:
    """Rule for pooling to a given size: to one place, or by windows of equal size."""
    function: Literal["mean", "max"] = "max" if "max" in to.operator else "mean"
    value = to.made(x)
    places = int(next(c for c in to.operator if c.isdigit()))
    after = to.out[-places:]
    before = value.shape[-places:]
    if all(n == 1 for n in after):
        made = reduce(to, value, function, range(-places, 0), keep=True)
    else:
        if any(b % a for b, a in zip(before, after, strict=True)):
            to.refuse(f"pools {before} places to {after}, by windows of several sizes. Choose a divisor of each.")
        window = tuple(b // a for b, a in zip(before, after, strict=True))
        made = _pooled(to, value, function, (window, window, 0), True)
    return (made, None) if len(to.outs) > 1 else made


def pad(to: Lowering, x: Value, padding: Sequence[int], mode: str = "constant", value: float | None = None) -> Made:
    """Rule for padding with a number; a negative one cuts off."""
    if mode != "constant":
        to.refuse(f"pads by {mode!r}, which a program cannot. Pad with zeros.")
    return padded(to, x, padding, value or 0.0)


def constant_pad(to: Lowering, x: Value, padding: Sequence[int], value: float = 0.0) -> Made:
    """Rule for padding with a number."""
    return padded(to, x, padding, value)


def padded(to: Lowering, x: Value, padding: Sequence[int], value: float) -> Made:
    """Return a value with ``padding`` entries before and after in each dimension, the last dimension first."""
    made = to.made(x)
    for place in range(len(padding) // 2):
        dim = len(made.shape) - 1 - place
        before, after = int(padding[2 * place]), int(padding[2 * place + 1])
        made = to.slice(made, dim, max(0, -before), made.shape[dim] - max(0, -after))
        made = _beside(to, made, dim, (max(0, before), max(0, after)), value)
    return made


def _beside(to: Lowering, x: Made, dim: int, widths: tuple[int, int], value: float) -> Made:
    if not any(widths):
        return x

    def filled(width: int) -> str:
        shape = (*x.shape[:dim], width, *x.shape[dim + 1 :])
        array = np.full(shape, value, np.float32)
        result = to.fresh(f"{to.node.name if to.node else 'value'}_pad")
        to.operations.append(Constant(result, array))
        to.shapes[result] = shape
        return result

    source = to.read(x, x.shape)
    parts = [filled(widths[0])] * (widths[0] > 0) + [source] + [filled(widths[1])] * (widths[1] > 0)
    shape = (*x.shape[:dim], x.shape[dim] + sum(widths), *x.shape[dim + 1 :])
    return to.add(lambda r: Concat(tuple(parts), r, dim), shape, shape)


def batch_norm(
    to: Lowering, x: Value, weight: Value, bias: Value, mean: Value, variance: Value, training: bool, momentum: float,
    epsilon: float, cudnn: bool = False,
) -> Value:  # fmt: skip
    """Rule for BatchNorm in evaluation mode: one factor and one offset for each unit."""
    if training or mean is None:
        to.refuse("takes statistics of a batch. Put the network into evaluation mode: module.eval().")
    factor = torch.rsqrt(variance.tensor.double() + epsilon)
    factor = factor if weight is None else factor * weight.tensor
    offset = -mean.tensor.double() * factor
    offset = offset if bias is None else offset + bias.tensor
    roots = frozenset[str]().union(*(v.roots for v in (weight, bias, mean, variance) if v is not None))
    shape = (1, -1, *[1] * (len(to.made(x).shape) - 2))
    scaled = binary(to, "mul", x, Known(factor.float().reshape(shape), roots))
    return binary(to, "add", scaled, Known(offset.float().reshape(shape), roots))


def batch_norm_acting(
    to: Lowering, x: Value, weight: Value, bias: Value, mean: Value, variance: Value, momentum: float, epsilon: float
) -> Value:
    """Rule for BatchNorm in evaluation mode, in its form with three outputs."""
    return (batch_norm(to, x, weight, bias, mean, variance, False, momentum, epsilon), None, None)


RULES: dict[str, Rule] = {
    **dict.fromkeys((f"conv{n}d" for n in (1, 2, 3)), convolution),
    **dict.fromkeys((f"conv_transpose{n}d" for n in (1, 2, 3)), transposed),
    **dict.fromkeys((f"max_pool{n}d" for n in (1, 2, 3)), max_pool),
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), avg_pool),
    **dict.fromkeys((f"adaptive_{f}_pool{n}d" for f in ("avg", "max") for n in (1, 2, 3)), adaptive),
    "pad": pad,
    "constant_pad_nd": constant_pad,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm_acting,
}
