"""Remove what a decision gives up: from parameters, optimizer moments, masks and target networks alike.

Everything is validated first and a new state is returned; the old one is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prunerl import decide, masks
from prunerl.errors import RemovalError
from prunerl.trace import (
    Layer,
    Trace,
    activity,
    features,
    forward,
    masked_forward,
    matrix,
    reader_of,
    unit_groups,
)
from prunerl.types import Decision, Group, State, Tie

TOLERANCE = 1e-4
"""Largest difference to the masked original, relative to the largest output."""
CHECKED_PRODUCTS = 5 * 10**8
"""The check takes as many observations as need about this many products, at least two."""


def remove(
    traced: Trace,
    state: State,
    groups: Sequence[Group],
    decision: Decision,
    *,
    ties: Sequence[Tie],
    observations: Tensor,
) -> State:
    """Apply a decision on units, single weights or layers, and check the result against the masked original.

    Units are cut out by ``index_select``. Single weights are set to zero and held there by a mask; see
    :func:`fold_dead` for the units that die by it. A layer is dropped by composing its neighbours, with its
    activation replaced by the line that fits it best on the observations.

    Args:
        traced: Trace of the network at its present depth.
        state: The agent's tensors.
        groups: The groups decided on, all of one structure.
        decision: Group name → keep mask.
        ties: What follows the network's tensors.
        observations: Visited states, the network's inputs, on which the check is made.

    Raises:
        RemovalError: The decision does not fit the groups, or the result is not what the masked original computes.
        BudgetError: A group would be emptied.
    """
    _validate(state, groups, decision)
    decide.check([group for group in groups if group.name in decision], decision)
    if all(bool(keep.all()) for keep in decision.values()):
        return state
    structure = groups[0].structure
    if structure == "layers":
        dropped = [g.name for g in groups if g.name in decision and not bool(decision[g.name].all())]
        if len(dropped) > 1:
            raise RemovalError(f"A decision drops layers {dropped}. Drop one layer at a time, and trace after each.")
        return compose(traced, state, dropped[0], ties=ties, observations=observations)
    if structure == "weights":
        return _mask_weights(state, groups, decision, ties)
    smaller = cut(state, groups, decision, ties)
    checked = observations[: max(2, CHECKED_PRODUCTS // sum(state.tensors[n].numel() for n in traced.parameters))]
    with torch.no_grad():
        expected = masked_forward(traced, state.tensors, checked, groups, decision)
        _compare(expected, forward(traced, smaller.tensors, checked))
    return smaller


def cut(state: State, groups: Sequence[Group], decision: Decision, ties: Sequence[Tie]) -> State:
    """Cut units out of every tensor that they own, and out of what follows it."""
    selections = kept_rows(state.tensors, groups, decision)
    for tie in ties:
        rows_of = selections.get(tie.source, {})
        if tie.source_dim in rows_of:
            source, target = _lengths(state, tie)
            beyond = torch.arange(source, target)
            selections.setdefault(tie.target, {})[tie.target_dim] = torch.cat([rows_of[tie.source_dim], beyond])

    def select(name: str, tensor: Tensor) -> Tensor:
        cuts = selections.get(name, {})
        if tensor.dim() == 2 and len(cuts) == 2:  # at once, without the half-cut matrix in between
            return tensor[cuts[0].unsqueeze(1), cuts[1]]
        for dim, rows in cuts.items():
            tensor = tensor.index_select(dim, rows)
        return tensor

    def select_moments(name: str, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shape = state.tensors[name].shape
        return {key: select(name, m) if m.shape == shape else m for key, m in moments.items()}

    return State(
        {n: select(n, t) for n, t in state.tensors.items()},
        {n: select_moments(n, m) for n, m in state.moments.items()},
        {n: select(n, m) for n, m in state.masks.items()},
    )


def _lengths(state: State, tie: Tie) -> tuple[int, int]:
    return state.tensors[tie.source].shape[tie.source_dim], state.tensors[tie.target].shape[tie.target_dim]


def kept_rows(
    tensors: Mapping[str, Tensor], groups: Sequence[Group], decision: Decision
) -> dict[str, dict[int, Tensor]]:
    """Return the rows that are left of each tensor along each dimension that a decision on units cuts."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        for part in group.slices if group.name in decision else ():
            assert part.dim is not None  # only groups of units come here
            gone.setdefault((part.tensor, part.dim), []).append(part.index[~decision[group.name]].flatten())
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), rows in gone.items():
        left = torch.ones(tensors[name].shape[dim], dtype=torch.bool).index_fill_(0, torch.cat(rows), False)
        kept.setdefault(name, {})[dim] = left.nonzero().flatten()
    return kept


def zeroed(state: State, groups: Sequence[Group], decision: Decision) -> dict[str, Tensor]:
    """Return the tensors at full size with everything that the decision gives up set to zero."""
    tensors = dict(state.tensors)
    for group in groups:
        for part in group.slices if group.name in decision else ():
            rows = part.index[~decision[group.name]].flatten()
            tensor = tensors[part.tensor].clone()
            view, dim = (tensor.view(-1), 0) if part.dim is None else (tensor, part.dim)
            tensors[part.tensor] = view.index_fill_(dim, rows, 0.0).view_as(tensor)
    return tensors


