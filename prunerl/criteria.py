"""Criteria: how much each unit of a group is worth. A high score means keep.

A criterion is a function from evidence and groups to one score a unit. The names in ``__all__`` are the choices; a
new one is one more function here. Each scores all three structures:

- ``units``: the score of the tensors' entries is summed over everything that the unit owns: its rows, its bias and
  the columns of the layers that read it;
- ``weights``: an entry's own score;
- ``layers``: the mean score of the units that the layer makes.

Tensors that only follow (target networks, exploration noise) belong to no group and so count for nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from prunerl import errors, heads
from prunerl.trace import Activity, Layer, Trace, features, forward, matrix, unit_groups
from prunerl.types import Group, Head, Scores, Slice, State

__all__ = (
    "activation",
    "activation_softplus",
    "activation_squared",
    "fisher",
    "gradient",
    "gradient_squared",
    "magnitude",
    "magnitude_l2",
    "random",
    "sensitivity",
    "taylor",
    "variance",
    "wanda",
)

BATCH = 64
"""Observations in a minibatch of the criteria that average over minibatches of gradients."""

BLOCK = 2**16
"""Entries that are summed at a time, few enough for a cache."""

ABLATION_STATES = 512
"""States on which each single unit is ablated by :func:`sensitivity`: one forward pass a unit has to stay cheap."""


class Evidence(Protocol):
    """What a criterion may look at. Costly parts are computed when they are first asked for."""

    @property
    def traced(self) -> Trace:
        """The graph of the policy network."""

    @property
    def state(self) -> State:
        """The agent's tensors."""

    @property
    def head(self) -> Head:
        """What the network's output means."""

    @property
    def observations(self) -> Tensor:
        """Inputs of the network in visited states, shape (states, *observation)."""

    @property
    def generator(self) -> torch.Generator:
        """The only source of randomness."""

    @property
    def activity(self) -> Activity:
        """What the network computes on ``observations``."""

    def gradients(self, batch: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the gradient of the mean loss of one minibatch after another, by parameter name."""


Criterion = Callable[[Evidence, Sequence[Group]], Scores]


def find(name: str) -> Criterion:
    """Return the criterion of that name; dashes and underscores are equal.

    Raises:
        NameUnknownError: No criterion has that name.

    >>> find("magnitude-l2").__name__
    'magnitude_l2'
    """
    known = name.replace("-", "_")
    if known not in __all__:
        raise errors.unknown("criterion", name, __all__)
    criterion: Criterion = getattr(sys.modules[__name__], known)
    return criterion


def _scores_layers(score: Criterion) -> Criterion:
    """Let a criterion of units score layers as well, by the mean over the units that a layer makes."""

    @functools.wraps(score)
    def scored(evidence: Evidence, groups: Sequence[Group]) -> Scores:
        if all(group.structure != "layers" for group in groups):
            return score(evidence, groups)
        units = {group.name: group for group in unit_groups(evidence.traced, evidence.state.tensors)}
        made = {layer.name: units[layer.makes[0]] for layer in evidence.traced.layers if layer.makes}
        stand_in = [made[group.name] if group.structure == "layers" else group for group in groups]
        scores = score(evidence, stand_in)
        return {
            group.name: scores[unit.name].mean().reshape(1) if group.structure == "layers" else scores[unit.name]
            for group, unit in zip(groups, stand_in, strict=True)
        }

    return scored


def random(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score each unit by a number drawn from U(0, 1): the baseline that every criterion has to beat."""
    return {group.name: torch.rand(group.units, generator=evidence.generator, dtype=torch.float64) for group in groups}


@_scores_layers
def magnitude(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a weight by |w|, a unit by the sum over what it owns (its L1 norm).

    Reference: Han et al. 2015, *Learning both weights and connections for efficient neural networks*.
    """
    return _totals(groups, evidence.state.tensors, Tensor.abs)


@_scores_layers
def magnitude_l2(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by the L2 norm of what it owns, √Σw²; for a single weight this is |w|."""
    squares = _totals(groups, evidence.state.tensors, Tensor.square)
    return {name: score.sqrt() for name, score in squares.items()}


@_scores_layers
def gradient(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a weight by |∂L/∂w|, mean over minibatches.

    For ``y = W a + b`` the gradient is ∂L/∂W = δ aᵀ, with the factor of the layer's input a.
    """
    return _totals(groups, _mean(evidence.gradients(BATCH), Tensor.abs))


@_scores_layers
def gradient_squared(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a weight by (∂L/∂w)², mean over minibatches."""
    return _totals(groups, _mean(evidence.gradients(BATCH), Tensor.square))


@_scores_layers
def taylor(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by |Σ w·∂L/∂w| over what it owns, mean over minibatches: the change of L to first order.

    The sum is taken before the absolute value, so that what cancels within a unit does not count.

    Reference: Molchanov et al. 2019, *Importance estimation for neural network pruning*, the form with one gate
    a unit, (Σ w·∂L/∂w)², here without the square.
    """
    tensors = evidence.state.tensors
    total = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    batches = 0
    for gradients in evidence.gradients(BATCH):
        products = {name: tensors[name].detach() * grad for name, grad in gradients.items()}
        for name, change in _totals(groups, products).items():
            total[name] += change.abs()
        batches += 1
    return {name: score / batches for name, score in total.items()}


@_scores_layers
def fisher(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a weight by ½ w² E[(∂L/∂w)²]: the change of L to second order when the weight is removed.

    The expectation is over single states, since the square of a minibatch's mean gradient is not the mean square.

    Reference: LeCun et al. 1990, *Optimal brain damage*, with the diagonal of the Fisher matrix for the Hessian's
    (Theis et al. 2018, *Faster gaze prediction with dense networks and Fisher pruning*).
    """
    tensors = evidence.state.tensors
    squares = _mean(evidence.gradients(1), Tensor.square)
    return _totals(groups, {name: 0.5 * tensors[name].square() * square for name, square in squares.items()})


@_scores_layers
def activation(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by the mean of |a|, its activation as the layers that read it see it.

    A single weight w_ij has no activation of its own: it scores the statistic of its input a_j times |w_ij|.
    """
    return _by_input(evidence, groups, lambda inputs: inputs.abs().mean(0))


@_scores_layers
def activation_squared(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by the mean of a²; a single weight by the mean of its input's a_j² times |w_ij|."""
    return _by_input(evidence, groups, lambda inputs: inputs.square().mean(0))


@_scores_layers
def activation_softplus(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by the mean of log(1 + eᵃ); a single weight by that of its input times |w_ij|.

    A silent unit scores log 2, not 0, and a strongly negative one less than a silent one.
    """
    return _by_input(evidence, groups, lambda inputs: F.softplus(inputs).mean(0))


@_scores_layers
def variance(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by the standard deviation of its activation times the L2 norm of its outgoing weights.

    This is what is lost when a unit is replaced by its mean, which a bias can carry. A single weight w_ij scores
    the standard deviation of its input a_j times |w_ij|.
    """
    if any(group.structure == "weights" for group in groups):
        return _by_input(evidence, groups, _deviation)
    scores = {}
    for group in groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for layer, own in _readers(evidence, group):
            spread = _deviation(_inputs(evidence, layer))
            total += (spread.square() * _norms(evidence, layer).square())[own.index].sum(1)
        scores[group.name] = total.sqrt()
    return scores


@_scores_layers
def wanda(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a weight by |w_ij|·‖x_j‖₂, the norm of its input over the states.

    A bias, and any other vector that a unit owns, is a weight whose input is always 1.

    Reference: Sun et al. 2023, *A simple and effective pruning approach for large language models*, eq. 1.
    """
    constant = len(evidence.observations) ** 0.5
    entries = {name: evidence.state.tensors[name].abs() * constant for name in evidence.traced.parameters}
    entries.update(_weighted(evidence, lambda inputs: inputs.square().sum(0).sqrt()))
    return _totals(groups, entries)


@_scores_layers
def sensitivity(evidence: Evidence, groups: Sequence[Group]) -> Scores:
    """Score a unit by what the policy loses with it: the mean of KL(π ‖ π without the unit) over visited states.

    The unit is ablated exactly: all that it owns is set to zero. Each takes a forward pass, on at most
    ``ABLATION_STATES`` states spread evenly over the visited ones. For single weights that would be too many, so a
    weight scores the second-order approximation of the same divergence, ½ w² E[(∂log π/∂w)²] — :func:`fisher`, for
    evidence whose loss is −log π.
    """
    if any(group.structure == "weights" for group in groups):
        return fisher(evidence, groups)
    stride = -(-len(evidence.observations) // ABLATION_STATES)
    observations = evidence.observations[::stride]
    dense = evidence.activity.output[::stride]
    scale = heads.q_scale(evidence.head, evidence.activity.output)
    tensors = {name: evidence.state.tensors[name].detach() for name in evidence.traced.parameters}

    def loss(group: Group, unit: int) -> Tensor:
        output = forward(evidence.traced, _without(tensors, group, unit), observations)
        return heads.divergence(evidence.head, dense, output, scale=scale).double().mean()

    with torch.no_grad():
        return {group.name: torch.stack([loss(group, unit) for unit in range(group.units)]) for group in groups}


def _totals(
    groups: Sequence[Group], entries: Mapping[str, Tensor], transform: Callable[[Tensor], Tensor] = Tensor.detach
) -> dict[str, Tensor]:
    """Sum a score of single entries over what each unit owns. Tensors without entries add nothing."""
    dims: dict[str, list[int]] = {}
    for own in (own for group in groups for own in group.slices if own.dim is not None and own.tensor in entries):
        dims.setdefault(own.tensor, []).append(own.dim)  # type: ignore[arg-type]
    sums = {name: _sums(entries[name].detach(), sorted(set(wanted)), transform) for name, wanted in dims.items()}
    totals = {}
    for group in groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for own in (own for own in group.slices if own.tensor in entries):
            whole = own.dim is None
            values = transform(entries[own.tensor].detach()).flatten().double() if whole else sums[own.tensor][own.dim]  # type: ignore[index]
            total += values[own.index].sum(1)
        totals[group.name] = total
    return totals


def _sums(tensor: Tensor, dims: Sequence[int], transform: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
    """Sum the transformed entries of each place along each of ``dims``, in one pass over the tensor.

    In double precision the sum does not depend on the order of its terms to any digit that could matter. In blocks
    that fit a cache this takes a tenth of the time and none of the memory of a whole copy in double precision.
    """
    totals = {dim: torch.zeros(tensor.shape[dim], dtype=torch.float64) for dim in dims}
    start = 0
    for block in torch.split(tensor, max(1, BLOCK * len(tensor) // max(1, tensor.numel()))):
        values = transform(block).double()
        for dim, total in totals.items():
            others = [d for d in range(tensor.dim()) if d != dim]
            part = values.sum(others) if others else values
            total[start if dim == 0 else 0 :][: len(part)] += part
        start += len(block)
    return totals


def _mean(gradients: Iterable[Mapping[str, Tensor]], transform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    batches = 0
    for batch in gradients:
        for name, grad in batch.items():
            term = transform(grad.double())
            total[name] = total[name] + term if name in total else term
        batches += 1
    return {name: tensor / batches for name, tensor in total.items()}


def _by_input(evidence: Evidence, groups: Sequence[Group], statistic: Callable[[Tensor], Tensor]) -> Scores:
    """Score by a statistic of activations, which maps (states, features) to (features,)."""
    entries = _weighted(evidence, statistic) if any(group.structure == "weights" for group in groups) else {}
    scores = {}
    for group in groups:
        if group.structure == "weights":
            scores[group.name] = _totals([group], entries)[group.name]
            continue
        seen = [statistic(_inputs(evidence, layer))[own.index].mean(1) for layer, own in _readers(evidence, group)]
        # Units that no layer reads do nothing, whatever their activation is.
        scores[group.name] = torch.stack(seen).mean(0) if seen else torch.zeros(group.units, dtype=torch.float64)
    return scores


def _weighted(evidence: Evidence, statistic: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return |w_ij| times a statistic of the input j, for the weight of every layer, in its own layout."""
    entries = {}
    for layer in evidence.traced.layers:
        weight = _matrix(evidence, layer).abs()
        seen = statistic(_inputs(evidence, layer)).view(-1, *[1] * (weight.dim() - 2))
        entry = weight * seen
        entries[layer.weight] = entry.transpose(0, 1) if layer.transposed else entry
    return entries


def _readers(evidence: Evidence, group: Group) -> Iterator[tuple[Layer, Slice]]:
    """Yield the layers that read a group, with the input features that belong to each of its units."""
    for layer in evidence.traced.layers:
        for own in group.slices:
            if own.tensor == layer.weight and own.dim == (0 if layer.transposed else 1):
                yield layer, own


def _inputs(evidence: Evidence, layer: Layer) -> Tensor:
    """Return a layer's inputs, shape (samples, features).

    What a layer inside of a recurrent operator reads is not seen: it counts as ±1 in turn, so that its weights alone
    are scored.
    """
    if layer.name not in evidence.activity.inputs:
        width = _matrix(evidence, layer).shape[1]
        return torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, width)
    return features(layer, evidence.activity.inputs[layer.name].detach()).double()


def _norms(evidence: Evidence, layer: Layer) -> Tensor:
    """Return the norm of the weights that read each input of a layer, shape (inputs,)."""
    norms: Tensor = torch.linalg.vector_norm(_matrix(evidence, layer).transpose(0, 1).flatten(1), dim=1)
    return norms


def _matrix(evidence: Evidence, layer: Layer) -> Tensor:
    return matrix(layer, evidence.state.tensors).detach().double()


def _deviation(inputs: Tensor) -> Tensor:
    # Of the visited states as a population: one state alone has deviation 0, not NaN.
    return inputs.std(0, correction=0)


def _without(tensors: Mapping[str, Tensor], group: Group, unit: int) -> dict[str, Tensor]:
    """Return the tensors with all that one unit owns set to zero."""
    ablated = dict(tensors)
    for own in group.slices:
        if own.tensor in ablated:
            tensor = ablated[own.tensor]
            rows = tensor.flatten() if own.dim is None else tensor
            ablated[own.tensor] = rows.index_fill(own.dim or 0, own.index[unit], 0.0).view_as(tensor)
    return ablated
