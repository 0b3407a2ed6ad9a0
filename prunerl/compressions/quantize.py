"""Weights as small integers with one scale an output, and inputs of layers as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunerl.compressions.codes import axis_of, scale_along, stored_bytes, weights_to_code
from prunerl.compressions.moments import corrected_bias, layer_inputs
from prunerl.compressions.network import EIGHT_BITS, rounded
from prunerl.deploy.program import Coding
from prunerl.trace import Layer, Trace, features, matrix

RATIOS = tuple(1.0 - 0.02 * i for i in range(36))
"""Shares of the largest value at which a range may be cut off."""


@dataclass(frozen=True, eq=False)
class Coded:
    """Tensors of which some are coded: their values are what the codes say.

    Attributes:
        tensors: All tensors of the network.
        codings: Of those that were coded, by name.
        left: Names of the weights that would not take fewer bytes, and stay as they are.
    """

    tensors: Mapping[str, Tensor]
    codings: Mapping[str, Coding]
    left: tuple[str, ...]


def largest_code(bits: int) -> int:
    """Return the largest code: codes are symmetric, so that 0 is one of them and no sum overflows.

    >>> largest_code(8), largest_code(4)
    (127, 7)
    """
    return (1 << bits - 1) - 1


def best_scale(rows: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """Return the scale of each row that makes its squared rounding error smallest.

    Args:
        rows: Shape (outputs, numbers).
        bits: Of one code.
        importance: What the error of each column counts, shape (numbers,): its input's mean square.

    Returns:
        Shape (outputs,); 1 for a row of zeros.

    Reference: Choukroun 2019 (clipping by least squared error).
    """
    most = largest_code(bits)
    peak = rows.abs().amax(dim=1)
    whole = torch.where(peak > 0, peak / most, torch.ones_like(peak))
    weight = torch.ones(rows.shape[1]) if importance is None else importance
    best, scale = torch.full_like(peak, float("inf")), whole
    for ratio in RATIOS:
        tried = torch.where(peak > 0, whole * ratio, whole)
        error = ((_rounded(rows, tried.unsqueeze(1), bits) - rows).square() * weight).sum(dim=1)
        scale = torch.where(error < best, tried, scale)
        best = torch.minimum(best, error)
    return scale


def best_input_scale(values: Tensor) -> float:
    """Return the scale with which rounding values to eight bits makes the smallest squared error."""
    peak = float(values.abs().max())
    if peak == 0.0:
        return 1.0
    # As 32-bit numbers, so that whoever computes with them divides by the very same.
    scales = [float(np.float32(peak * ratio / EIGHT_BITS)) for ratio in RATIOS]
    return min(scales, key=lambda s: float((rounded(values, s) - values).square().mean()))


def held(values: Tensor, coding: Coding, *, axis: int = 0) -> Tensor:
    """Return the values that the codes of ``values`` say; gradients pass as if nothing were rounded.

    Reference: Bengio 2013, Jacob 2018.
    """
    exact = _rounded(values, scale_along(coding, values.dim(), axis), coding.bits).detach()
    return exact + (values - values.detach())


def quantized(
    traced: Trace,
    tensors: Mapping[str, Tensor],
    codings: Mapping[str, Coding],
    observations: Tensor,
    *,
    bits: int,
    inputs: bool,
) -> Coded:
    """Round the weights of all layers to integers, and correct biases for the mean error that this makes.

    Args:
        traced: The network.
        tensors: Its tensors.
        codings: Of weights that are coded already, and stay so.
        observations: Visited states, the network's inputs.
        bits: Of one code.
        inputs: Let layers round their inputs to eight bits as well, but for those that read the observation, whose
            entries can be of very different sizes.

    Reference: Jacob 2018; Nagel 2019 (bias correction).
    """
    seen = layer_inputs(traced, tensors, observations)
    changed, made, left = dict(tensors), dict[str, Coding](), list[str]()
    for layer in weights_to_code(traced, tensors, codings):
        weight = tensors[layer.weight]
        rows = matrix(layer, tensors).flatten(1)
        scale = best_scale(rows, bits, _importance(layer, seen, rows.shape[1]))
        own = seen.get(layer.name) if inputs and layer.seen and layer.kind != "recurrent" and layer.reads else None
        coding = Coding(
            "quantized",
            bits,
            scale=scale.numpy(),
            input_scale=None if own is None else best_input_scale(own),
        )
        if stored_bytes(weight, coding) >= stored_bytes(weight, None):
            left.append(layer.weight)
            continue
        made[layer.weight] = coding
        changed[layer.weight] = held(weight, coding, axis=axis_of(layer))
        changed |= corrected_bias(traced, layer, tensors, changed, seen)
    return Coded(changed, made, tuple(left))


def _importance(layer: Layer, seen: Mapping[str, Tensor], numbers: int) -> Tensor | None:
    """Return the mean square of what each column of a layer's flat weight is multiplied with, where it was seen."""
    if layer.name not in seen or layer.kind == "recurrent":
        return None
    squares = features(layer, seen[layer.name]).square().mean(dim=0)
    if numbers % len(squares):  # a convolution in groups reads only a part of the channels for each output
        return None
    return squares.repeat_interleave(numbers // len(squares)).clamp_min(1e-12)


def _rounded(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = largest_code(bits)
    # 0 is added because −0 is another bit pattern than the code 0 gives.
    return (values / scale).round().clamp(-most, most) * scale + 0.0