def compose(traced: Trace, state: State, name: str, *, ties: Sequence[Tie], observations: Tensor) -> State:
    """Drop hidden layer ``name``: its reader takes the layer's inputs instead.

    With W₁, b₁ of the layer, W₂, b₂ of its reader and the activation a(z) ≈ s∘z + c fitted by least squares on the
    observations, the reader becomes W₂ diag(s) W₁ and W₂(s∘b₁ + c) + b₂. What is tied to the reader's inputs without
    being a copy of it, such as gSDE's noise, takes for each new input the mean over those that are gone.
    """
    layer, reader = pair(traced, name)
    tensors, moments, held = dict(state.tensors), dict(state.moments), dict(state.masks)
    for names in replicas(state, ties, traced):
        own = {n: state.tensors[names.get(n, n)] for n in traced.parameters}
        seen = activity(traced, own, observations)
        slope, offset = _line(features(layer, seen.outputs[layer.name]), features(reader, seen.inputs[reader.name]))
        first, second = matrix(layer, own), matrix(reader, own)
        weight = (second * slope) @ first
        shift = second @ (slope * own[layer.bias] + offset if layer.bias else offset)
        target, bias = names.get(reader.weight, reader.weight), reader.bias
        tensors[target] = weight.T.contiguous() if reader.transposed else weight
        if bias is not None:
            tensors[names.get(bias, bias)] = own[bias] + shift
        elif bool((shift.abs() > 0).any()):
            raise RemovalError(f"Layer {reader.name!r} has no bias to take the constant of {name!r}. Keep that layer.")
        for gone in (layer.weight, layer.bias):
            if gone is not None:
                tensors.pop(names.get(gone, gone))
                moments.pop(names.get(gone, gone), None)
                held.pop(names.get(gone, gone), None)
        moments.pop(target, None)
        held.pop(target, None)
    inputs, copies = (reader.weight, 0 if reader.transposed else 1), replicas(state, ties, traced)[-1]
    for tie in ties:
        if (tie.source, tie.source_dim) == inputs and tie.target != copies.get(tie.source):
            mean = state.tensors[tie.target].mean(dim=tie.target_dim, keepdim=True)
            width = tensors[reader.weight].shape[tie.source_dim]
            tensors[tie.target] = mean.repeat_interleave(width, dim=tie.target_dim)
            moments.pop(tie.target, None)
            held.pop(tie.target, None)
    return State(tensors, moments, held)


def fold_dead(traced: Trace, state: State, *, ties: Sequence[Tie], observations: Tensor) -> State:
    """Remove units that no longer do anything, exactly.

    A unit without incoming weights is the constant a(b): it is added to its readers' biases. A unit without
    outgoing weights vanishes. One unit of each layer stays, since a layer cannot be empty.
    """
    while True:
        groups = unit_groups(traced, state.tensors)
        decision = {g.name: ~_dead(traced, state, g) for g in groups}
        for name, keep in decision.items():
            if not bool(keep.any()):
                decision[name] = torch.arange(len(keep)) == 0
        if all(bool(keep.all()) for keep in decision.values()):
            return state
        before = {n: state.tensors[n] for n in traced.parameters}
        folded = _fold_constants(traced, state, groups, decision, ties, observations)
        state = cut(folded, groups, decision, ties)
        with torch.no_grad():
            _compare(forward(traced, before, observations), forward(traced, state.tensors, observations))


def replicas(state: State, ties: Sequence[Tie], traced: Trace | None = None) -> list[dict[str, str]]:
    """Return the name maps of the network itself (empty) and of each whole copy of it, such as a target network.

    Only tensors that ``traced`` reads count, where it is given.
    """
    copies: dict[str, str] = {}
    own = None if traced is None else set(traced.parameters)
    for tie in (t for t in ties if own is None or t.source in own):
        same = tie.source_dim == tie.target_dim and state.tensors[tie.source].shape == state.tensors[tie.target].shape
        if tie.copies and same and tie.source != tie.target:
            copies[tie.source] = tie.target
    return [{}, copies] if copies else [{}]


def follow(state: State, ties: Sequence[Tie]) -> State:
    """Copy the network's tensors to the copies of it that are tied to it, as after a repair."""
    copies = replicas(state, ties)[-1]
    synced = {target: state.tensors[source].clone() for source, target in copies.items()}
    return replace(state, tensors={**state.tensors, **synced})


def _validate(state: State, groups: Sequence[Group], decision: Decision) -> None:
    known = {group.name: group for group in groups}
    for name, keep in decision.items():
        if name not in known:
            raise RemovalError(
                f"Group {name!r} is not among {sorted(known)}. Decide on the groups of this agent's trace."
            )
        if keep.dtype != torch.bool or keep.shape != (known[name].units,):
            raise RemovalError(
                f"Group {name!r} needs a bool mask of shape ({known[name].units},), "
                f"got {keep.dtype} of shape {tuple(keep.shape)}."
            )
        for part in known[name].slices:
            if part.tensor not in state.tensors:
                raise RemovalError(f"Group {name!r} owns tensor {part.tensor!r}, which the agent does not have.")


