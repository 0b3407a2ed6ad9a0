"""Compare a deployed policy's actions with the agent's in states that the agent visited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunerl import heads
from prunerl.deploy import interpret
from prunerl.deploy.play import Player, Visit
from prunerl.deploy.program import Affine, Conv, Program
from prunerl.types import Policy

TOLERANCE = 1e-4
"""Largest difference of two actions, or of the outputs of two choices that count as tied, relative to their size
where that is above 1. The order of sums differs between runtimes, which in float32 makes about a tenth of this."""

EDGE = 5e-4
"""Inputs of a layer that rounds them are on the edge where they are this near to half a step."""

BATCH = 256


@dataclass(frozen=True)
class Agreement:
    """How a deployed policy's actions compare with the agent's in the same states.

    Attributes:
        observations: States compared, visited by the agent.
        equal: Those with equal actions; continuous ones within the tolerance.
        ties: Those with other actions where float32 cannot tell which is right: the agent's own outputs for the two
            choices are within the tolerance, or a layer that rounds its inputs has one on the edge.
        largest: Largest absolute difference of a continuous action; 0 of discrete ones.
        tolerance: See ``TOLERANCE``.
    """

    observations: int
    equal: int
    ties: int
    largest: float
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether all actions agree."""
        return self.equal + self.ties == self.observations

    def __str__(self) -> str:
        ties = f", {self.ties} ties" if self.ties else ""
        return (
            f"actions equal in {self.equal:,} of {self.observations:,} visited states{ties}; "
            f"largest difference {self.largest:.2g}"
        )


def agreement(player: Player, program: Program, policy: Policy, visits: Sequence[Visit]) -> Agreement:
    """Compare actions in states that the agent visited; a deployed policy's memory is its own."""
    theirs = np.concatenate([visit.action for visit in visits])
    ours, memories = _shadowed(player, visits, alone=bool(program.memory))
    size = np.maximum(1.0, np.abs(theirs).astype(float))
    gap = np.abs(ours.astype(float) - theirs) / size
    flat = (gap if policy.head.kind == "gaussian" else np.where(gap > 0, np.inf, 0.0)).reshape(len(visits), -1)
    other = ~(flat <= TOLERANCE).all(axis=1)
    ties = [i for i in np.flatnonzero(other).tolist() if _tied(program, policy, visits[i], ours[i], memories[i])]
    largest = float(np.abs(ours.astype(float) - theirs).max()) if policy.head.kind == "gaussian" else 0.0
    return Agreement(len(visits), int((~other).sum()), len(ties), largest)


def _shadowed(player: Player, visits: Sequence[Visit], *, alone: bool) -> tuple[NDArray[Any], list[Any]]:
    """Return what a player does in the agent's states, in batches where ``alone`` does not ask for one at a time."""
    actions, memories = [], []
    memory = player.start()
    for i in range(0, len(visits), 1 if alone else BATCH):
        batch = visits[i : i + (1 if alone else BATCH)]
        memory = player.start() if batch[0].first else memory
        allowed = (
            None if batch[0].allowed is None else np.concatenate([v.allowed for v in batch if v.allowed is not None])
        )
        memories += [memory] * len(batch)
        made, memory = player.act(np.concatenate([visit.observation for visit in batch]), memory, allowed)
        actions.append(made)
    return np.concatenate(actions), memories


def _tied(program: Program, policy: Policy, visit: Visit, action: NDArray[Any], memory: Mapping[str, Any]) -> bool:
    """Tell whether float32 cannot say which of two different actions is right."""
    return _on_the_edge(program, visit, memory) or (
        policy.head.kind != "gaussian" and _level(policy, visit, action.reshape(-1), visit.action.reshape(-1))
    )


def _level(policy: Policy, visit: Visit, ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Tell whether the agent's outputs for two discrete actions are the same within the tolerance."""
    with torch.no_grad():
        prepared = heads.prepare(policy, visit.observation)
        network: Any = policy.network
        output = network.step(prepared, visit.memory)[0] if policy.memory else network(prepared)
    values = output.numpy().reshape(-1).astype(float)
    margin = TOLERANCE * max(1.0, float(np.abs(values).max()))
    if policy.head.kind == "bernoulli":
        return bool((np.abs(values[ours != theirs]) <= margin).all())
    starts = np.cumsum(policy.head.sizes) - policy.head.sizes
    if visit.allowed is not None and not visit.allowed.reshape(-1)[starts + ours].all():
        return False
    return bool((np.abs(values[starts + ours] - values[starts + theirs]) <= margin).all())


def _on_the_edge(program: Program, visit: Visit, memory: Mapping[str, Any]) -> bool:
    rounding = [o for o in program.operations if isinstance(o, Affine | Conv) and o.input_scale is not None]
    if not rounding:
        return False
    values = interpret.values(program, visit.observation, memory, visit.allowed)
    for operation in rounding:
        steps = np.abs(values[operation.source] / np.float32(operation.input_scale or 1.0))
        if (np.abs(steps[steps < 128] % 1 - 0.5) < EDGE).any():
            return True
    return False
