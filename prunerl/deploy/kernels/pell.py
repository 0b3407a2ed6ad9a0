"""Permuted ELL: unstructured sparsity without gathers.

The inputs of a group of columns sit in two registers. A step takes for each row of a block one of them by a
permutation, multiplies it with the row's weight and adds it up. Each row of a block has as many steps in a group as the
fullest one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.kernels.blocks import finish
from prunerl.deploy.kernels.layer import Form, Layer, Machine

SUMS = 2
"""Groups under way at a time, each with a sum of its own."""
ALWAYS = 25
"""Percentile of the steps of a group that all groups have, so that there is no branch for them."""


def permuted(layer: Layer, machine: Machine, *, registers: int = 2) -> Form | None:
    """Multiply blocks of as many rows as a vector has floats, by groups of as many columns as the registers have."""
    width = machine.width
    if width < 8 or layer.input_scale is not None or (layer.weight != 0).mean() > 0.6:
        return None
    group = registers * width
    weights, places, steps = steps_of(layer.weight, width, group)
    bias = np.zeros(len(steps) * width, np.float32)
    bias[: layer.rows] = layer.bias
    if width == 8:
        places = (places & 7 | places >> 3 << 7).astype(np.uint8)
    always = int(steps.min(initial=255))
    arrays = (weights, places, (steps - always).astype(np.uint8), bias)
    return Form(f"permuted {width} × {group}", arrays, _body(layer, width, group, always))


def steps_of(
    weight: NDArray[np.float32], width: int, group: int, percentile: float = ALWAYS
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Lay out a matrix: weights and places of each step, shape (steps, width), and the steps of each block and group.

    A place is that of a column in its group. Where a row has fewer weights than steps, zeros fill it up; where a group
    has fewer steps than the percentile, it gets as many.

    >>> w = np.zeros((4, 8), np.float32); w[0, 5], w[0, 7], w[2, 1] = 3, 4, 5
    >>> weights, places, steps = steps_of(w, 4, 8)
    >>> weights[:2].tolist(), places[:2].tolist(), steps.tolist()
    ([[3.0, 0.0, 5.0, 0.0], [4.0, 0.0, 0.0, 0.0]], [[5, 0, 1, 0], [7, 0, 0, 0]], [[2]])
    """
    rows, columns = weight.shape
    count, groups = -(-rows // width), -(-columns // group)
    padded = np.zeros((count * width, groups * group), np.float32)
    padded[:rows, :columns] = weight
    tiles = padded.reshape(count, width, groups, group).transpose(0, 2, 1, 3)
    used = tiles != 0
    order = np.argsort(~used, axis=3, kind="stable")
    sorted_weights = np.take_along_axis(tiles, order, axis=3)
    places = np.where(np.take_along_axis(used, order, axis=3), order, 0)
    steps = used.sum(axis=3).max(axis=2)
    steps = np.maximum(steps, int(np.percentile(steps, percentile)))
    taken = np.arange(group) < steps[..., None]
    weights = sorted_weights.transpose(0, 1, 3, 2)[taken]
    empty = np.zeros((1, width))  # so that no table is empty
    return (
        np.concatenate([weights, empty]).astype(np.float32),
        np.concatenate([places.transpose(0, 1, 3, 2)[taken], empty]).astype(np.uint8),
        steps.astype(np.uint8),
    )


def _body(layer: Layer, width: int, group: int, always: int) -> str:
    whole, left = divmod(layer.columns, group)
    count, sums = -(-layer.rows // width), min(SUMS, whole + bool(left))
    names = ", ".join(f"a{k} = " + ("(vec){0}" if k else f"load(p3 + r * {width})") for k in range(sums))
    passes = whole // sums
    lines = [_group(f"x + (g * {sums} + {k}) * {group}", k, width, group, always) for k in range(sums)]
    loop = f"for (int g = 0; g < {passes}; g++) {{\n" + "\n".join(lines) + "\n}" if passes else ""
    rest = [_group(f"x + {g * group}", g % sums, width, group, always) for g in range(passes * sums, whole)]
    if left:
        rest.append(_group("last_x", whole % sums, width, group, always))
    copy = (
        f"float last_x[{group}] __attribute__((aligned(64))) = {{0}};\n"
        f"memcpy(last_x, x + {whole * group}, {4 * left});\n"
        if left
        else ""
    )
    ends = finish(layer, [" + ".join(f"a{k}" for k in range(sums))], width, width)
    after = "\n".join(rest)
    return f"""{copy}const float *w = p0;
const uint8_t *c = p1, *n = p2;
for (int r = 0; r < {count}; r++) {{
vec {names};
{loop}
{after}
{ends}
}}"""


def _group(at: str, k: int, width: int, group: int, always: int) -> str:
    """Write the steps of one group: those that all have, then the others."""
    held = f"const vec l = load_any({at})" + (f", h = load_any({at} + {width});" if group > width else ";")
    taken = "take(l, h, c{0})" if group > width else "take_one(l, c{0})"
    steps = [f"a{k} += load(w + {s * width}) * {taken.format(f' + {s * width}')};" for s in range(always)]
    straight = "\n".join([*steps, f"w += {always * width};", f"c += {always * width};"] if always else [])
    return f"""{{
{held}
{straight}
for (int s = *n++; s > 0; s--, w += {width}, c += {width}) {{
a{k} += load(w) * {taken.format("")};
}}
}}"""
