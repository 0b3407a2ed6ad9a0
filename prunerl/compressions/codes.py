"""What the codes of a weight say and take: the numbers themselves, the bytes that are stored, what training may change.

The values of a coded weight are at any time exactly what its codes say, so codes are read off the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunerl.deploy.program import Coding
from prunerl.trace import Layer, Trace

FLOAT_BYTES = 4


def codes_of(values: Tensor, coding: Coding, *, axis: int = 0) -> NDArray[np.int64]:
    """Return the codes of a weight, of its shape.

    Args:
        values: The weight.
        coding: How it is coded.
        axis: Its dimension of outputs.
    """
    if coding.kind == "quantized":
        return torch.round(values / scale_along(coding, values.dim(), axis)).long().numpy()
    assert coding.codebook is not None  # of every shared coding
    return nearest(values.detach().numpy(), coding.codebook)


def nearest(values: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the place of the nearest entry of a sorted codebook for each value."""
    between = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return np.searchsorted(between, values).astype(np.int64)


def scale_along(coding: Coding, dims: int, axis: int) -> Tensor:
    """Return the scale of a quantised weight, shaped so that it multiplies along its dimension of outputs."""
    return torch.as_tensor(coding.scale).view([-1 if d == axis else 1 for d in range(dims)])


def axis_of(layer: Layer) -> int:
    """Return the dimension of a layer's weight along which its outputs are."""
    return 1 if layer.transposed else 0


def stored_bytes(tensor: Tensor, coding: Coding | None) -> int:
    """Return the bytes that a tensor takes: packed bits with scales or codebook, or the numbers as they are."""
    if coding is None:
        return tensor.numel() * tensor.element_size()
    tables = sum(t.size for t in (coding.scale, coding.codebook) if t is not None)
    return math.ceil(tensor.numel() * coding.bits / 8) + FLOAT_BYTES * (tables + (coding.input_scale is not None))


def weights_to_code(traced: Trace, tensors: Mapping[str, Tensor], codings: Mapping[str, Coding]) -> list[Layer]:
    """Return the layers whose weights can be coded: those that are applied as they are stored, and not coded yet."""
    return [e for e in traced.layers if not e.derived and e.weight not in codings and e.weight in tensors]
