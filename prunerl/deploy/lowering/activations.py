"""Rules for functions of one entry, such as activations."""

from __future__ import annotations

from typing import Any

from prunerl.deploy.lowering.entries import activation, binary, times
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Known, Made, Rule, Value
from prunerl.deploy.program import Function

PLAIN: tuple[Function, ...] = (
    "relu", "tanh", "sigmoid", "silu", "exp", "log", "abs", "neg", "sqrt", "square", "mish", "selu", "relu6",
    "hardsigmoid", "hardswish", "reciprocal",
)  # fmt: skip
"""Functions without numbers of their own, under PyTorch's names."""


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


def hardtanh(to: Lowering, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    """Rule for hardtanh."""
    return activation(to, x, "hardtanh", low, high)


def chain(*functions: Function) -> Rule:
    """Return the rule for functions one after another."""

    def rule(to: Lowering, x: Value) -> Value:
        for function in functions:
            x = activation(to, x, function)
        return x

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(PLAIN, plain),
    "elu": elu,
    "celu": celu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "gelu": gelu,
    "softplus": softplus,
    "log_sigmoid": log_sigmoid,
    "log_sigmoid_forward": log_sigmoid,
    "hardtanh": hardtanh,
    "rsqrt": chain("sqrt", "reciprocal"),
}
