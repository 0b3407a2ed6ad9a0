"""The functions of each entry that programs have, in NumPy and in the precision of what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

F32 = np.float32


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """Return 1 / (1 + exp(−x))."""
    made: NDArray[Any] = special.expit(x)
    return made


def _softplus(x: NDArray[Any], beta: float = 1.0, threshold: float = 20.0) -> NDArray[Any]:
    scaled = x * F32(beta)
    return np.where(scaled > threshold, x, np.log1p(np.exp(scaled)) / F32(beta))


def _gelu_tanh(x: NDArray[Any]) -> NDArray[Any]:
    inner = F32(np.sqrt(2 / np.pi)) * (x + F32(0.044715) * x * x * x)
    made: NDArray[Any] = F32(0.5) * x * (1 + np.tanh(inner))
    return made


SELU_SCALE, SELU_ALPHA = F32(1.0507009873554804934193349852946), F32(1.6732632423543772848170429916717)

FUNCTIONS: dict[str, Callable[..., NDArray[Any]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "elu": lambda x, alpha: np.where(x > 0, x, F32(alpha) * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, F32(slope) * x),
    "gelu": lambda x: F32(0.5) * x * (1 + special.erf(x * F32(np.sqrt(0.5)))),
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "softplus": _softplus,
    "hardtanh": lambda x, low, high: np.clip(x, F32(low), F32(high)),
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "square": np.square,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "relu6": lambda x: np.clip(x, 0, F32(6)),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, F32(6)) / 6,
    "hardswish": lambda x: x * np.clip(x + 3, 0, F32(6)) / 6,
    "reciprocal": lambda x: 1 / x,
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
}
"""Functions of each entry, with their numbers after the entry."""
