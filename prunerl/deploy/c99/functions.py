"""Functions of one number: the hyperbolic tangent, and every activation as an expression of C."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunerl.deploy.c99.step import Kernel
from prunerl.deploy.c99.text import number
from prunerl.deploy.program import Function

TANH_ERROR = 1e-6
"""Largest absolute error of the rational tangent over all floats; 4.2e-7 was measured on every 37th."""

TANH = Kernel(
    "tanh",
    """
/* A rational function, 1 where it would reach it: within 1e-6 of the tangent for every float; NaN gives NaN. */
static inline float NAME_tanh(float v)
{
    const float s = v * v;
    float p = 1.14037398e-05f, q = 2.45159543e-07f;
    if (fabsf(v) > 7.9f) {
        return v > 0.0f ? 1.0f : -1.0f;
    }
    p = NAME_FMA(p, s, 2.94862452e-03f);
    p = NAME_FMA(p, s, 1.29234032e-01f);
    p = NAME_FMA(p, s, 1.0f);
    q = NAME_FMA(q, s, 2.38336868e-04f);
    q = NAME_FMA(q, s, 2.38056346e-02f);
    q = NAME_FMA(q, s, 4.62566319e-01f);
    q = NAME_FMA(q, s, 1.0f);
    return v * p / q;
}""",
)

Rule = Callable[[tuple[float, ...], str], str]
"""From the parameters and the call of tanh to an expression in ``v``."""


def sigmoid(tanh: str, of: str = "v") -> str:
    """Write the logistic function by the tangent."""
    return f"0.5f * {tanh}(0.5f * {of}) + 0.5f"


def _elu(alpha: float, scale: float = 1.0) -> str:
    outer = "" if scale == 1.0 else f"{number(scale)} * "
    return f"{outer}(v > 0.0f ? v : {number(alpha)} * expm1f(v))"


def _clamp(of: str, low: float, high: float) -> str:
    return f"({of} < {number(low)} ? {number(low)} : {of} > {number(high)} ? {number(high)} : {of})"


def _softplus(p: tuple[float, ...], _: str) -> str:
    beta, threshold = p if p else (1.0, 20.0)
    b = number(beta)
    return f"{b} * v > {number(threshold)} ? v : log1pf(expf({b} * v)) / {b}"


RULES: Mapping[Function, Rule] = {
    "relu": lambda _, __: "v < 0.0f ? 0.0f : v",
    "tanh": lambda _, tanh: f"{tanh}(v)",
    "sigmoid": lambda _, tanh: sigmoid(tanh),
    "elu": lambda p, _: _elu(p[0] if p else 1.0),
    "leaky_relu": lambda p, _: f"v > 0.0f ? v : {number(p[0] if p else 0.01)} * v",
    "gelu": lambda _, __: "0.5f * v * (1.0f + erff(0.707106781f * v))",
    "gelu_tanh": lambda _, tanh: f"0.5f * v * (1.0f + {tanh}(0.797884561f * (v + 0.044715f * v * v * v)))",
    "silu": lambda _, tanh: f"v * ({sigmoid(tanh)})",
    "softplus": _softplus,
    "hardtanh": lambda p, _: _clamp("v", *(p or (-1.0, 1.0))),
    "exp": lambda _, __: "expf(v)",
    "log": lambda _, __: "logf(v)",
    "abs": lambda _, __: "fabsf(v)",
    "neg": lambda _, __: "-v",
    "sqrt": lambda _, __: "sqrtf(v)",
    "square": lambda _, __: "v * v",
    "softsign": lambda _, __: "v / (1.0f + fabsf(v))",
    "mish": lambda _, tanh: f"v * {tanh}(v > 20.0f ? v : log1pf(expf(v)))",
    "selu": lambda _, __: _elu(1.6732632423543772, 1.0507009873554805),
    "relu6": lambda _, __: _clamp("v", 0.0, 6.0),
    "hardsigmoid": lambda _, __: _clamp("(v + 3.0f)", 0.0, 6.0) + " / 6.0f",
    "hardswish": lambda _, __: "v * " + _clamp("(v + 3.0f)", 0.0, 6.0) + " / 6.0f",
    "reciprocal": lambda _, __: "1.0f / v",
    "log_sigmoid": lambda _, __: "(v < 0.0f ? v : 0.0f) - log1pf(expf(-fabsf(v)))",
}


def tanh_kernels(lines: tuple[str, ...], tanh: str) -> tuple[Kernel, ...]:
    """Return the rational tangent where lines call it."""
    return (TANH,) if tanh != "tanhf" and any(f"{tanh}(" in line for line in lines) else ()
