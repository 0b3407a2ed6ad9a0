"""Functions of each entry written by arithmetic and simpler functions, for formats that lack them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

from numpy.typing import ArrayLike

from prunerl.deploy.program import Function
from prunerl.errors import ExportError

SELU = (1.0507009873554805, 1.6732632423543772)
"""Scale and alpha (Klambauer 2017)."""

Arithmetic = Literal["add", "sub", "mul", "div", "max", "min", "pow"]


class Writer(Protocol):
    """Where operations are written; each gives the name of the value that it makes."""

    def binary(self, function: Arithmetic, left: str | ArrayLike, right: str | ArrayLike) -> str:
        """Combine two values, or a value and numbers, entry by entry."""

    def call(self, function: Function, source: str, *parameters: float) -> str:
        """Apply a function to each entry."""


def _elu(w: Writer, x: str, alpha: float = 1.0) -> str:
    below = w.binary("sub", w.call("exp", w.binary("min", x, 0.0)), 1.0)
    return w.binary("add", w.binary("max", x, 0.0), w.binary("mul", below, alpha))


def _leaky_relu(w: Writer, x: str, slope: float = 0.01) -> str:
    return w.binary("add", w.binary("max", x, 0.0), w.binary("mul", w.binary("min", x, 0.0), slope))


def _softplus(w: Writer, x: str, beta: float = 1.0, threshold: float = 20.0) -> str:
    if threshold < 15.0:  # above 15 what is left out of x is below float32's resolution
        raise ExportError(f"Value {x!r}: a softplus with threshold {threshold} below 15 has no form in this format.")
    z = w.binary("mul", x, beta)
    decay = w.call("exp", w.call("neg", w.call("abs", z)))
    rest = w.call("log", w.binary("add", decay, 1.0))
    return w.binary("div", w.binary("add", w.binary("max", z, 0.0), rest), beta)


def _hardtanh(w: Writer, x: str, low: float = -1.0, high: float = 1.0) -> str:
    return w.binary("min", w.binary("max", x, low), high)


def _hardsigmoid(w: Writer, x: str) -> str:
    return w.binary("div", _hardtanh(w, w.binary("add", x, 3.0), 0.0, 6.0), 6.0)


def _gelu_tanh(w: Writer, x: str) -> str:
    cube = w.binary("mul", w.binary("mul", w.binary("mul", x, x), x), 0.044715)
    inner = w.binary("mul", w.binary("add", x, cube), math.sqrt(2.0 / math.pi))
    return w.binary("mul", w.binary("mul", x, 0.5), w.binary("add", w.call("tanh", inner), 1.0))


FORMS: dict[str, Callable[..., str]] = {
    "relu": lambda w, x: w.binary("max", x, 0.0),
    "relu6": lambda w, x: _hardtanh(w, x, 0.0, 6.0),
    "abs": lambda w, x: w.binary("max", x, w.call("neg", x)),
    "neg": lambda w, x: w.binary("mul", x, -1.0),
    "square": lambda w, x: w.binary("mul", x, x),
    "reciprocal": lambda w, x: w.binary("div", 1.0, x),
    "elu": _elu,
    "selu": lambda w, x: w.binary("mul", _elu(w, x, SELU[1]), SELU[0]),
    "leaky_relu": _leaky_relu,
    "softplus": _softplus,
    "softsign": lambda w, x: w.binary("div", x, w.binary("add", w.call("abs", x), 1.0)),
    "silu": lambda w, x: w.binary("mul", x, w.call("sigmoid", x)),
    "mish": lambda w, x: w.binary("mul", x, w.call("tanh", w.call("softplus", x, 1.0, 20.0))),
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda w, x: w.binary("mul", x, _hardsigmoid(w, x)),
    "log_sigmoid": lambda w, x: w.call("neg", w.call("softplus", w.call("neg", x), 1.0, 20.0)),
    "gelu_tanh": _gelu_tanh,
}
"""How each is written: from the writer, the value and its parameters to the name of the result."""
