"""Linear layers as products of two smaller ones, cut where the outputs in visited states lose least."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from prunerl.compressions.moments import layer_inputs
from prunerl.compressions.network import GraphNetwork, applies_directly, operands, owns_bias, parameter_names
from prunerl.errors import BudgetError
from prunerl.trace import Layer, Trace, features, matrix, trace
from prunerl.types import Masks

RIDGE = 1e-4
"""Share of the mean variance that every direction of the inputs is taken to have at least: states yet to be visited
may differ where those that were seen do not."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A layer's weight taken apart: ``weight = left · diag(values) · right``.

    Attributes:
        layer: The layer.
        left, values, right: Shapes (outputs, k), (k,), (k, inputs). The square of a value is what the layer's mean
            squared output error grows by without it; they fall.
        mean: Mean of the inputs, which the bias makes up for; None where there is no bias of the layer's own.
        stored: Numbers of the weight that no mask holds at zero.
    """

    layer: Layer
    left: Tensor
    values: Tensor
    right: Tensor
    mean: Tensor | None
    stored: int

    @property
    def row(self) -> int:
        """Numbers that one more rank takes."""
        return self.left.shape[0] + self.right.shape[1]

    @property
    def lost(self) -> Tensor:
        """Share of the output's energy that is lost at rank 0, 1, … k."""
        energy = self.values.square().flip(0).cumsum(0).flip(0)
        return torch.cat([energy, torch.zeros(1, dtype=energy.dtype)]) / energy[0].clamp_min(1e-30)


def spectra(traced: Trace, tensors: Mapping[str, Tensor], masks: Masks, observations: Tensor) -> tuple[Spectrum, ...]:
    """Take the weights of all linear layers apart that a low rank can make smaller.

    The singular values are those of W S with S Sᵀ = Cov(inputs), so that what is cut is small in the output, not in
    the weight.

    Args:
        traced: The network.
        tensors: Its tensors.
        masks: Single weights held at zero; these are not stored, so less is saved.
        observations: Visited states, the network's inputs.

    Reference: Wang 2024 (SVD-LLM), section 3.1.
    """
    seen = layer_inputs(traced, tensors, observations)
    found = []
    for layer in traced.layers:
        if layer.name in seen and applies_directly(traced, layer):
            stored = int(masks[layer.weight].sum()) if layer.weight in masks else tensors[layer.weight].numel()
            if sum(tensors[layer.weight].shape) < stored:
                x = features(layer, seen[layer.name]).double()
                mean = x.mean(dim=0) if owns_bias(traced, layer) else None
                found.append(_spectrum(layer, matrix(layer, tensors).double(), x, mean, stored))
    return tuple(found)


def _spectrum(layer: Layer, weight: Tensor, x: Tensor, mean: Tensor | None, stored: int) -> Spectrum:
    centred = x if mean is None else x - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    least = RIDGE * variance.mean().clamp_min(1e-12)
    deviation = (variance.clamp_min(0.0) + least).sqrt()
    left, values, right = torch.linalg.svd(weight @ axes * deviation, full_matrices=False)
    return Spectrum(layer, left, values, right / deviation @ axes.T, mean, stored)


def ranks(found: Sequence[Spectrum], numbers: int) -> dict[str, int]:
    """Return the rank of each weight that is to be factorised, so that all of them together take so many numbers.

    Every layer loses at most the same share of its output's energy, the smallest with which the numbers suffice. A
    layer that so would not become smaller stays whole and is not in the result.

    Args:
        found: The layers' spectra.
        numbers: How many numbers the weights of these layers may take.

    Raises:
        BudgetError: Not even rank 1 is small enough.
    """
    if numbers < fewest(found):
        raise BudgetError(f"A low rank takes at least {fewest(found)} numbers, {numbers} were given. Give more.")
    shares = sorted({float(v) for s in found for v in s.lost[1:]})

    def chosen(share: float) -> dict[str, int]:
        own = {s.layer.weight: max(1, int((s.lost > share).sum())) for s in found}
        return {s.layer.weight: own[s.layer.weight] for s in found if own[s.layer.weight] * s.row < s.stored}

    def cost(share: float) -> int:
        own = chosen(share)
        return sum(own[s.layer.weight] * s.row if s.layer.weight in own else s.stored for s in found)

    place = bisect.bisect_left(shares, True, key=lambda share: cost(share) <= numbers)
    return chosen(shares[place])


