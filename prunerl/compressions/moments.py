"""What layers read in visited states, and the bias that makes up for a changed weight on average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunerl.compressions.network import applies_directly, owns_bias
from prunerl.trace import Layer, Trace, activity, features, matrix


def layer_inputs(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> dict[str, Tensor]:
    """Return what each layer reads, by the layer's name, as floats."""
    with torch.no_grad():
        found = activity(traced, tensors, observations).inputs
    return {name: values.float() for name, values in found.items()}


def corrected_bias(
    traced: Trace, layer: Layer, before: Mapping[str, Tensor], after: Mapping[str, Tensor], seen: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a linear layer's bias with which its mean output stays what it was; nothing where it has none of its own.

    Reference: Nagel 2019, section 4.2.
    """
    if layer.name not in seen or layer.bias is None:
        return {}
    if not (applies_directly(traced, layer) and owns_bias(traced, layer)):
        return {}
    mean = features(layer, seen[layer.name]).mean(dim=0)
    lost = (matrix(layer, before) - matrix(layer, after)) @ mean
    return {layer.bias: before[layer.bias] + lost}
