"""Refit each layer to what it computed before the cut. No training, no gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunerl.repair.patches import patches
from prunerl.trace import Layer, Trace, activity, features, matrix
from prunerl.types import Masks

RIDGE = 1e-6
"""Penalty relative to the mean variance of a layer's inputs."""
PATCHES = 16_381
"""Places of a convolution that it is refitted on, at most, spread evenly over all places in all states. It is prime, so
that they do not fall on the same few places of each image."""


def least_squares(
    traced: Trace,
    tensors: Mapping[str, Tensor],
    masks: Masks,
    observations: Tensor,
    targets: Sequence[Tensor | None],
    *,
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Refit the layers front to back, each on the inputs that the refitted layers before it produce.

    Layer by layer, min over W, b of ‖X Wᵀ + b − Z‖² + λ‖W‖², where X holds the layer's inputs on visited states and
    Z what the same outputs were before the cut. Of a convolution X holds the patch under its kernel at each place. A
    convolution of several groups, a transposed one, or one that is used more than once is left as it is.

    Args:
        traced: Trace of the smaller network.
        tensors: Its tensors.
        masks: Single weights held at zero, which stay so.
        observations: Visited states, the network's inputs, shape (states, *observation).
        targets: For each layer of ``traced``, Z of shape (states, outputs), of a convolution (states · places,
            channels); None leaves the layer as it is.
        ridge: λ as a share of the inputs' sums of squares about their means, on average over the inputs. Where inputs
            say nearly the same, a larger one keeps the weights small, at some cost in exactness.

    Returns:
        The refitted weights and biases by name.

    Reference: Luo 2017 (ThiNet), eq. 7; He 2017 (channel pruning), eq. 3.
    """
    refitted: dict[str, Tensor] = {}
    with torch.no_grad():
        for layer, target in zip(traced.layers, targets, strict=True):
            if target is None or layer.bias is None or layer.derived or layer.kind not in ("linear", "conv"):
                continue
            entered = activity(traced, {**tensors, **refitted}, observations).inputs[layer.name]
            pair = _samples(traced, layer, matrix(layer, tensors).shape, entered, features(layer, target))
            if pair is None:
                continue
            weight, bias = _solve(pair[0].double(), pair[1].double(), _mask(layer, masks), ridge)
            weight = weight.reshape(matrix(layer, tensors).shape)
            stored = weight.T.contiguous() if layer.transposed else weight
            if bool(stored.isfinite().all() and bias.isfinite().all()):
                refitted[layer.weight] = stored.to(tensors[layer.weight].dtype)
                refitted[layer.bias] = bias.to(tensors[layer.bias].dtype)
    return refitted


def _samples(
    traced: Trace, layer: Layer, shape: torch.Size, inputs: Tensor, target: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return X and Z as (samples, inputs) and (samples, outputs); None where a layer has no such form."""
    if layer.kind == "linear":
        return features(layer, inputs), target
    node = next(n for n in traced.module.graph.nodes if n.name == layer.nodes[0])
    seen = patches(node, inputs, shape) if len(layer.nodes) == 1 else None
    if seen is None:
        return None
    count = min(PATCHES, len(target))
    rows = torch.arange(count) * len(target) // count
    places = torch.unravel_index(rows, seen.shape[: 1 + len(shape) - 2])
    return seen[places].flatten(1), target[rows]


def _mask(layer: Layer, masks: Masks) -> Tensor | None:
    return matrix(layer, masks).flatten(1) if layer.weight in masks else None


def _solve(inputs: Tensor, target: Tensor, mask: Tensor | None, ridge: float) -> tuple[Tensor, Tensor]:
    mean_x, mean_z = inputs.mean(dim=0), target.mean(dim=0)
    x, z = inputs - mean_x, target - mean_z
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    right = x.T @ z
    if mask is None:
        weight = torch.linalg.solve(gram, right).T
    else:
        weight = torch.zeros(target.shape[1], inputs.shape[1], dtype=gram.dtype)
        for row, kept in enumerate(mask):
            support = kept.nonzero().flatten()
            weight[row, support] = torch.linalg.solve(gram[support][:, support], right[support, row])
    return weight, mean_z - weight @ mean_x