def fewest(found: Sequence[Spectrum]) -> int:
    """Return how many numbers the weights of these layers take at rank 1."""
    return sum(s.row for s in found)


def factorized(
    traced: Trace, tensors: Mapping[str, Tensor], found: Sequence[Spectrum], rank: Mapping[str, int]
) -> tuple[Trace, dict[str, Tensor]]:
    """Replace layers by two: ``linear(x, W, b)`` becomes ``linear(linear(x, right), left, b)``.

    Args:
        traced: The network; not a recurrent one, which acts by another graph than it is traced by.
        tensors: Its tensors.
        found: Spectra of its layers.
        rank: Rank of each weight that is replaced.

    Returns:
        The trace of the new network, and its tensors: instead of ``a.weight`` there are ``a.left.weight``, shape
        (outputs, rank), and ``a.right.weight``, shape (rank, inputs); biases make up for the mean of what was cut.
    """
    module = fx.GraphModule(traced.module, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    parts = {s.layer.weight: s for s in found if s.layer.weight in rank}
    by_node = {name: s for s in parts.values() for name in s.layer.nodes}
    own, names = dict(tensors), list[str | None]()
    factors: dict[str, tuple[fx.Node, fx.Node]] = {}
    given = parameter_names(traced)
    for node in traced.module.graph.nodes:
        name = given.get(node.name)
        if node.op == "placeholder" and name in parts:
            new_names = _factor_names(name, own)
            own |= zip(new_names, _factors(parts[name], rank[name]), strict=True)
            own |= _bias(parts[name], own, new_names)
            del own[name]
            left, right = (module.graph.placeholder(f"{node.name}_{side}") for side in ("left", "right"))
            factors[name] = left, right
            names += new_names
        elif node.name in by_node:
            values[node] = _applied(module.graph, node, factors[by_node[node.name].layer.weight], values)
        else:
            values[node] = module.graph.node_copy(node, values.__getitem__)
            names += [name] if node.op == "placeholder" else []
    module.recompile()
    trained = frozenset(n for n in own if n in traced.trainable or n not in tensors)
    rewritten = replace(traced, module=module, placeholders=tuple(names), trainable=trained)
    # By state dicts the order of tensors is that of the graph.
    read = {n: own[n] for n in names if n in own}
    return trace(GraphNetwork(rewritten, read), traced.example), read


def _factor_names(weight: str, taken: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return names beside a weight's that no tensor has."""
    stem = weight.removesuffix("weight").removesuffix(".")
    start = f"{stem}." if stem else ""
    sides = ["left", "right"]
    while any(n == start + side or n.startswith(f"{start}{side}.") for n in taken for side in sides):
        sides = [f"{side}_" for side in sides]
    return f"{start}{sides[0]}.weight", f"{start}{sides[1]}.weight"


def _factors(part: Spectrum, rank: int) -> tuple[Tensor, Tensor]:
    """Return both factors at equal scales, as 32-bit numbers."""
    root = part.values[:rank].sqrt()
    return (part.left[:, :rank] * root).float(), (root.unsqueeze(1) * part.right[:rank]).float()


def _bias(part: Spectrum, tensors: Mapping[str, Tensor], names: tuple[str, str]) -> dict[str, Tensor]:
    """Return the bias that keeps the mean of the layer's output."""
    if part.mean is None or part.layer.bias is None:
        return {}
    lost = matrix(part.layer, tensors).double() @ part.mean
    kept = tensors[names[0]].double() @ (tensors[names[1]].double() @ part.mean)
    return {part.layer.bias: (tensors[part.layer.bias].double() + lost - kept).float()}


def _applied(
    graph: fx.Graph, node: fx.Node, factors: tuple[fx.Node, fx.Node], values: Mapping[fx.Node, fx.Node]
) -> fx.Node:
    linear = torch.ops.aten.linear.default
    args = [values.get(a) if isinstance(a, fx.Node) else a for a in node.args]
    source = args[operands(node)[0]]
    bias = args[0] if operands(node)[0] == 1 else (args[2] if len(args) > 2 else None)
    left, right = factors
    inner = graph.call_function(linear, (source, right))
    return graph.call_function(linear, (inner, left, bias))
