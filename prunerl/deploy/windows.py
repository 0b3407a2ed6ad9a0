"""Convolutions and pooling in NumPy, for batches of shape (batch, channels, *places)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import Conv, Pool, Shape

F32 = np.float32


def _windows(x: NDArray[Any], window: Shape, stride: Shape, dilation: Shape) -> NDArray[Any]:
    """Return all windows of x, shape (batch, channels, *places), as (batch, channels, *places after, *window)."""
    spans = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axes)
    steps = [slice(None, None, s) for s in stride] + [slice(None, None, d) for d in dilation]
    return view[(slice(None), slice(None), *steps)]


def _padded(x: NDArray[Any], padding: Shape, value: float) -> NDArray[Any]:
    return np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), constant_values=value)


def convolved(op: Conv, x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """Convolve x, shape (batch, channels, *places), by groups."""
    windows = _windows(_padded(x, op.padding, 0), weight.shape[2:], op.stride, op.dilation)
    inner, outer, places = weight.shape[1], len(weight) // op.groups, x.ndim - 2
    made = []
    for group in range(op.groups):
        part = windows[:, group * inner : (group + 1) * inner]
        axes = (1, *range(2 + places, 2 + 2 * places))
        own = weight[group * outer : (group + 1) * outer]
        made.append(np.moveaxis(np.tensordot(part, own, (axes, range(1, own.ndim))), -1, 1))
    return np.concatenate(made, 1)


def transposed(op: Conv, x: NDArray[Any]) -> NDArray[Any]:
    """Add each input's kernel to the places that it reaches."""
    weight, kernel = op.weight.values, op.weight.values.shape[2:]
    outer, inner = weight.shape[1], len(weight) // op.groups
    places = x.shape[2:]
    spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(places, op.stride, op.dilation, kernel, strict=True)]
    full = np.zeros((len(x), outer * op.groups, *(n + e for n, e in zip(spans, op.extra, strict=True))), F32)
    for group in range(op.groups):
        own = slice(group * inner, (group + 1) * inner)
        for place in np.ndindex(kernel):
            taps = np.moveaxis(np.tensordot(x[:, own], weight[own][(slice(None), slice(None), *place)], (1, 0)), -1, 1)
            reach = [
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(place, op.dilation, places, op.stride, strict=True)
            ]
            full[(slice(None), slice(group * outer, (group + 1) * outer), *reach)] += taps
    cut = [slice(p, n - p) for p, n in zip(op.padding, full.shape[2:], strict=True)]
    return full[(slice(None), slice(None), *cut)]


def pooled(op: Pool, x: NDArray[Any]) -> NDArray[Any]:
    """Return the mean or the largest entry of each window."""
    ones = (1,) * len(op.window)
    padded = _padded(x, op.padding, -np.inf if op.function == "max" else 0)
    windows = _windows(padded, op.window, op.stride, ones)
    axes = tuple(range(x.ndim, windows.ndim))
    if op.function == "max":
        largest: NDArray[Any] = windows.max(axes)
        return largest
    total: NDArray[Any] = windows.sum(axes)
    if op.counted:
        total /= F32(np.prod(op.window))
        return total
    inside = _windows(_padded(np.ones_like(x[:1, :1]), op.padding, 0), op.window, op.stride, ones)
    mean: NDArray[Any] = total / inside.sum(axes)
    return mean
