"""Permuted ELL of whole numbers: codes of 8 bits, four of a row in each step, summed without error.

A window of columns is all the bytes of two registers, and a step takes from them the four inputs of each row.
"""

from __future__ import annotations

import numpy as np

from prunerl.deploy.kernels.blocks import finish
from prunerl.deploy.kernels.layer import Form, Layer, Machine
from prunerl.deploy.kernels.pell import steps_of
from prunerl.deploy.kernels.whole import quantised

SUMS = 4
"""Vectors that are summed to in turn, so that none waits for the one before."""


def permuted(layer: Layer, machine: Machine, *, sliding: bool = False) -> Form | None:
    """Multiply blocks of as many rows as a vector has floats, by windows of eight times as many columns.

    ``sliding`` ones overlap by half; None where one window holds all columns.
    """
    if machine.width != 16 or layer.input_scale is None or layer.codes is None or layer.scale is None:
        return None
    if (layer.codes != 0).mean() > 0.6:
        return None
    width, group = machine.width, 8 * machine.width
    stride = group // 2 if sliding else group
    if sliding and layer.columns <= group:
        return None
    weights, places, steps = steps_of(layer.codes, width, group, stride, each=4)
    rows = len(steps) * width
    scale, bias, starts = np.zeros(rows, np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    scale[: layer.rows] = np.float32(layer.input_scale) * layer.scale
    bias[: layer.rows] = layer.bias
    starts[: layer.rows] = -128 * layer.codes.sum(axis=1, dtype=np.int64)
    always = int(steps.min(initial=255))
    arrays = (weights.astype(np.int8), places, (steps - always).astype(np.uint8), scale, bias, starts)
    name = f"permuted int8 {width} × {group}{', sliding' if sliding else ''}"
    return Form(name, arrays, _body(layer, width, steps.shape, stride, always))


def _body(layer: Layer, width: int, shape: tuple[int, ...], stride: int, always: int) -> str:
    count, windows = shape
    names = ", ".join(f"a{k} = " + ("(ivec){0}" if k else f"START(p5 + r * {width})") for k in range(SUMS))
    straight = "\n".join(_step(s % SUMS, 4 * s * width) for s in range(always))
    total = " + ".join(f"a{k}" for k in range(SUMS))
    value = f"__builtin_convertvector({total}, vec) * load(p3 + r * {width}) + load(p4 + r * {width})"
    return f"""{quantised(layer, (windows - 1) * stride + 8 * width)}
const int8_t *w = p0;
const uint8_t *c = p1, *n = p2;
for (int r = 0; r < {count}; r++) {{
ivec {names};
for (int g = 0; g < {windows}; g++) {{
const int8_t *const at = q + g * {stride};
const ivec l = *(const ivec_aligned *)at, h = *(const ivec_aligned *)(at + {4 * width});
{straight}
w += {always * 4 * width};
c += {always * 4 * width};
for (int s = *n++; s > 0; s--, w += {4 * width}, c += {4 * width}) {{
{_step(SUMS - 1, 0)}
}}
}}
{finish(layer, [value], width, width)}
}}"""


def _step(k: int, at: int) -> str:
    return f"a{k} = dots(a{k}, *(const ivec_aligned *)(w + {at}), take_bytes(l, h, c + {at}));"
