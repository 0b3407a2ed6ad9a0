"""Turn played episodes into the inputs of a policy network, and trace the network on them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from prunerl import heads
from prunerl.rollout import Rollout
from prunerl.trace import Trace, trace
from prunerl.types import Policy

WINDOW = 32
"""Time steps of one input of a recurrent network."""


def inputs(policy: Policy, played: Rollout) -> Tensor:
    """Return the network's inputs in the states that were visited, shape (states, *observation).

    Of a recurrent policy they are stretches of WINDOW time steps of one episode, shape (stretches, WINDOW,
    *observation), each begun with an empty memory; what is left at the end of an episode is repeated from its start.
    """
    prepared = heads.prepare(policy, played.observations)
    if not policy.memory:
        return prepared
    ends = list(itertools.accumulate(played.lengths))
    starts = [0, *ends[:-1]]
    windows = []
    for start, end in zip(starts, ends, strict=True):
        episode = prepared[start:end]
        short = -len(episode) % WINDOW
        repeats = -(-short // len(episode))
        whole = torch.cat([episode, *[episode] * repeats])[: len(episode) + short]
        windows.append(whole.reshape(-1, WINDOW, *whole.shape[1:]))
    return torch.cat(windows)


def steps_of(policy: Policy) -> int:
    """Return how many visited states one input holds."""
    return WINDOW if policy.memory else 1


def trace_policy(policy: Policy, observations: Tensor) -> Trace:
    """Trace a policy's network on a few of its inputs.

    Raises:
        TraceError: As :func:`prunerl.trace.trace`.
    """
    return trace(policy.network, observations[:3], recurrent=bool(policy.memory))
