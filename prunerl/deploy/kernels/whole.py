"""Codes of 8 bits with inputs that are rounded to 8 bits: whole numbers, summed without error."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.c99.text import number
from prunerl.deploy.kernels.blocks import finish
from prunerl.deploy.kernels.layer import Form, Layer, Machine

SUMS = 8
"""Vectors that are summed to at a time, so that none waits for the one before."""


def whole(layer: Layer, machine: Machine, *, block: int) -> Form | None:
    """Multiply blocks of ``block`` rows, four columns at a time, by the machine's dot product of bytes."""
    if layer.input_scale is None or layer.codes is None or layer.scale is None or block % machine.width:
        return None
    width = machine.width
    vectors, unroll = range(block // width), max(1, SUMS * width // block)
    count, fours = -(-layer.rows // block), -(-layer.columns // 4)
    codes = np.zeros((count * block, fours * 4), np.int8)
    codes[: layer.rows, : layer.columns] = layer.codes
    tiles = codes.reshape(count, block, fours, 4).transpose(0, 2, 1, 3)
    scale, bias = np.zeros(count * block, np.float32), np.zeros(count * block, np.float32)
    scale[: layer.rows] = np.float32(layer.input_scale) * layer.scale
    bias[: layer.rows] = layer.bias
    starts = (-128 * codes.sum(axis=1, dtype=np.int64)).astype(np.int32)
    names = ", ".join(
        f"a{u}_{v} = " + ("(ivec){0}" if u else f"START(p3 + r * {block} + {v * width})")
        for u in range(unroll)
        for v in vectors
    )
    several = "\n".join(_four(u, vectors, width, block) for u in range(unroll))
    rest = "\n".join(_four(u, vectors, width, block) for u in range(fours % unroll))
    ends = _ends(layer, width, block, unroll)
    body = f"""{quantised(layer, fours * 4)}
const int8_t *w = p0;
for (int r = 0; r < {count}; r++) {{
ivec {names};
const int8_t *x4 = q;
for (int j = 0; j < {fours // unroll}; j++, w += {4 * unroll * block}, x4 += {4 * unroll}) {{
{several}
}}
{rest}
w += {fours % unroll * 4 * block};
{ends}
}}"""
    return Form(f"int8 by {block} rows", (np.ascontiguousarray(tiles), scale, bias, starts), body)


def quantised(layer: Layer, size: int) -> str:
    """Write how inputs become codes ``q``, so many of them."""
    return f"""int8_t q[{size}] __attribute__((aligned(64))) = {{0}};
for (int j = 0; j < {layer.columns}; j++) {{
float v = x[j] / {number(layer.input_scale or 1.0)};
v = v > -127.0f ? v : -127.0f;
v = v < 127.0f ? v : 127.0f;
q[j] = (int8_t)((v + 12582912.0f) - 12582912.0f) ^ FLIP;
}}"""


def _four(u: int, vectors: range, width: int, block: int) -> str:
    """Write what the ``u``-th of the next fours of columns adds to its sums."""
    lines = ["int32_t four;", f"memcpy(&four, x4 + {4 * u}, 4);"]
    at = [4 * (u * block + v * width) for v in vectors]
    lines += [f"a{u}_{v} = dot4(a{u}_{v}, *(const ivec_aligned *)(w + {at[v]}), four);" for v in vectors]
    return "\n".join(["{", *lines, "}"])


def _ends(layer: Layer, width: int, block: int, unroll: int) -> str:
    values = [
        f"__builtin_convertvector({' + '.join(f'a{u}_{v}' for u in range(unroll))}, vec) "
        f"* load(p1 + r * {block} + {v * width}) + load(p2 + r * {block} + {v * width})"
        for v in range(block // width)
    ]
    return finish(layer, values, width, block)
