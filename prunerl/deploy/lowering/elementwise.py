"""Rules for arithmetic entry by entry, and for what leaves entries as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from prunerl.deploy.lowering.entries import activation, binary, times
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Known, Made, Rule, Value


def clamp(to: Lowering, x: Value, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Value:
    """Rule for clamping between numbers or tensors."""
    low, high = (min if low is None else low), (max if high is None else high)
    if isinstance(low, int | float) and isinstance(high, int | float):
        return _kept(x, activation(to, x, "hardtanh", low, high))
    made = x if low is None else binary(to, "max", x, low)
    return made if high is None else binary(to, "min", made, high)


def _kept(x: Value, made: Made) -> Made:
    return replace(made, numbers="whole") if isinstance(x, Made) and x.numbers == "whole" else made


def clamp_max(to: Lowering, x: Value, high: Any) -> Value:
    """Rule for an upper limit."""
    return binary(to, "min", x, high)


def add(to: Lowering, x: Value, y: Value, alpha: Any = 1) -> Made:
    """Rule for x + alpha · y."""
    return binary(to, "add", x, times(to, y, alpha))


def sub(to: Lowering, x: Value, y: Value, alpha: Any = 1) -> Made:
    """Rule for x − alpha · y."""
    return binary(to, "sub", x, times(to, y, alpha))


def rsub(to: Lowering, x: Value, y: Value, alpha: Any = 1) -> Made:
    """Rule for y − alpha · x."""
    return binary(to, "sub", y, times(to, x, alpha))


def div(to: Lowering, x: Value, y: Value, *, rounding_mode: str | None = None) -> Made:
    """Rule for a true division."""
    if rounding_mode is not None:
        to.refuse("rounds a quotient, which a program cannot. Divide without rounding.")
    return binary(to, "div", x, y)


def power(to: Lowering, x: Value, y: Value) -> Made:
    """Rule for powers."""
    if isinstance(y, int | float) and y in (2, 0.5):
        return activation(to, x, "square" if y == 2 else "sqrt")
    return binary(to, "pow", x, y)


def choose(to: Lowering, condition: Value, x: Value, y: Value) -> Value:
    """Rule for ``where`` with a condition that does not depend on the observation."""
    if not isinstance(condition, Known):
        to.refuse("chooses by a condition on the observation. Write it with relu, clamp, maximum or minimum.")
    keep = condition.tensor.to(torch.float32)
    parts = [_where(to, each, weight) for each, weight in ((x, keep), (y, 1 - keep))]
    return binary(to, "add", *parts)


def _where(to: Lowering, value: Value, keep: torch.Tensor) -> Value:
    """Return a value where ``keep`` is 1, and 0 elsewhere."""
    if isinstance(value, Made):
        return binary(to, "mul", value, Known(keep))
    tensor = value.tensor if isinstance(value, Known) else torch.tensor(float(value))
    return Known(torch.where(keep > 0, tensor.to(torch.float32), 0.0))  # 0 · ∞ would be NaN


def masked_fill(to: Lowering, x: Value, mask: Value, value: Value) -> Value:
    """Rule for filling in a number by a mask."""
    return choose(to, mask, value, x)


def copy(to: Lowering, x: Value, *_: Any, **options: Any) -> Value:
    """Rule for what gives its first argument as it is."""
    return x


def cast(to: Lowering, x: Value, *_: Any, **options: Any) -> Value:
    """Rule for a change of type: fractions are cut off only by what picks by whole numbers."""
    made, dtype = to.made(x), to.dtype
    if dtype in (torch.float32, torch.float64):
        to.read(made)  # refuses fractions that would have to be cut off
        return made
    if made.numbers != "real":
        return made
    if dtype in (torch.int64, torch.int32):
        return replace(made, numbers="cut")
    return to.refuse(f"turns numbers into {dtype}, which a program does not have. Compute in float32.")


def dropout(to: Lowering, x: Value, p: float, train: bool) -> Value:
    """Rule for dropout, which does nothing where a network acts."""
    if train and p > 0:
        to.refuse("drops units at random. Put the network into evaluation mode: module.eval().")
    return (x, None) if len(to.outs) > 1 else x


def like(to: Lowering, x: Value, *arguments: Any, **options: Any) -> Known:
    """Rule for new values of the shape of another: of ones, zeros or a number."""
    numbers = {"ones": 1.0, "zeros": 0.0}
    stem = to.operator.removesuffix("_like").removeprefix("new_")
    return Known(torch.full(to.out, numbers.get(stem, arguments[-1] if arguments else 0.0), dtype=to.dtype))


def _of(function: str) -> Callable[[Lowering, Value, Value], Made]:
    return lambda to, x, y: binary(to, function, x, y)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "lift_fresh_copy"), copy),
    **dict.fromkeys(("to", "_to_copy", "type_as"), cast),
    **dict.fromkeys(
        ("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout
    ),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), like),
    "clamp": clamp,
    "clamp_min": lambda to, x, low: binary(to, "max", x, low),
    "clamp_max": clamp_max,
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "mul": _of("mul"),
    "div": div,
    "pow": power,
    "maximum": _of("max"),
    "minimum": _of("min"),
    "where": choose,
    "masked_fill": masked_fill,
}
