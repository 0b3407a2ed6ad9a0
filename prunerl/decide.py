"""Decisions: which units to keep, from their scores.

Every rule is deterministic for given scores (and generator): of equal scores the first is kept.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from prunerl import errors
from prunerl.errors import BudgetError
from prunerl.trace import Trace
from prunerl.types import Decision, Group, Scores

__all__ = ("by_parameters", "by_probability", "by_sparsity", "threshold")

Scope = Literal["global", "local"]
Count = Literal["units", "parameters", "macs"]
Distribution = Literal["uniform", "erk"]


def threshold(scores: Scores, tau: float) -> Decision:
    """Keep the units that score more than ``tau``. It may empty a group: see :func:`check`.

    Raises:
        BudgetError: ``tau`` or a score is NaN.

    >>> threshold({"a": torch.tensor([0.1, 0.5, 0.9])}, 0.5)
    {'a': tensor([False, False,  True])}
    """
    if math.isnan(tau):
        raise BudgetError("The threshold is NaN. Set it to a number on the scale of the scores.")
    return {name: _numbers(name, score) > tau for name, score in scores.items()}


def by_sparsity(
    groups: Sequence[Group],
    scores: Scores,
    sparsity: float,
    *,
    scope: Scope = "global",
    count: Count = "units",
    distribution: Distribution | None = None,
    min_units: int = 1,
    traced: Trace | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Decision:
    """Keep the highest scores, as many as leave at most ``1 − sparsity`` of what is counted.

    Args:
        groups: What may be removed.
        scores: One score a unit.
        sparsity: Share that is removed, in [0, 1).
        scope: ``global`` ranks all units by their scores as they are; ``local`` ranks them by their place within
            their group, so that all groups lose the same share.
        count: What the share is of: ``units`` of the groups (for the structure ``weights`` these are weights), or
            ``parameters`` or ``macs`` of the whole network. Removing a unit also removes what reads it.
        distribution: ``uniform`` is the scope ``local``; ``erk`` gives each weight matrix its own share (:func:`erk`).
        min_units: Units of each group that are kept even when that leaves more than the share. Layers may be dropped.
        traced: The network, to count ``parameters`` and ``macs``.
        tensors: Its tensors, for those and for ``erk``.

    Raises:
        BudgetError: The sparsity is out of its range, a score is NaN or missing, a group would be emptied, or an
            argument that the choice needs is missing.

    >>> group = Group("a", 3, ())
    >>> by_sparsity([group], {"a": torch.tensor([0.1, 0.9, 0.5])}, 0.5)
    {'a': tensor([False,  True, False])}
    """
    _share(sparsity)
    _choice("scope", scope, get_args(Scope))
    _choice("count", count, get_args(Count))
    _choice("distribution", distribution or "uniform", get_args(Distribution))
    checked = _checked(groups, scores)
    if distribution == "erk":
        decision = _by_erk(groups, checked, sparsity, count, min_units, tensors)
    else:
        ranks = checked if scope == "global" and distribution is None else _places(checked)
        cost = _cost(groups, count, traced, tensors)
        # The small amount keeps 0.55 · 100 = 55.000000000000007 from removing 56.
        budget = math.floor((1.0 - sparsity) * cost({g.name: g.units for g in groups}) + 1e-9)
        ranking = _Ranking(groups, ranks, min_units)
        decision = ranking.keep(max(ranking.largest(cost, budget), ranking.floor))
    check(groups, decision, at=f"sparsity {sparsity:g}")
    return decision


def by_probability(
    scores: Scores, sparsity: float, *, temperature: float = 1.0, generator: torch.Generator
) -> Decision:
    """Drop each unit with a probability that falls with its score. It may empty a group: see :func:`check`.

    Args:
        scores: One score a unit.
        sparsity: Share of all units that is removed on average, in [0, 1).
        temperature: See :func:`drop_probabilities`.
        generator: Draws the decision.

    Raises:
        BudgetError: As :func:`drop_probabilities`.

    >>> generator = torch.Generator().manual_seed(0)
    >>> by_probability({"a": torch.tensor([0.1, 0.9])}, 0.5, temperature=0.01, generator=generator)
    {'a': tensor([False,  True])}
    """
    dropped = drop_probabilities(scores, sparsity, temperature=temperature)
    return {name: torch.rand(len(p), generator=generator, dtype=p.dtype) >= p for name, p in dropped.items()}


def drop_probabilities(scores: Scores, sparsity: float, *, temperature: float = 1.0) -> Mapping[str, Tensor]:
    """Return the probability that each unit is dropped: ``p_i = min(1, c · softmax(−z/T)_i)``.

    z are the scores less their mean, over their standard deviation, of all groups together. c makes the expected
    sparsity exactly the one that is asked for.

    Args:
        scores: One score a unit.
        sparsity: Mean of the probabilities, in [0, 1).
        temperature: T, above 0: small drops the lowest scores for sure, large all units alike.

    Raises:
        BudgetError: The sparsity or temperature is out of its range, or a score is not finite.

    >>> drop_probabilities({"a": torch.tensor([1.0, 1.0, 1.0, 1.0])}, 0.5)
    {'a': tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)}
    """
    _share(sparsity)
    if not 0.0 < temperature < math.inf:
        raise BudgetError(f"Drop probabilities got temperature {temperature}. Set a positive number, such as 1.0.")
    parts = [_numbers(name, score).double() for name, score in scores.items()]
    flat = torch.cat(parts)
    if not flat.isfinite().all():
        raise BudgetError("Drop probabilities got an infinite score. Leave units with infinite scores out.")
    deviation = flat.std(correction=0)
    # Where all scores are equal, the deviation is zero up to rounding, which must not be blown up.
    flat = (flat - flat.mean()) / deviation if deviation > 1e-12 * flat.abs().max() else torch.zeros_like(flat)
    dropped = _capped(-flat / temperature, torch.ones_like(flat), sparsity * len(flat))
    return dict(zip(scores, torch.split(dropped, [len(part) for part in parts]), strict=True))


def by_parameters(
    groups: Sequence[Group],
    scores: Scores,
    traced: Trace,
    tensors: Mapping[str, Tensor],
    target: int,
    *,
    min_units: int = 1,
) -> Decision:
    """Keep the most units with which the network has at most ``target`` parameters.

    Units are ranked by :func:`normalized` scores, so that groups of different scales can be compared.

    Args:
        groups: Groups of units or of single weights.
        scores: One score a unit.
        traced: The network.
        tensors: Its tensors.
        target: Parameters that may be left of all that the network reads, the output layer included.
        min_units: Units that each group keeps.

    Raises:
        BudgetError: Even with ``min_units`` in each group more parameters are left, or a score is NaN or missing.
    """
    ranking = _Ranking(groups, normalized(_checked(groups, scores)), min_units)
    cost = _cost(groups, "parameters", traced, tensors)
    kept = ranking.largest(cost, target)
    if kept < ranking.floor:
        least = cost(ranking.counts(ranking.floor))
        raise BudgetError(
            f"With {min_units} units in each group the network has {least} parameters, more than the target of "
            f"{target}. Set the target to {least} or more."
        )
    decision = ranking.keep(kept)
    check(groups, decision, at=f"{target} parameters")
    return decision


def normalized(scores: Scores) -> Scores:
    """Divide the scores of each group by their mean, over those that are finite. A mean of 0 leaves them as they are.

    >>> normalized({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 30.0])})["b"]
    tensor([0.5000, 1.5000])
    """
    means = {name: float(score[score.isfinite()].mean()) for name, score in scores.items()}
    return {name: score / abs(means[name]) if abs(means[name]) > 0 else score for name, score in scores.items()}


def erk(shapes: Sequence[tuple[int, ...]], density: float) -> tuple[float, ...]:
    """Return each weight matrix's density under the Erdős–Rényi-kernel distribution, ``ε · Σ(shape) / Π(shape)``.

    ε is solved exactly for the density of all matrices together; a matrix that would exceed 1 is dense, and the
    others share the rest. Small matrices, such as the first and the last, stay dense.

    Args:
        shapes: Shape of each weight.
        density: Share that is kept of all entries, in (0, 1].

    Raises:
        BudgetError: The density is out of its range.

    Reference: Evci et al. 2020, *Rigging the lottery*, section 3; Mocanu et al. 2018 for the matrices of an MLP.

    >>> [round(1 - d, 3) for d in erk([(512, 4), (512, 512), (2, 512)], 0.05)]
    [0.0, 0.961, 0.0]
    """
    if not 0.0 < density <= 1.0:
        raise BudgetError(f"ERK got density {density}. Set it above 0 and to at most 1.")
    sizes = torch.tensor([math.prod(shape) for shape in shapes], dtype=torch.float64)
    raw = torch.tensor([sum(shape) for shape in shapes], dtype=torch.float64) / sizes
    return tuple(_capped(raw.log(), sizes, density * float(sizes.sum())).tolist())


def check(groups: Sequence[Group], decision: Decision, *, at: str = "this decision") -> None:
    """Refuse a decision that empties a group of units or weights. Whole layers may be dropped.

    Args:
        groups: The groups that were decided on.
        decision: What to keep.
        at: What led to it, for the message, such as ``sparsity 0.99``.

    Raises:
        BudgetError: A group would keep nothing.

    >>> check([Group("a", 2, ())], {"a": torch.tensor([False, False])}, at="sparsity 0.99")
    Traceback (most recent call last):
    ...
    prunerl.errors.BudgetError: Group 'a' would keep 0 of 2 units at sparsity 0.99. \