def _mask_weights(state: State, groups: Sequence[Group], decision: Decision, ties: Sequence[Tie]) -> State:
    held = dict(state.masks)
    copies = replicas(state, ties)[-1]
    for group in groups:
        if group.name in decision:
            tensor = state.tensors[group.name]
            keep = decision[group.name].view(tensor.shape) & held.get(
                group.name, torch.ones_like(tensor, dtype=torch.bool)
            )
            held[group.name] = keep
            if group.name in copies:
                held[copies[group.name]] = keep
    moments = {
        n: {k: m * held[n] if n in held and m.shape == held[n].shape else m for k, m in entries.items()}
        for n, entries in state.moments.items()
    }
    return State(masks.apply(state.tensors, held), moments, held)


def _dead(traced: Trace, state: State, group: Group) -> Tensor:
    """Return which units are constant or unread, as far as linear layers alone make and read them."""
    layers = {layer.weight: layer for layer in traced.layers if layer.kind == "linear" and not layer.derived}
    biases = {layer.bias for layer in layers.values()}
    none = torch.zeros(group.units, dtype=torch.bool)
    if group.name in traced.normalised or any(s.tensor not in layers and s.tensor not in biases for s in group.slices):
        return none
    silent, unread, readers = ~none, ~none, False
    for part in group.slices:
        layer = layers.get(part.tensor)
        if layer is None:
            continue
        weight = matrix(layer, state.tensors) == 0
        if part.dim == (0 if layer.transposed else 1):
            readers, unread = True, unread & weight.all(dim=0)[part.index].all(dim=1)
            silent &= torch.tensor(layer.bias is not None)
        else:
            silent &= weight.all(dim=1)[part.index].all(dim=1)
    return silent | unread if readers else none


def _fold_constants(
    traced: Trace,
    state: State,
    groups: Sequence[Group],
    decision: Decision,
    ties: Sequence[Tie],
    observations: Tensor,
) -> State:
    tensors = dict(state.tensors)
    gone = {(s.tensor, s.dim): s.index[~decision[g.name]].flatten() for g in groups for s in g.slices}
    for names in replicas(state, ties, traced):
        own = {n: state.tensors[names.get(n, n)] for n in traced.parameters}
        seen = activity(traced, own, observations)
        for reader in traced.layers:
            rows = gone.get((reader.weight, 0 if reader.transposed else 1))
            if rows is None or not len(rows) or reader.bias is None:
                continue
            bias = names.get(reader.bias, reader.bias)
            constant = features(reader, seen.inputs[reader.name])[0, rows]
            tensors[bias] = tensors[bias] + matrix(reader, own)[:, rows] @ constant
    return replace(state, tensors=tensors)


def _line(pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
    """Fit post ≈ slope · pre + offset for each unit."""
    centred = pre - pre.mean(dim=0)
    variance = centred.square().mean(dim=0)
    slope = (centred * post).mean(dim=0) / variance.clamp_min(1e-12)
    slope = torch.where(variance > 1e-12, slope, torch.zeros_like(slope))
    return slope, post.mean(dim=0) - slope * pre.mean(dim=0)


def _compare(expected: Tensor, got: Tensor) -> None:
    worst = float((expected - got).abs().max())
    allowed = TOLERANCE * (1.0 + float(expected.abs().max()))
    if not worst <= allowed:
        raise RemovalError(
            f"The smaller network differs from the masked original by {worst:.3g} on visited states (at most "
            f"{allowed:.3g} is rounding). Nothing was changed; please report the network's architecture."
        )


def pair(traced: Trace, name: str) -> tuple[Layer, Layer]:
    """Return a hidden layer that can be dropped, and the one that reads it.

    Raises:
        RemovalError: It cannot be dropped.
    """
    layer = next(entry for entry in traced.layers if entry.name == name)
    reader = reader_of(traced, layer)
    if reader is None:
        raise RemovalError(f"Layer {name!r} cannot be dropped: what it makes is not read by one linear layer alone.")
    return layer, reader


def layer_order(before: Trace, dropped: Sequence[str]) -> tuple[Layer, ...]:
    """Return the layers that are left of a trace once some are dropped, in order."""
    return tuple(layer for layer in before.layers if layer.name not in dropped)


def unexplained(traced: Trace, tensors: Mapping[str, Tensor], name: str, observations: Tensor) -> float:
    """Return how badly layer ``name`` can be replaced by a line: the share of its reader's variance that a linear
    map of the layer's inputs leaves unexplained. 0: it can be dropped without a trace."""
    layer, reader = pair(traced, name)
    seen = activity(traced, tensors, observations)
    inputs = torch.nn.functional.pad(features(layer, seen.inputs[layer.name]).double(), (0, 1), value=1.0)
    wanted = features(reader, seen.outputs[reader.name]).double()
    residual = wanted - inputs @ torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    total = (wanted - wanted.mean(dim=0)).square().sum()
    return float(residual.square().sum() / total.clamp_min(1e-12))
