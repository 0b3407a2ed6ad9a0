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

WEIGHT = 20.0
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


def guide(critics: Sequence[Critic], observations: Tensor, *, judged: int = 10_000) -> Guide | None:
    """Return the critics among those given that judge actions, ready to judge in these states; None without any.

    Args:
        critics: The dense agent's.
        observations: The network's inputs, shape (states, *observation).
        judged: The spread is measured over the first so many.
    """
    judges = tuple(c for c in critics if c.actions)
    if not judges:
        return None
    for critic in judges:
        critic.network.eval()
    with torch.no_grad():
        seen = torch.cat([judges[0].inputs(part) for part in torch.split(observations, BLOCK)])
        values = _least(judges, seen[:judged])
    spread = float(values.std())
    return Guide(judges, seen[:, : -judges[0].actions], spread) if spread > 0.0 else None


def shortfall(guide: Guide, index: Tensor, actions: Tensor) -> Tensor:
    """Return how little the actions are worth, in spreads of the value: less is better.

    Args:
        guide: The critics.
        index: Places of the states among the lessons', any shape.
        actions: What is done there, within −1 and 1, shape (*index, actions).

    Returns:
        Shape of ``index``; the least of the critics' values, with its sign turned.

    Reference: Fujimoto 2018 (the lesser of two critics); Silver 2014, eq. 9 (the gradient of a value along an action).
    """
    seen = torch.cat([guide.features[index], actions], dim=-1)
    return -WEIGHT * _least(guide.critics, seen) / guide.spread


def _least(critics: Sequence[Critic], seen: Tensor) -> Tensor:
    return torch.stack([critic.network(seen).mean(dim=-1) for critic in critics]).amin(dim=0)
