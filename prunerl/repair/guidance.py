"""Let the dense agent's own critics judge what a student does, beside what the dense agent would have done.

A small student cannot do all that the dense agent does. Imitation weighs every error of an action alike; the critics of
SAC, TD3 and their kin know which errors cost return, and lead a student to what it can do instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunerl.types import Critic

WEIGHT = 30.0
"""Of the critics' judgement, in standard deviations of the value over visited states, beside the imitation's loss."""
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Guide:
    """Critics that take an action.

    Attributes:
        critics: Each maps features and actions to a value, or to several whose mean is the value.
        features: What they see of each state of the lessons, shape (states, features).
        spread: Standard deviation of the value over those states.
    """

    critics: tuple[Critic, ...]
    features: Tensor
    spread: float


def judges(critics: Sequence[Critic]) -> tuple[Critic, ...]:
    """Return the critics among those given that judge actions."""
    return tuple(c for c in critics if c.actions)


def guide(critics: Sequence[Critic], observations: Tensor, *, judged: int = 10_000) -> Guide | None:
    """Return the critics among those given that judge actions, ready to judge in these states; None without any.

    Args:
        critics: The dense agent's.
        observations: The network's inputs, shape (states, *observation).
        judged: The spread is measured over the first so many.
    """
    able = judges(critics)
    if not able:
        return None
    for critic in able:
        critic.network.eval()
    seen = _seen(able[0], observations)
    with torch.no_grad():
        values = [_value(critic, seen[:judged]) for critic in able]
    spread = float(torch.stack(values).mean(dim=0).std())
    return Guide(able, seen[:, : -able[0].actions], spread) if spread > 0.0 else None


def features(guide: Guide, observations: Tensor) -> Tensor:
    """Return what the critics see of these states beside the action, shape (states, features)."""
    return _seen(guide.critics[0], observations)[:, : -guide.critics[0].actions]


def shortfall(guide: Guide, index: Tensor, actions: Tensor, *, turn: int = 0) -> Tensor:
    """Return how little the actions are worth, in spreads of the value: less is better.

    Args:
        guide: The critics.
        index: Places of the states among the lessons', any shape.
        actions: What is done there, within −1 and 1, shape (*index, actions).
        turn: The critics take turns, which costs a student no more than one of them would.

    Returns:
        Shape of ``index``; the value by the critic whose turn it is, with its sign turned.

    Reference: Silver 2014, eq. 9 (the gradient of a value along an action); Fujimoto & Gu 2021 (TD3+BC), eq. 3 and 4.
    """
    seen = torch.cat([guide.features[index], actions], dim=-1)
    return -WEIGHT * _value(guide.critics[turn % len(guide.critics)], seen) / guide.spread


def _seen(critic: Critic, observations: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([critic.inputs(part) for part in torch.split(observations, BLOCK)])


def _value(critic: Critic, seen: Tensor) -> Tensor:
    value: Tensor = critic.network(seen).mean(dim=-1)
    return value
