"""Make one network narrower so that what it computes changes as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunerl import criteria
from prunerl.errors import BudgetError, LearnError
from prunerl.evidence import VisitedEvidence
from prunerl.remove import kept_rows, remove, replicas
from prunerl.repair.distill import Lessons, answers, distill
from prunerl.repair.least_squares import RIDGE, least_squares
from prunerl.trace import Trace, activity, features, unit_groups
from prunerl.train.shrink_networks import Network, ties
from prunerl.types import Decision, Group, Scores, State

Criterion = Callable[[VisitedEvidence, Sequence[Group]], Scores]
CHECKED = 256
"""States on which the smaller network is compared with the masked original."""


@dataclass(frozen=True)
class Cut:
    """How units are chosen, and what repairs the loss of the others.

    Attributes:
        criterion: Scores units from what they do in visited states, high = keep.
        refit: Refit the layers that read a cut layer by least squares.
        distill: Updates of distillation on the visited states after that; 0 for none.
        learning_rate: Peak learning rate of the distillation.
        ridge: Penalty of the least squares, as :func:`~prunerl.repair.least_squares.least_squares` takes it.
    """

    criterion: Criterion = criteria.variance
    refit: bool = True
    distill: int = 0
    learning_rate: float = 1e-3
    ridge: float = RIDGE


def narrowed(
    network: Network,
    traced: Trace,
    state: State,
    targets: Sequence[int],
    inputs: Tensor,
    cut: Cut,
    *,
    generator: torch.Generator,
) -> State:
    """Return the network with as many units in each hidden layer as ``targets`` says, its followers cut alike.

    Units are chosen on the network itself; its target loses the same ones and is repaired to what the target computed
    before. The cut is compared with the masked original before anything is refitted.

    Args:
        network: The network.
        traced: Trace of its module.
        state: Its tensors and moments, and what follows.
        targets: Width of each hidden layer.
        inputs: What it reads in visited states, shape (samples, features).
        cut: How to choose, and how to repair.
        generator: Draws what the criterion or the distillation draws.

    Raises:
        BudgetError: A target is not between 1 and the present width.
        LearnError: A layer's units cannot be cut.
        RemovalError: The smaller network is not what the masked original computes.
    """
    groups = unit_groups(traced, state.tensors)
    decision = _decide(network, traced, state, groups, targets, inputs, cut, generator)
    if not decision:
        return state
    follow = ties(network, state)
    smaller = remove(traced, state, groups, decision, ties=follow, observations=inputs[:CHECKED])
    if cut.refit:
        smaller = _refitted(
            traced, state, smaller, groups, decision, inputs, replicas(state, follow, traced), cut.ridge
        )
    return smaller


def outputs(network: Network, traced: Trace, state: State, inputs: Tensor) -> list[Tensor]:
    """Return what a network computes in visited states, and what its target does where it has one."""
    maps = replicas(state, ties(network, state), traced)
    return [answers(traced, named(state, traced, names), inputs) for names in maps]


def difference(old: Tensor, new: Tensor) -> float:
    """Return the root mean square change of the outputs over their root mean square spread before."""
    spread = (old - old.mean(dim=0)).square().mean()
    return float(((old - new).square().mean() / spread.clamp_min(1e-12)).sqrt())


def _decide(
    network: Network,
    traced: Trace,
    state: State,
    groups: Sequence[Group],
    targets: Sequence[int],
    inputs: Tensor,
    cut: Cut,
    generator: torch.Generator,
) -> Decision:
    makes = {layer.name: layer.makes for layer in traced.layers}
    known = {group.name: group for group in groups}
    wanted: dict[str, int] = {}
    for layer, target in zip(network.hidden, targets, strict=True):
        present = state.tensors[f"{layer}.weight"].shape[0]
        if not 1 <= target <= present:
            raise BudgetError(f"Layer {layer!r} has {present} units and cannot shrink to {target}. Set 1 to {present}.")
        if target == present:
            continue
        owned = [name for name in makes.get(layer, ()) if name in known]
        if len(owned) != 1 or known[owned[0]].units != present:
            reason = traced.kept_whole.get(layer, "its units are not one group")
            raise LearnError(f"Layer {layer!r} cannot shrink: {reason}. Leave it at its {present} units.")
        wanted[owned[0]] = target
    if not wanted:
        return {}
    own = replace(state, tensors={name: state.tensors[name] for name in traced.parameters})
    losing = [known[name] for name in wanted]
    scores = cut.criterion(VisitedEvidence(traced, own, network.head, lambda: inputs, generator), losing)
    decision = {}
    for name, target in wanted.items():
        best = scores[name].argsort(descending=True, stable=True)[:target]
        decision[name] = torch.zeros(known[name].units, dtype=torch.bool).index_fill_(0, best, True)
    return decision


def _refitted(
    traced: Trace,
    before: State,
    after: State,
    groups: Sequence[Group],
    decision: Decision,
    inputs: Tensor,
    maps: Sequence[Mapping[str, str]],
    ridge: float,
) -> State:
    """Refit each layer that lost inputs to what its outputs were; in the target, to what they were in the target."""
    kept = kept_rows(before.tensors, groups, decision)
    tensors = dict(after.tensors)
    for names in maps:
        with torch.no_grad():
            outputs = activity(traced, named(before, traced, names), inputs).outputs
        wanted: list[Tensor | None] = []
        for layer in traced.layers:
            if 1 not in kept.get(layer.weight, {}):
                wanted.append(None)
                continue
            rows = kept[layer.weight].get(0)
            old = features(layer, outputs[layer.name])
            wanted.append(old if rows is None else old[:, rows])
        fitted = least_squares(traced, named(after, traced, names), {}, inputs, wanted, ridge=ridge)
        tensors |= {names.get(name, name): tensor for name, tensor in fitted.items()}
    return replace(after, tensors=tensors)


def imitating(
    network: Network,
    traced: Trace,
    state: State,
    wanted: Sequence[Tensor],
    inputs: Tensor,
    cut: Cut,
    *,
    generator: torch.Generator,
) -> State:
    """Let a smaller network, and its target, imitate what the larger ones computed, where that brings them closer.

    A network that refitting has left next to exact only loses by Adam, whose steps do not shrink with the gradient.

    Args:
        network, traced, state: The smaller network.
        wanted: What :func:`outputs` returned of the larger one.
        inputs: What both read, shape (samples, features).
        cut: Says for how many updates, and how fast.
        generator: Draws the minibatches.
    """
    tensors = dict(state.tensors)
    for names, aim in zip(replicas(state, ties(network, state), traced), wanted, strict=True):
        present = named(state, traced, names)
        [learnt] = distill(
            traced,
            [present],
            {},
            network.head,
            Lessons(inputs, aim, 1.0, len(inputs)),
            updates=cut.distill,
            learning_rate=cut.learning_rate,
            generator=generator,
        )
        far = [difference(aim, answers(traced, student, inputs)) for student in (present, learnt)]
        if far[1] < far[0]:
            tensors |= {names.get(name, name): tensor.detach() for name, tensor in learnt.items()}
    return replace(state, tensors=tensors)


def named(state: State, traced: Trace, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors that a trace reads, of a network or of the copy of it that ``names`` leads to."""
    return {name: state.tensors[names.get(name, name)] for name in traced.parameters}
