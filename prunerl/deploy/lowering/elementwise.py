"""Rules for what works on each entry by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from prunerl.deploy.lowering.values import Known, Lowering, Made, Rule, Value, stripped
from prunerl.deploy.program import Activation, Binary, Floats, Function

PLAIN: tuple[Function, ...] = (
    "relu", "tanh", "sigmoid", "silu", "exp", "log", "abs", "neg", "sqrt", "square", "mish", "selu", "relu6",
    "hardsigmoid", "hardswish", "reciprocal",
)  # fmt: skip
"""Functions without numbers of their own, under PyTorch's names."""

NARROW = (torch.uint8, torch.int8, torch.int16, torch.bool)
"""Types in which sums wrap around, as they do not in a program."""


def activation(to: Lowering, x: Value, function: Function, *parameters: float) -> Made:
    """Apply a function to each entry."""
    source, numbers = to.read(x), tuple(float(p) for p in parameters)
    return to.add(lambda r: Activation(source, r, function, numbers), to.shapes[source], to.made(x).shape)


def binary(to: Lowering, function: Any, left: Value, right: Value) -> Made:
    """Combine two values entry by entry."""
    if to.node is not None and to.dtype in NARROW:
        to.refuse(f"computes in {to.dtype}. Turn the observation into floats first, as by .float().")
    names = [_operand(to, each) for each in (left, right)]
    shapes = [to.shapes[n] if isinstance(n, str) else n.shape for n in names]
    shape = np.broadcast_shapes(*(_torch_shape(v) for v in (left, right)))
    return to.add(lambda r: Binary(names[0], names[1], r, function), np.broadcast_shapes(*shapes), shape)


def _operand(to: Lowering, value: Value) -> str | Floats:
    if isinstance(value, Known):
        array = to.array(value)
        return array.reshape(stripped(array.shape))
    if isinstance(value, int | float):
        return np.asarray(value, np.float32)
    return to.read(value)


def _torch_shape(value: Value) -> tuple[int, ...]:
    if isinstance(value, Known):
        return tuple(value.tensor.shape)
    return value.shape if isinstance(value, Made) else ()


def times(to: Lowering, value: Value, factor: Any) -> Value:
    """Multiply by a number, if it is not 1."""
    if factor == 1:
        return value
    if isinstance(value, Known):
        return replace(value, tensor=value.tensor * factor, parameter=None)
    return value * factor if isinstance(value, int | float) else binary(to, "mul", value, factor)


def plain(to: Lowering, x: Value, *_: Any) -> Made:
    """Rule for functions without numbers of their own."""
    function: Any = to.operator.removesuffix("_")
    return activation(to, x, function)


def elu(to: Lowering, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """Rule for ELU."""
    return times(to, activation(to, times(to, x, input_scale), "elu", alpha), scale)


def celu(to: Lowering, x: Value, alpha: float = 1.0) -> Value:
    """Rule for CELU: alpha · ELU(x / alpha)."""
    return times(to, activation(to, times(to, x, 1 / alpha), "elu", 1.0), alpha)


def leaky_relu(to: Lowering, x: Value, slope: float = 0.01) -> Made:
    """Rule for leaky ReLU."""
    return activation(to, x, "leaky_relu", slope)


def prelu(to: Lowering, x: Made, slope: Value) -> Made:
    """Rule for PReLU with one slope, or with one for each unit: relu(x) − slope · relu(−x)."""
    if not isinstance(slope, Known):
        to.refuse("its slope depends on the observation. Write it with relu and products.")
    if slope.tensor.numel() == 1:
        return activation(to, x, "leaky_relu", float(slope.tensor))
    slopes = Known(slope.tensor.reshape(1, -1, *[1] * (len(x.shape) - 2)), slope.roots)
    below = activation(to, activation(to, x, "neg"), "relu")
    return binary(to, "sub", activation(to, x, "relu"), binary(to, "mul", below, slopes))


def gelu(to: Lowering, x: Value, *, approximate: str = "none") -> Made:
    """Rule for GELU."""
    return activation(to, x, "gelu_tanh" if approximate == "tanh" else "gelu")


def softplus(to: Lowering, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Made:
    """Rule for softplus."""
    return activation(to, x, "softplus", beta, threshold)


def log_sigmoid(to: Lowering, x: Value) -> Value:
    """Rule for the logarithm of a sigmoid, with or without its buffer."""
    made = activation(to, x, "log_sigmoid")
    return (made, None) if len(to.outs) > 1 else made


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


def hardtanh(to: Lowering, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    """Rule for hardtanh."""
    return activation(to, x, "hardtanh", low, high)


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


def chain(*functions: Function) -> Rule:
    """Return the rule for functions one after another."""

    def rule(to: Lowering, x: Value) -> Value:
        for function in functions:
            x = activation(to, x, function)
        return x

    return rule


def _of(function: str) -> Callable[[Lowering, Value, Value], Made]:
    return lambda to, x, y: binary(to, function, x, y)


RULES: dict[str, Rule] = {
    **dict.fromkeys(PLAIN, plain),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "lift_fresh_copy"), copy),
    **dict.fromkeys(("to", "_to_copy", "type_as"), cast),
    **dict.fromkeys(
        ("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout
    ),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), like),
    "elu": elu,
    "celu": celu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "gelu": gelu,
    "softplus": softplus,
    "log_sigmoid": log_sigmoid,
    "log_sigmoid_forward": log_sigmoid,
    "clamp": clamp,
    "clamp_min": lambda to, x, low: binary(to, "max", x, low),
    "clamp_max": clamp_max,
    "hardtanh": hardtanh,
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
    "rsqrt": chain("sqrt", "reciprocal"),
}
