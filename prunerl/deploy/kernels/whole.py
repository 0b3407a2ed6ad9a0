"""Codes of 8 bits with inputs that are rounded to 8 bits: whole numbers, summed without error."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.c99.text import number
from prunerl.deploy.kernels.blocks import finish
from prunerl.deploy.kernels.layer import Form, Layer, Machine


def whole(layer: Layer, machine: Machine, *, block: int) -> Form | None:
    """Multiply blocks of ``block`` rows, four columns at a time, by the machine's dot product of bytes."""
    if layer.input_scale is None or layer.codes is None or layer.scale is None or block % machine.width:
        return None
    width = machine.width
    vectors = block // width
    count, fours = -(-layer.rows // block), -(-layer.columns // 4)
    codes = np.zeros((count * block, fours * 4), np.int8)
    codes[: layer.rows, : layer.columns] = layer.codes
    tiles = codes.reshape(count, block, fours, 4).transpose(0, 2, 1, 3)
    scale, bias = np.zeros(count * block, np.float32), np.zeros(count * block, np.float32)
    scale[: layer.rows] = np.float32(layer.input_scale) * layer.scale
    bias[: layer.rows] = layer.bias
    starts = (-128 * codes.sum(axis=1, dtype=np.int64)).astype(np.int32)
    names = ", ".join(f"a{v} = START(p3 + r * {block} + {v * width})" for v in range(vectors))
    sums = "\n".join(f"a{v} = dot4(a{v}, *(const ivec_aligned *)(w + {4 * v * width}), four);" for v in range(vectors))
    ends = _ends(layer, width, block, vectors)
    body = f"""int8_t q[{fours * 4}] __attribute__((aligned(64))) = {{0}};
for (int j = 0; j < {layer.columns}; j++) {{
float v = x[j] / {number(layer.input_scale)};
v = v > -127.0f ? v : -127.0f;
v = v < 127.0f ? v : 127.0f;
q[j] = (int8_t)((v + 12582912.0f) - 12582912.0f);
}}
const int8_t *w = p0;
for (int r = 0; r < {count}; r++) {{
ivec {names};
for (int j = 0; j < {fours}; j++, w += {4 * block}) {{
int32_t four;
memcpy(&four, q + 4 * j, 4);
{sums}
}}
{ends}
}}"""
    return Form(f"int8 by {block} rows", (np.ascontiguousarray(tiles), scale, bias, starts), body)


def _ends(layer: Layer, width: int, block: int, vectors: int) -> str:
    values = [
        f"__builtin_convertvector(a{v}, vec) * load(p1 + r * {block} + {v * width}) "
        f"+ load(p2 + r * {block} + {v * width})"
        for v in range(vectors)
    ]
    return finish(layer, values, width, block)
