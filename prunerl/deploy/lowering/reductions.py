"""Rules for what runs over dimensions: sums, means, softmax, norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from prunerl.deploy.lowering.entries import activation, binary
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Made, Rule, Value
from prunerl.deploy.program import GroupNorm, Norm, Reduce, Softmax


def reduce(
    to: Lowering, x: Value, function: Literal["mean", "sum", "max", "min"], dims: Iterable[int], *, keep: bool
) -> Made:
    """Reduce a value over dimensions of the graph."""
    made = to.made(x)
    chosen = sorted({int(d) % max(len(made.shape), 1) for d in dims})
    shape = tuple(1 if d in chosen else n for d, n in enumerate(made.shape) if keep or d not in chosen)
    axes = tuple(a for a in (to.axis(made, d) for d in chosen) if a is not None)
    if all(made.shape[d] == 1 for d in chosen):
        to.read(made)
        return to.view(made, shape)
    source = to.read(made)
    before = to.shapes[source]
    after = tuple(1 if a in axes else n for a, n in enumerate(before) if keep or a not in axes)
    return to.add(lambda r: Reduce(source, r, function, axes, keep), after, shape)


def _dims(x: Made, dims: Any) -> list[int]:
    """Return the dimensions that an operator says: one, several, or all of them by None or none."""
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return list(range(len(x.shape)))
    return [int(d) for d in dims] if isinstance(dims, Sequence) else [int(dims)]


def reduction(to: Lowering, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Rule for sums, means and extremes."""
    made = to.made(x)
    function: Any = to.operator.removeprefix("a") if to.operator in ("amax", "amin") else to.operator
    return reduce(to, made, function, _dims(made, dim), keep=keepdim)


def extreme(to: Lowering, x: Value, other: Any = None, keepdim: bool = False, *, dim: Any = None) -> Value:
    """Rule for ``max`` and ``min``: of two values, of all entries, or along a dimension without the places."""
    function: Literal["max", "min"] = "max" if to.operator == "max" else "min"
    made, dim = to.made(x), other if dim is None else dim
    if dim is None:
        return reduce(to, made, function, range(len(made.shape)), keep=False)
    if not isinstance(dim, int):
        return binary(to, function, made, dim)
    return reduce(to, made, function, [dim], keep=keepdim), None


def variance(
    to: Lowering, x: Value, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> Made:
    """Rule for variances and standard deviations: the mean square of what differs from the mean."""
    made = to.made(x)
    dims = _dims(made, dim)
    away = binary(to, "sub", made, reduce(to, made, "mean", dims, keep=True))
    total = reduce(to, activation(to, away, "square"), "sum", dims, keep=keepdim)
    count = 1
    for d in dims:
        count *= made.shape[d]
    less = (1 if unbiased else 0) if correction is None else float(correction)
    found = binary(to, "div", total, count - less)
    return activation(to, found, "sqrt") if to.operator == "std" else found


def log_sum_exp(to: Lowering, x: Value, dim: Any, keepdim: bool = False) -> Made:
    """Rule for the logarithm of a sum of exponentials, taken from the largest on."""
    made = to.made(x)
    dims = _dims(made, dim)
    largest = reduce(to, made, "max", dims, keep=True)
    total = reduce(to, activation(to, binary(to, "sub", made, largest), "exp"), "sum", dims, keep=True)
    found = binary(to, "add", activation(to, total, "log"), largest)
    return found if keepdim else to.view(found, to.out)


def norm(to: Lowering, x: Value, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Made:
    """Rule for Euclidean, absolute and largest norms."""
    made = to.made(x)
    dims = _dims(made, dim)
    if order in (2, None):
        return activation(to, reduce(to, activation(to, made, "square"), "sum", dims, keep=keepdim), "sqrt")
    if order not in (1, float("inf")):
        to.refuse(f"takes a norm of order {order}. Use 1, 2 or infinity.")
    return reduce(to, activation(to, made, "abs"), "sum" if order == 1 else "max", dims, keep=keepdim)


def softmax(to: Lowering, x: Value, dim: int, *_: Any, **options: Any) -> Made:
    """Rule for softmax and its logarithm."""
    made = to.made(x)
    axis = to.axis(made, dim)
    source = to.read(made) if axis is not None else to.read(made, made.shape)
    place, log = 0 if axis is None else axis, "log" in to.operator
    return to.add(lambda r: Softmax(source, r, place, log), to.shapes[source], made.shape)


def layer_norm(
    to: Lowering, x: Value, shape: Sequence[int], weight: Value = None, bias: Value = None, epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Made:  # fmt: skip
    """Rule for LayerNorm."""
    return _norm(to, x, "layer", len(shape), epsilon, (weight, bias))


def rms_norm(to: Lowering, x: Value, shape: Sequence[int], weight: Value = None, epsilon: float | None = None) -> Made:
    """Rule for RMSNorm, with PyTorch's default of ε."""
    return _norm(to, x, "rms", len(shape), torch.finfo(torch.float32).eps if epsilon is None else epsilon, (weight,))


def _norm(
    to: Lowering, x: Value, kind: Literal["layer", "rms"], dims: int, epsilon: float, vectors: tuple[Value, ...]
) -> Made:
    made = to.made(x)
    source = to.read(made, made.shape if dims == len(made.shape) else None)
    arrays = [to.vector(v) for v in vectors]
    return to.add(lambda r: Norm(source, r, kind, dims, float(epsilon), *arrays), to.shapes[source], made.shape)


def group_norm(
    to: Lowering, x: Value, groups: int, weight: Value = None, bias: Value = None, epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Made:  # fmt: skip
    """Rule for GroupNorm."""
    made = to.made(x)
    if made.shape[0] != 1:
        to.refuse(f"is applied to {made.shape[0]} values at once, which a program cannot. Apply it to one alone.")
    source, arrays = to.read(made), (to.vector(weight), to.vector(bias))
    return to.add(lambda r: GroupNorm(source, r, groups, float(epsilon), *arrays), to.shapes[source], made.shape)


def instance_norm(
    to: Lowering, x: Value, weight: Value, bias: Value, mean: Value, variance: Value, own: bool, momentum: float,
    epsilon: float, cudnn: bool,
) -> Made:  # fmt: skip
    """Rule for InstanceNorm: groups of one channel."""
    if not own:
        to.refuse("normalises by running statistics. Use BatchNorm in evaluation mode for that.")
    return group_norm(to, x, to.made(x).shape[1], weight, bias, epsilon)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("sum", "mean", "amax", "amin"), reduction),
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(("var", "std"), variance),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("norm", "linalg_vector_norm"), norm),
    "logsumexp": log_sum_exp,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
}
