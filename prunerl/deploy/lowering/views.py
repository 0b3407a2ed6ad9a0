"""Rules for what changes the dimensions of a value, joins values or takes them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Known, Made, Rule, Stacked, Value, stripped
from prunerl.deploy.program import Concat, Transpose


def view(to: Lowering, x: Value, *_: Any, **options: Any) -> Made:
    """Rule for all that keeps the entries and their order."""
    return to.view(x, to.out)


def permute(to: Lowering, x: Value, dims: Sequence[int]) -> Made:
    """Rule for another order of dimensions."""
    return permuted(to, x, [int(d) for d in dims])


def transpose(to: Lowering, x: Value, first: int, second: int) -> Value:
    """Rule for two dimensions that change places."""
    if isinstance(x, Known):
        return flipped(x, first, second)
    value = to.made(x)
    order = list(range(len(value.shape)))
    order[first], order[second] = order[second], order[first]
    return permuted(to, value, order)


def turned(to: Lowering, x: Value) -> Value:
    """Rule for a matrix, or the last two dimensions, turned over."""
    value = to.made(x)
    return value if len(value.shape) < 2 else transpose(to, value, -1, -2)


def flipped(x: Known, first: int, second: int) -> Known:
    """Return a known tensor with two dimensions exchanged; a parameter is still itself, turned over."""
    tensor = x.tensor.transpose(first, second)
    if tensor.dim() != 2 or x.parameter is None:
        return Known(tensor, x.roots)
    return replace(x, tensor=tensor, flipped=not x.flipped)


def permuted(to: Lowering, x: Value, order: Sequence[int]) -> Made:
    """Return a value with its dimensions in another order; those of one entry only change the shape."""
    value = to.made(x)
    order = [d % len(value.shape) for d in order]
    shape = tuple(value.shape[d] for d in order)
    wide = [d for d, n in enumerate(value.shape) if n > 1]
    axes = tuple(wide.index(d) for d in order if d in wide)
    if list(axes) == sorted(axes):
        return to.view(value, shape)
    source = to.view(value, (1, *(value.shape[d] for d in wide))).name
    made = to.add(lambda r: Transpose(source, r, axes), tuple(n for n in shape if n > 1), shape)
    return replace(made, numbers=value.numbers)


def expand(to: Lowering, x: Value, *_: Any, **options: Any) -> Made:
    """Rule for one entry that serves as several."""
    value = to.made(x)
    lead = len(to.out) - len(value.shape)
    made = to.view(value, (*[1] * lead, *value.shape))
    for d, (before, after) in enumerate(zip(made.shape, to.out, strict=True)):
        if before != after:
            made = joined(to, [made] * after, d)
    return made


def repeat(to: Lowering, x: Value, times: Sequence[int]) -> Made:
    """Rule for a value that is repeated along its dimensions."""
    value = to.made(x)
    made = to.view(value, (*[1] * (len(times) - len(value.shape)), *value.shape))
    for d, count in enumerate(times):
        made = made if count == 1 else joined(to, [made] * int(count), d)
    return made


def select(to: Lowering, x: Value, dim: int, index: int) -> Made:
    """Rule for one entry along a dimension."""
    if isinstance(x, Stacked) and dim == 0:
        return x.parts[index]
    value = to.made(x)
    dim = dim % len(value.shape)
    start = int(index) % value.shape[dim]
    return to.slice(value, dim, start, start + 1, shape=(*value.shape[:dim], *value.shape[dim + 1 :]))


def slices(to: Lowering, x: Value, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Made:
    """Rule for a slice along a dimension."""
    value = to.made(x)
    dim = dim % len(value.shape)
    return to.slice(value, dim, *slice(start, stop, step).indices(value.shape[dim]))


def narrow(to: Lowering, x: Value, dim: int, start: int, length: int) -> Made:
    """Rule for a slice of a given length."""
    return slices(to, x, dim, start, start + length)


def split(to: Lowering, x: Value, sizes: Any, dim: int = 0) -> Value:
    """Rule for split and chunk: the parts' lengths are those of the outputs."""
    value = to.made(x)
    dim, start, parts = dim % len(value.shape), 0, []
    for shape in to.outs:
        parts.append(to.slice(value, dim, start, start + shape[dim]))
        start += shape[dim]
    return tuple(parts)


def unbind(to: Lowering, x: Value, dim: int = 0) -> Value:
    """Rule for all entries along a dimension, one by one."""
    return tuple(select(to, x, dim, i) for i in range(len(to.outs)))


def cat(to: Lowering, values: Sequence[Value], dim: int = 0) -> Made:
    """Rule for values one after another."""
    return joined(to, [to.made(v) for v in values], dim)


def stack(to: Lowering, values: Sequence[Value], dim: int = 0) -> Made:
    """Rule for values along a new dimension."""
    dim = dim % (len(to.made(values[0]).shape) + 1)
    made = [to.made(v) for v in values]
    return joined(to, [to.view(v, (*v.shape[:dim], 1, *v.shape[dim:])) for v in made], dim)


def joined(to: Lowering, values: Sequence[Made], dim: int) -> Made:
    """Return values one after another along a dimension of the graph; empty ones vanish."""
    full = [v for v in values if 0 not in v.shape] or list(values)[:1]
    first = full[0]
    if len(full) == 1:
        return first
    dim = dim % len(first.shape)
    shape = (*first.shape[:dim], sum(v.shape[dim] for v in full), *first.shape[dim + 1 :])
    lead = len(shape) - len(stripped(shape))
    names = tuple(to.picks(v, v.shape[lead:]) for v in full)
    numbers = {v.numbers for v in full}
    made = to.add(lambda r: Concat(names, r, dim - lead), stripped(shape), shape)
    return replace(made, numbers="cut" if "cut" in numbers else "whole" if numbers == {"whole"} else "real")


def roll(to: Lowering, x: Value, shifts: Any, dims: Any = ()) -> Made:
    """Rule for entries that move round along dimensions."""
    value = to.made(x)
    if not dims:
        value = to.view(value, (1, torch.Size(value.shape).numel()))
        return to.view(roll(to, value, shifts, [1]), to.out)
    for shift, where in zip(shifts, dims, strict=True):
        dim = int(where) % len(value.shape)
        place = -int(shift) % value.shape[dim]
        if place:
            parts = [to.slice(value, dim, place, value.shape[dim]), to.slice(value, dim, 0, place)]
            value = joined(to, parts, dim)
    return value


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as"),
        view,
    ),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes"), transpose),
    **dict.fromkeys(("t", "mT", "numpy_T"), turned),
    **dict.fromkeys(("expand", "expand_as"), expand),
    "repeat": repeat,
    "select": select,
    "slice": slices,
    "narrow": narrow,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), split),
    "unbind": unbind,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    "roll": roll,
}
