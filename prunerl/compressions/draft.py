"""Where a compression stands: a network's graph and tensors, and how some of them are coded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from prunerl.compressions import low_rank, quantize, sharing
from prunerl.compressions.codes import axis_of, stored_bytes
from prunerl.compressions.network import GraphNetwork, with_rounded_inputs
from prunerl.compressions.quantize import Coded
from prunerl.cost import size
from prunerl.deploy.program import Coding
from prunerl.errors import BudgetError
from prunerl.repair.distill import Project
from prunerl.trace import Trace
from prunerl.types import Agent, Masks, Policy


@dataclass(frozen=True, eq=False)
class Draft:
    """An agent on its way to a smaller file.

    Attributes:
        agent: The agent that it was made from.
        traced: The network, which reads ``tensors`` by name.
        tensors: Values of its parameters and buffers; of coded ones exactly what their codes say.
        masks: Single weights held at zero.
        codings: How coded weights are stored.
        factorized: The network is another one than the agent's: layers were replaced by two each.
        notes: What was left as it was, and why.
    """

    agent: Agent
    traced: Trace
    tensors: Mapping[str, Tensor]
    masks: Masks
    codings: Mapping[str, Coding] = field(default_factory=dict)
    factorized: bool = False
    notes: tuple[str, ...] = ()


def draft_of(agent: Agent, traced: Trace) -> Draft:
    """Return an agent as nothing of it is compressed yet."""
    tensors = {n: agent.state.tensors[n] for n in traced.parameters}
    return Draft(agent, traced, tensors, {n: m for n, m in agent.state.masks.items() if n in tensors})


def policy_of(draft: Draft) -> Policy:
    """Return the policy with the compressed values; layers do not round their inputs in it, see :func:`deployed`."""
    agent = draft.agent
    if draft.factorized:
        return replace(agent.policy, network=GraphNetwork(draft.traced, draft.tensors).eval())
    own = dict(draft.tensors)
    for same in draft.traced.shared:
        own |= {n: own[k] for k in same if k in draft.tensors for n in same}
    tensors = {n: own.get(n, t) for n, t in agent.state.tensors.items()}
    return agent.with_state(replace(agent.state, tensors=tensors)).policy


def deployed(draft: Draft) -> Policy:
    """Return the policy as it acts when it is deployed: where the codings say so, layers round their inputs."""
    traced = computed_by(draft)
    if traced is draft.traced:
        return policy_of(draft)
    return replace(draft.agent.policy, network=GraphNetwork(traced, draft.tensors).eval())


def computed_by(draft: Draft) -> Trace:
    """Return the graph that the deployed policy computes, with the rounding of inputs."""
    scales = {n: c.input_scale for n, c in draft.codings.items() if c.input_scale is not None}
    return with_rounded_inputs(draft.traced, scales)


def bytes_of(draft: Draft) -> int:
    """Return the bytes that the network's tensors are stored in."""
    return sum(stored_bytes(t, draft.codings.get(n)) for n, t in draft.tensors.items())


def projection(draft: Draft) -> Project | None:
    """Return the constraint that the codings put on weights: their grid, or who shares a value with whom."""
    if not draft.codings:
        return None
    axes = {e.weight: axis_of(e) for e in draft.traced.layers}
    places = {n: sharing.assignments(draft.tensors[n], c) for n, c in draft.codings.items() if c.kind == "shared"}

    def project(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: sharing.held(tensors[n], c, places[n])
            if c.kind == "shared"
            else quantize.held(tensors[n], c, axis=axes[n])
            for n, c in draft.codings.items()
            if n in tensors
        }

    return project


def with_trained(draft: Draft, tensors: Mapping[str, Tensor]) -> Draft:
    """Return the draft with other values, which the projection has held; codebooks are what the values are now."""
    codings = {n: sharing.recoded(tensors[n], c) if c.kind == "shared" else c for n, c in draft.codings.items()}
    return replace(draft, tensors=dict(tensors), codings=codings)


def with_low_rank(draft: Draft, observations: Tensor, share: float) -> Draft:
    """Factorise linear layers until the network takes a share of its numbers.

    Args:
        draft: What to factorise.
        observations: Visited states, the network's inputs.
        share: Of the numbers stored now that the network may take.

    Raises:
        BudgetError: There is nothing to factorise, or not even rank 1 is small enough.
    """
    if draft.agent.policy.memory:
        raise BudgetError(
            "Nothing to factorise: the layers of a recurrent network are left whole. Leave low_rank out; weights can "
            "be shared or quantised."
        )
    found = low_rank.spectra(draft.traced, draft.tensors, draft.masks, observations)
    if not found:
        raise BudgetError(
            "Nothing to factorise: no linear layer is wide enough to be smaller as two of rank 1. Leave low_rank out."
        )
    whole = sum(int(draft.masks[n].sum()) if n in draft.masks else t.numel() for n, t in draft.tensors.items())
    beside = whole - sum(s.stored for s in found)
    least = (beside + low_rank.fewest(found)) / whole
    if share < least:
        raise BudgetError(
            f"low_rank={share:g} cannot be met: rank 1 keeps {least:.3f} of the numbers. Give more, or prune units."
        )
    rank = low_rank.ranks(found, int(share * whole) - beside)
    if not rank:
        note = f"No layer becomes smaller as two at low_rank={share:g}: all are whole."
        return replace(draft, notes=(*draft.notes, note))
    traced, tensors = low_rank.factorized(draft.traced, draft.tensors, found, rank)
    kept = {n: m for n, m in draft.masks.items() if n in tensors}
    said = ", ".join(f"{name} {r}" for name, r in rank.items())
    return replace(
        draft,
        traced=traced,
        tensors=tensors,
        masks=kept,
        factorized=True,
        notes=(*draft.notes, f"Rank of factorised layers: {said}. Other layers are whole."),
    )


def with_shared(draft: Draft, observations: Tensor, bits: int) -> Draft:
    """Let the weights of each layer share few values.

    Raises:
        BudgetError: No layer would take fewer bytes.
    """
    return _coded(draft, sharing.shared(draft.traced, draft.tensors, draft.codings, observations, bits=bits))


def with_quantized(draft: Draft, observations: Tensor, bits: int, *, inputs: bool) -> Draft:
    """Round the weights of each layer to integers, and by choice the inputs of hidden layers.

    Raises:
        BudgetError: No layer would take fewer bytes.
    """
    possible = inputs and not draft.agent.policy.memory
    made = quantize.quantized(draft.traced, draft.tensors, draft.codings, observations, bits=bits, inputs=possible)
    note = ("Inputs of a recurrent policy's layers are not rounded.",) if inputs and not possible else ()
    return _coded(replace(draft, notes=(*draft.notes, *note)), made)


def sizes(draft: Draft) -> tuple[int, int, int]:
    """Return the numbers of the network, the bytes that they are stored in, and its MACs of one decision."""
    found = size(draft.traced, draft.tensors)
    return found.parameters, bytes_of(draft), found.macs


def _coded(draft: Draft, made: Coded) -> Draft:
    if not made.codings:
        raise BudgetError(
            "Nothing to compress: no layer's weight would take fewer bytes. The network is small already, or coded."
        )
    note = (f"Left in 32 bits, where codes would take no less: {', '.join(made.left)}.",) if made.left else ()
    return replace(
        draft,
        tensors=dict(made.tensors),
        codings={**draft.codings, **made.codings},
        notes=(*draft.notes, *note),
    )
