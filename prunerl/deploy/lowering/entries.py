"""What rules of several subjects add to a program: a function of each entry, and two values entry by entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Known, Made, Value, stripped
from prunerl.deploy.program import Activation, Binary, Floats, Function

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