Lower the sparsity or set min_units=1.
    """
    for group in groups:
        if group.structure != "layers" and not decision[group.name].any():
            raise BudgetError(
                f"Group {group.name!r} would keep 0 of {group.units} {group.structure} at {at}. "
                "Lower the sparsity or set min_units=1."
            )


class _Ranking:
    """All units of all groups from the most to the least worth keeping; those of the floor come first."""

    def __init__(self, groups: Sequence[Group], scores: Scores, min_units: int) -> None:
        if min_units < 0:
            raise BudgetError(f"A decision got min_units={min_units}. Set it to 0 or more.")
        self.groups = groups
        self.sizes = [group.units for group in groups]
        flat = torch.cat([scores[group.name].double() for group in groups])
        held = torch.cat([_place(scores[g.name]) < (0 if g.structure == "layers" else min_units) for g in groups])
        order = flat.argsort(descending=True, stable=True)
        self.order = order[(~held[order]).byte().argsort(stable=True)]
        self.floor = int(held.sum())
        self.owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(self.sizes))[self.order]

    def keep(self, kept: int) -> Decision:
        mask = torch.zeros(len(self.order), dtype=torch.bool)
        mask[self.order[:kept]] = True
        return {group.name: part for group, part in zip(self.groups, torch.split(mask, self.sizes), strict=True)}

    def counts(self, kept: int) -> dict[str, int]:
        counts = torch.bincount(self.owner[:kept], minlength=len(self.groups)).tolist()
        return {group.name: count for group, count in zip(self.groups, counts, strict=True)}

    def largest(self, cost: Callable[[Mapping[str, int]], int], budget: int) -> int:
        """Return the most units that cost at most ``budget``; one less than the floor when not even that fits."""
        numbers = range(self.floor, len(self.order) + 1)
        return self.floor - 1 + bisect.bisect_right(numbers, budget, key=lambda kept: cost(self.counts(kept)))


def _cost(
    groups: Sequence[Group], count: Count, traced: Trace | None, tensors: Mapping[str, Tensor] | None
) -> Callable[[Mapping[str, int]], int]:
    """Return a function from the number of units kept in each group to what is counted of the network."""
    if count == "units":
        return lambda kept: sum(kept.values())
    if traced is None or tensors is None:
        raise BudgetError(f"count={count!r} is counted on the network. Pass traced and tensors.")
    if any(group.structure == "layers" for group in groups):
        raise BudgetError(f"Layers own no tensors, so their {count} cannot be counted. Use count='units'.")
    uses = {layer.weight: layer.positions for layer in traced.layers}
    times = dict.fromkeys(traced.parameters, 1) if count == "parameters" else uses
    shapes = {name: tuple(tensors[name].shape) for name in times}

    def cost(kept: Mapping[str, int]) -> int:
        left = {name: list(shape) for name, shape in shapes.items()}
        zeros = 0
        for group in groups:
            for own in group.slices:
                gone = (group.units - kept[group.name]) * own.index.shape[1]
                if own.tensor in left and own.dim is not None:
                    left[own.tensor][own.dim] -= gone
                elif own.tensor in left:
                    zeros += gone * times[own.tensor]
        return sum(math.prod(shape) * times[name] for name, shape in left.items()) - zeros

    return cost


def _by_erk(
    groups: Sequence[Group],
    scores: Scores,
    sparsity: float,
    count: Count,
    min_units: int,
    tensors: Mapping[str, Tensor] | None,
) -> Decision:
    if tensors is None or count != "units" or any(group.structure != "weights" for group in groups):
        raise BudgetError(
            "distribution='erk' shares out single weights by the shapes of their matrices. "
            "Pass groups of weights and their tensors, with count='units'."
        )
    densities = erk([tuple(tensors[group.slices[0].tensor].shape) for group in groups], 1.0 - sparsity)
    decision = {}
    for group, density in zip(groups, densities, strict=True):
        kept = max(math.floor(density * group.units + 1e-9), min(min_units, group.units))
        decision[group.name] = _place(scores[group.name]) < kept
    return decision


def _capped(logits: Tensor, sizes: Tensor, total: float) -> Tensor:
    """Return ``min(1, c · exp(logits))`` with c such that ``Σ sizes · shares`` is ``total``.

    Those that reach 1 are the largest, so c follows from how many there are: in the sorted order it is the first
    number k at which the next one stays below 1. Logarithms keep far smaller ones from rounding to nothing.
    """
    order = logits.argsort(descending=True, stable=True)
    logits, sizes = logits[order], sizes[order]
    rest = (logits + sizes.log()).flip(0).logcumsumexp(0).flip(0)
    left = total - (sizes.cumsum(0) - sizes)
    below = (left.clamp_min(0.0).log() + logits - rest <= 0.0).nonzero()
    shares = torch.ones_like(logits)
    if len(below):
        k = int(below[0])
        shares[order[k:]] = left[k] * (logits[k:] - rest[k]).exp()
    return shares


def _checked(groups: Sequence[Group], scores: Scores) -> Scores:
    if not groups:
        raise BudgetError("There are no groups to decide on. Choose a structure that the network has.")
    for group in groups:
        if group.name not in scores or scores[group.name].shape != (group.units,):
            got = tuple(scores[group.name].shape) if group.name in scores else "none"
            raise BudgetError(
                f"Group {group.name!r} needs scores of shape ({group.units},), got {got}. Score it with these groups."
            )
    return {group.name: _numbers(group.name, scores[group.name]) for group in groups}


def _numbers(name: str, score: Tensor) -> Tensor:
    if score.isnan().any():
        raise BudgetError(f"Group {name!r} has a score that is NaN. Look for NaN in its tensors or observations.")
    return score.detach()


def _share(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise BudgetError(f"A decision got sparsity {sparsity}. Set it to at least 0 and less than 1.")


def _choice(kind: str, got: str, names: Sequence[str]) -> None:
    if got not in names:
        raise errors.unknown(kind, got, names)


def _place(score: Tensor) -> Tensor:
    """Return the place of each unit within its group, 0 for the highest score."""
    return score.argsort(descending=True, stable=True).argsort()


def _places(scores: Scores) -> Scores:
    return {name: -(_place(score).double() + 0.5) / len(score) for name, score in scores.items()}
