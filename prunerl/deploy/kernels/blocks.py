"""Block-sparse matrices: of each block of rows those columns in which any of them has a weight."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.kernels.layer import Form, Layer, Machine


def blocks(layer: Layer, machine: Machine, *, block: int) -> Form | None:
    """Multiply blocks of ``block`` rows by the columns that are not zero in all of them.

    As many columns are taken at a time as fill the sums; a block is filled up by columns of zeros.
    """
    if block % machine.width or layer.input_scale is not None or layer.columns > 65535:
        return None
    count = -(-layer.rows // block)
    padded = np.zeros((count * block, layer.columns), np.float32)
    padded[: layer.rows] = layer.weight
    tiles = padded.reshape(count, block, layer.columns)
    used = (tiles != 0).any(axis=1)
    if used.mean() > 0.8:
        return None
    vectors = block // machine.width
    unroll = max(1, 8 // vectors)
    picked, weights, counts = [], [], []
    for r, tile in enumerate(tiles):
        columns = np.flatnonzero(used[r])
        more = -len(columns) % unroll
        picked.append(np.append(columns, np.zeros(more)).astype(np.uint16))
        weights.append(np.concatenate([tile[:, columns].T, np.zeros((more, block))]).astype(np.float32))
        counts.append((len(columns) + more) // unroll)
    bias = np.zeros(count * block, np.float32)
    bias[: layer.rows] = layer.bias
    arrays = (
        np.concatenate([*weights, np.zeros((1, block), np.float32)]),
        np.append(np.concatenate(picked), np.uint16(0)),
        np.array(counts, np.int32),
        bias,
    )
    return Form(f"blocks of {block} rows", arrays, _body(layer, machine.width, block, count, unroll))


def _body(layer: Layer, width: int, block: int, count: int, unroll: int) -> str:
    vectors = range(block // width)
    names = ", ".join(
        f"a{u}_{v} = " + ("(vec){0}" if u else f"load(b + {v * width})") for u in range(unroll) for v in vectors
    )
    sums = []
    for u in range(unroll):
        sums.append(f"const vec x{u} = splat(x[c[{u}]]);")
        sums += [f"a{u}_{v} += load(w + {u * block + v * width}) * x{u};" for v in vectors]
    ends = finish(layer, [" + ".join(f"a{u}_{v}" for u in range(unroll)) for v in vectors], width, block)
    lines = "\n".join(sums)
    return f"""const float *w = p0;
const uint16_t *c = p1;
for (int r = 0; r < {count}; r++) {{
const float *const b = p3 + r * {block};
vec {names};
for (int n = p2[r]; n > 0; n--, w += {unroll * block}, c += {unroll}) {{
{lines}
}}
{ends}
}}"""


def finish(layer: Layer, values: list[str], width: int, block: int) -> str:
    """Write the end of a block ``r`` of rows: its results go to their places, those past the last row nowhere."""
    full, rest = divmod(layer.rows, block)
    results = [layer.finish(f"({value})") for value in values]
    direct = "\n".join(f"store(y + r * {block} + {v * width}, {result});" for v, result in enumerate(results))
    if not rest:
        return direct
    aside = "\n".join(f"store(last + {v * width}, {result});" for v, result in enumerate(results))
    partly = f"float last[{block}];\n{aside}\nfor (int k = 0; k < {rest}; k++) {{\ny[{full * block} + k] = last[k];\n}}"
    return partly if not full else f"if (r < {full}) {{\n{direct}\n}} else {{\n{partly}\n}}"
