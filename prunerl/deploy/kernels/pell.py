"""Permuted ELL: unstructured sparsity without gathers.

The inputs of a window of columns sit in two registers. A step takes for each row of a block one of them by a
permutation, multiplies it with the row's weight and adds it up. Each row of a block has as many steps in a window as
the one that needs most. Where windows overlap, the others go on meanwhile to columns that the next one has, too, so
that fewer steps are empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.kernels.blocks import finish
from prunerl.deploy.kernels.layer import Form, Layer, Machine

SUMS = 2
"""Windows under way at a time, each with a sum of its own."""
BRANCH = 2
"""Steps that take as long as a window with more of them than all have; measured."""


def permuted(layer: Layer, machine: Machine, *, registers: int = 2, sliding: bool = False) -> Form | None:
    """Multiply blocks of as many rows as a vector has floats, by windows of as many columns as the registers have.

    ``sliding`` ones overlap by half; None where one window holds all columns.
    """
    width = machine.width
    if width < 8 or layer.input_scale is not None or (layer.weight != 0).mean() > 0.6:
        return None
    group = registers * width
    stride = group // 2 if sliding else group
    if sliding and layer.columns <= group:
        return None
    weights, places, steps = steps_of(layer.weight, width, group, stride)
    bias = np.zeros(len(steps) * width, np.float32)
    bias[: layer.rows] = layer.bias
    if width == 8:
        places = (places & 7 | places >> 3 << 7).astype(np.uint8)
    always = int(steps.min(initial=255))
    arrays = (weights, places, (steps - always).astype(np.uint8), bias)
    name = f"permuted {width} × {group}{', sliding' if sliding else ''}"
    return Form(name, arrays, _body(layer, width, group, stride, always))


def steps_of(
    weight: NDArray[Any], width: int, group: int, stride: int, *, each: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Lay out a matrix: weights and places of each step, shape (steps, width × each), and the steps of each block and
    window.

    Window ``w`` has ``group`` columns from ``w × stride`` on. A step has ``each`` weights of a row, in the order of
    columns; a place is that of a column in its window. A weight that the next window lacks must be done; zeros fill up
    what is left. As many steps as all windows have are such that few windows have more.

    >>> w = np.zeros((4, 8), np.float32); w[0, 5], w[0, 7], w[2, 1] = 3, 4, 5
    >>> weights, places, steps = steps_of(w, 4, 8, 8)
    >>> weights[:2].tolist(), places[:2].tolist(), steps.tolist()
    ([[3.0, 0.0, 5.0, 0.0], [4.0, 0.0, 0.0, 0.0]], [[5, 0, 1, 0], [7, 0, 0, 0]], [[2]])
    """
    rows, columns = weight.shape
    count, windows = -(-rows // width), 1 + max(0, -(-(columns - group) // stride))
    padded = np.zeros((count * width, group + (windows - 1) * stride), weight.dtype)
    padded[:rows, :columns] = weight
    used = padded != 0
    before = np.concatenate([np.zeros((len(padded), 1), np.intp), used.cumsum(axis=1)], axis=1)
    most = -(-int(before[:, group].max(initial=0)) // each)
    made = [_taken(before, width, group, stride, each, least) for least in range(most + 1)]
    steps, taken = min(made, key=lambda m: m[0].sum() + BRANCH * (m[0] > m[0].min()).sum())
    order = np.argsort(~used, axis=1, kind="stable")
    weights = np.zeros((steps.sum() + 1, width, each), np.float32)  # one more, so that no table is empty
    places = np.zeros(weights.shape, np.uint8)
    starts = np.concatenate([[0], steps.ravel().cumsum()])[:-1].reshape(steps.shape)
    block, lane = np.divmod(np.arange(len(padded)), width)
    done = np.zeros(len(padded), np.intp)
    for window in range(windows):
        for k in range(int(taken[:, window].max())):
            row = np.flatnonzero(taken[:, window] > k)
            column = order[row, done[row] + k]
            at = starts[block[row], window] + k // each, lane[row], k % each
            weights[at], places[at] = padded[row, column], column - window * stride
        done += taken[:, window]
    flat = (len(weights), width * each)
    return weights.reshape(flat), places.reshape(flat), steps.astype(np.uint8)


def _taken(
    before: NDArray[np.intp], width: int, group: int, stride: int, each: int, least: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the steps of each block and window, at least ``least``, and the weights that each row has done in it.

    Args:
        before: The weights of each row before each column.
    """
    windows = 1 + (before.shape[1] - 1 - group) // stride
    done = np.zeros(len(before), np.intp)
    steps, taken = [], []
    for window in range(windows):
        start = window * stride
        due = before[:, start + (group if window == windows - 1 else stride)] - done
        blocks = np.maximum(-(-due.reshape(-1, width).max(axis=1) // each), least)
        taken.append(np.minimum(before[:, start + group] - done, each * np.repeat(blocks, width)))
        steps.append(blocks)
        done = done + taken[-1]
    return np.stack(steps, axis=1), np.stack(taken, axis=1)


def _body(layer: Layer, width: int, group: int, stride: int, always: int) -> str:
    whole = max(0, (layer.columns - group) // stride + 1)
    left = layer.columns - whole * stride if layer.columns > (whole - 1) * stride + group or not whole else 0
    count, sums = -(-layer.rows // width), min(SUMS, whole + bool(left))
    names = ", ".join(f"a{k} = " + ("(vec){0}" if k else f"load(p3 + r * {width})") for k in range(sums))
    passes = whole // sums
    lines = [_group(f"x + (g * {sums} + {k}) * {stride}", k, width, group, always) for k in range(sums)]
    loop = f"for (int g = 0; g < {passes}; g++) {{\n" + "\n".join(lines) + "\n}" if passes else ""
    rest = [_group(f"x + {g * stride}", g % sums, width, group, always) for g in range(passes * sums, whole)]
    if left:
        rest.append(_group("last_x", whole % sums, width, group, always))
    copy = (
        f"float last_x[{group}] __attribute__((aligned(64))) = {{0}};\n"
        f"memcpy(last_x, x + {whole * stride}, {4 * left});\n"
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
    """Write the steps of one window: those that all have, then the others."""
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
