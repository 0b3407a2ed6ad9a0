"""Cut the networks that only training needs: critics, and their targets with them.

What a critic is worth is not seen in the return of a policy that does not change, so there is no verdict to search by:
each critic loses the share that it is told to, evenly over its layers, and is refitted by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunerl import criteria, decide, trace
from prunerl.evidence import VisitedEvidence
from prunerl.remove import kept_rows, remove, replicas
from prunerl.repair.least_squares import least_squares
from prunerl.trace import Trace, activity, features
from prunerl.types import Agent, Critic, Decision, Group, Head, State, Structure, Tie

SCORED = 4096
"""Visited states on which critics are scored and refitted."""


@dataclass(frozen=True)
class CriticCut:
    """Parameters of a critic before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class LearnerCut:
    """The state of an agent whose critics were cut, and what was cut of each."""

    state: State
    critics: tuple[CriticCut, ...]


def prune_critics(
    agent: Agent, observations: Tensor, sparsity: float, *, structure: Structure, generator: torch.Generator
) -> LearnerCut:
    """Remove the same share of each critic, so that twins keep equal widths, each its own best units.

    What a critic shares with the policy stays as it is, and so does what follows the policy. Units are scored by
    :func:`prunerl.criteria.variance`, single weights by magnitude, spread by ERK.

    Args:
        agent: The agent; its policy is not changed.
        observations: The policy network's inputs in visited states.
        sparsity: Share of each critic's own parameters that goes, in [0, 1).
        structure: ``units`` or ``weights``.
        generator: Draws what is random in scoring.

    Raises:
        BudgetError: The sparsity is out of its range, or leaves a layer without units.
        RemovalError: A smaller critic is not what the masked original computes.
    """
    state, cuts = agent.state, []
    own = {name for name, _ in agent.policy.network.named_parameters()}
    following = {(tie.target, tie.target_dim) for tie in agent.ties if tie.source in own}
    for critic in agent.critics:
        held = _Held(own, following)
        cut = _cut_one(critic, state, agent.ties, held, observations[-SCORED:], sparsity, structure, generator)
        cuts.append(CriticCut(critic.name, _own_parameters(critic, state, own), _own_parameters(critic, cut, own)))
        state = cut
    return LearnerCut(state, tuple(cuts))


@dataclass(frozen=True)
class _Held:
    """What is the policy's: whole tensors, and single dimensions of others, such as a critic's reading of features."""

    tensors: set[str]
    dims: set[tuple[str, int]]

    def touches(self, group: Group) -> bool:
        own = any(s.tensor in self.tensors for s in group.slices)
        return own or any((s.tensor, s.dim) in self.dims for s in group.slices)


def _cut_one(
    critic: Critic,
    state: State,
    ties: Sequence[Tie],
    held: _Held,
    observations: Tensor,
    sparsity: float,
    structure: Structure,
    generator: torch.Generator,
) -> State:
    inputs = critic.inputs(observations)
    traced = trace.trace(critic.network, inputs[:3])
    groups = [g for g in trace.groups(traced, state, structure) if not held.touches(g)]
    if not groups or sparsity == 0.0:
        return state
    evidence = VisitedEvidence(traced, state, Head("gaussian"), lambda: inputs, generator)
    score = criteria.magnitude if structure == "weights" else criteria.variance
    scores = score(evidence, groups)
    if structure == "weights":
        decision = decide.by_sparsity(groups, scores, sparsity, distribution="erk", tensors=state.tensors)
    else:
        decision = decide.by_sparsity(
            groups, scores, sparsity, scope="local", count="parameters", traced=traced, tensors=state.tensors
        )
    smaller = remove(traced, state, groups, decision, ties=ties, observations=inputs[:256])
    return _refitted(traced, state, smaller, groups, decision, ties, inputs)


def _refitted(
    traced: Trace,
    before: State,
    after: State,
    groups: Sequence[Group],
    decision: Decision,
    ties: Sequence[Tie],
    inputs: Tensor,
) -> State:
    """Refit the critic, and its target to what the target itself computed before."""
    units = [g for g in groups if g.structure == "units"]
    kept = kept_rows(before.tensors, units, decision)
    changed = {s.tensor for g in groups for s in g.slices}
    tensors = dict(after.tensors)
    for names in replicas(before, ties, traced):
        old = {n: before.tensors[names.get(n, n)] for n in traced.parameters}
        new = {n: tensors[names.get(n, n)] for n in traced.parameters}
        outputs = activity(traced, old, inputs).outputs
        targets: list[Tensor | None] = []
        for layer in traced.layers:
            if layer.weight not in changed or not layer.reads or layer.name not in outputs:
                targets.append(None)
                continue
            rows = kept.get(layer.weight, {}).get(1 if layer.transposed else 0)
            wanted = features(layer, outputs[layer.name])
            targets.append(wanted if rows is None else wanted[:, rows])
        fitted = least_squares(traced, new, after.masks, inputs, targets)
        tensors |= {names.get(n, n): t for n, t in fitted.items()}
    return State(tensors, after.moments, after.masks)


def _own_parameters(critic: Critic, state: State, policy: set[str]) -> int:
    names = {name for name, _ in critic.network.named_parameters()} - policy
    return sum(int(state.masks[n].sum()) if n in state.masks else state.tensors[n].numel() for n in names)
