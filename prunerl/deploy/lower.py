"""Lower a policy: from its networks, normaliser and head to one program of plain operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prunerl.deploy.lowering.graph import exported, names, placeholders, walk
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Made, Stacked, Value
from prunerl.deploy.program import (
    OBSERVATION,
    Choose,
    Clip,
    Coding,
    Floats,
    Normalize,
    Positive,
    Program,
    Reshape,
    Squash,
)
from prunerl.errors import LowerError
from prunerl.types import Head, Normalizer, Policy

DTYPES = {
    "float32": torch.float32, "float64": torch.float32, "uint8": torch.uint8, "int8": torch.int8,
    "int16": torch.int16, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool,
}  # fmt: skip
"""NumPy name of a raw observation's type → the type in which the network takes it."""


def lower(policy: Policy, codings: Mapping[str, Coding] = {}, *, dtype: str | None = None) -> Program:
    """Turn a policy into a program that computes the same deterministic actions from raw observations.

    Args:
        policy: What is deployed, in evaluation mode.
        codings: How parameters are stored that are quantised or shared, by name.
        dtype: NumPy name of the raw observation's type. By default what the policy says (``observation_dtype``, where
            it has that), else ``int64`` of an observation without dimensions and ``float32`` of others.

    Returns:
        The program as lowered; :func:`prunerl.deploy.passes.simplify` makes it smaller.

    Raises:
        LowerError: The network uses what a program does not have; the message names the operator, its layer and what to
            do. Or a weight is not finite, or not what its codes say.
    """
    dtype = _dtype(policy, dtype)
    graph = exported(policy, DTYPES[dtype] if policy.normalizer is None else torch.float32)
    to = Lowering(_codings(policy, codings))
    to.shapes[OBSERVATION] = policy.observation_shape
    observation = _prepared(to, policy, dtype)
    memory = _memory(to, policy)
    output, following = walk(to, graph, placeholders(graph, (observation, *memory), names(policy)))
    left = sorted(set(to.codings) - to.coded)
    if left:
        raise LowerError(f"{left[0]!r} is stored in codes, but is no layer's weight. Leave it out of the codings.")
    to.node = None
    action, remembered = _action(to, policy.head, output), _remembered(to, memory, following)
    return Program(
        operations=tuple(to.operations),
        shapes=to.shapes,
        action=action,
        observation_dtype=dtype,
        action_shape=tuple(policy.head.shape),
        action_dtype={"gaussian": "float32", "bernoulli": "int8"}.get(policy.head.kind, "int64"),
        memory=remembered,
        allowed=_allowed(policy.head, output) if policy.masked else 0,
    )


def _codings(policy: Policy, codings: Mapping[str, Coding]) -> dict[str, Coding]:
    """Return the codings by the first name of each tensor."""
    first = names(policy)
    prefix = "network." if policy.memory else ""
    for parameter in codings:
        if prefix + parameter not in first:
            raise LowerError(f"A coding is given for {parameter!r}, which is no parameter of the policy's network.")
    return {first[prefix + parameter]: coding for parameter, coding in codings.items()}


def _dtype(policy: Policy, dtype: str | None) -> str:
    default = "float32" if policy.observation_shape else "int64"
    chosen: str = dtype or getattr(policy, "observation_dtype", None) or default
    if chosen not in DTYPES:
        raise LowerError(f"Observations of type {chosen!r} cannot be lowered. Choose dtype from: {', '.join(DTYPES)}.")
    return chosen


def _prepared(to: Lowering, policy: Policy, dtype: str) -> Made:
    """Return the network's input: the observation, normalised where the policy does that."""
    shape = (1, *policy.observation_shape)
    if policy.normalizer is None:
        return Made(OBSERVATION, shape, "real" if dtype.startswith("float") else "whole")
    normalize = _normalize(policy.normalizer, policy.observation_shape)
    to.operations.append(normalize)
    to.shapes[normalize.result] = policy.observation_shape
    return Made(normalize.result, shape)


def _normalize(normalizer: Normalizer, shape: tuple[int, ...]) -> Normalize:
    factor = 1 / np.sqrt(np.asarray(normalizer.var, np.float64) + normalizer.epsilon)
    mean = np.asarray(normalizer.mean, np.float64)
    for which, values in (("mean", mean), ("variance", factor)):
        if not np.isfinite(values).all():
            raise LowerError(f"The normaliser's {which} is not finite. Save the statistics again.")

    def spread(values: Any, kind: Any) -> Any:
        return np.ascontiguousarray(np.broadcast_to(values, shape).astype(kind))

    where = None if normalizer.where is None else spread(normalizer.where, np.bool_)
    return Normalize(
        OBSERVATION, "normalized", spread(mean, np.float32), spread(factor, np.float32), normalizer.clip, where
    )


def _memory(to: Lowering, policy: Policy) -> list[Stacked]:
    """Return the memory's tensors, each layer a value of the program."""
    memory = []
    for place, (layers, *shape) in enumerate(policy.memory):
        own = [f"memory_{place}_{layer}" for layer in range(layers)]
        to.shapes.update(dict.fromkeys(own, tuple(shape)))
        memory.append(Stacked(tuple(Made(part, (1, *shape)) for part in own)))
    return memory


def _remembered(to: Lowering, memory: Sequence[Stacked], following: Sequence[Value]) -> dict[str, str]:
    """Return which value each part of the memory holds next; never another part itself, nor the observation."""
    parts = {OBSERVATION, *(part.name for stacked in memory for part in stacked.parts)}
    remembered = {}
    for stacked, values in zip(memory, following, strict=True):
        for place, part in enumerate(stacked.parts):
            value = to.read(to.part(values, place), to.shapes[part.name])
            if value in parts and value != part.name:
                source, value = value, to.fresh(f"{part.name}_next")
                to.operations.append(Reshape(source, value))
                to.shapes[value] = to.shapes[source]
            remembered[part.name] = value
    return remembered


def _action(to: Lowering, head: Head, output: Made) -> str:
    """Add what turns the network's output into the action, and return its name."""
    count = math.prod(output.shape)
    if len(output.shape) != 2 or output.shape[0] != 1 or (head.sizes and count != sum(head.sizes)):
        raise LowerError(
            f"The network gives shape {output.shape} for one observation, but a {head.kind} head of sizes {head.sizes} "
            "reads (1, outputs). Return the head's input alone."
        )
    source, result = to.read(output), to.fresh("action")
    if head.kind in ("categorical", "q_values"):
        to.operations.append(Choose(source, result, head.sizes))
        to.shapes[result] = (len(head.sizes),)
        return result
    to.shapes[result] = (count,)
    if head.kind == "bernoulli":
        to.operations.append(Positive(source, result))
        return result
    low, high = (_bound(value, default, count) for value, default in ((head.low, -np.inf), (head.high, np.inf)))
    to.operations.append((Squash if head.squashed else Clip)(source, result, low, high))
    return result


def _bound(value: Any, default: float, count: int) -> Floats:
    return np.full(count, default, np.float32) if value is None else np.asarray(value, np.float32).reshape(-1)


def _allowed(head: Head, output: Made) -> int:
    return 2 * math.prod(output.shape) if head.kind == "bernoulli" else sum(head.sizes)
