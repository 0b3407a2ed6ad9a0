"""What a network's output means: distributions, actions and divergences for each kind of head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prunerl.types import FloatArray, Head, Normalizer, Policy

TEMPERATURE = 0.1
"""Q-values become a distribution by softmax(Q / (TEMPERATURE · scale)), scale from :func:`q_scale`."""


def normalize(normalizer: Normalizer | None, observations: NDArray[Any]) -> NDArray[Any]:
    """Apply the observation statistics as Stable-Baselines3's ``VecNormalize`` does, in the same precision."""
    if normalizer is None:
        return observations
    scaled = (observations - normalizer.mean) / np.sqrt(normalizer.var + normalizer.epsilon)
    clipped: FloatArray = np.clip(scaled, -normalizer.clip, normalizer.clip).astype(np.float32)
    return clipped if normalizer.where is None else np.where(normalizer.where, clipped, observations)


def prepare(policy: Policy, observations: NDArray[np.generic]) -> Tensor:
    """Turn raw observations, shape (batch, *observation), into the network's input."""
    prepared = torch.as_tensor(normalize(policy.normalizer, observations))
    return prepared.float() if prepared.dtype == torch.float64 else prepared


Memory = tuple[Tensor, ...]


def act(policy: Policy, observations: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the deterministic actions for a batch of raw observations, a recurrent policy's from an empty memory."""
    return step(policy, observations, empty_memory(policy, len(observations)))[0]


def step(
    policy: Policy, observations: NDArray[np.generic], memory: Memory, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.generic], Memory]:
    """Return the deterministic actions for a batch of raw observations, and the memory after them.

    Args:
        policy: What acts.
        observations: Shape (batch, *observation).
        memory: Of a recurrent policy, from :func:`empty_memory` or the step before; empty for others.
        allowed: Which actions may be taken, shape (batch, choices); None for all.
    """
    with torch.no_grad():
        prepared = prepare(policy, observations)
        if policy.memory:
            output, memory = policy.network.step(prepared, memory)  # type: ignore[operator]
        else:
            output = policy.network(prepared)
        return actions(policy.head, output, allowed), memory


def empty_memory(policy: Policy, batch: int) -> Memory:
    """Return the memory with which an episode begins."""
    return tuple(torch.zeros(shape[0], batch, *shape[1:]) for shape in policy.memory)


def actions(head: Head, output: Tensor, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.generic]:
    """Return the most likely actions, shape (batch, *action), as the environment takes them.

    Of a Bernoulli head ``allowed`` holds two columns an action, for 0 and 1, as sb3-contrib has it.
    """
    batch = (len(output), *head.shape)
    if allowed is not None:
        mask = torch.as_tensor(allowed, dtype=torch.bool).reshape(len(output), -1)
        if head.kind == "bernoulli":
            pairs = mask.reshape(len(output), -1, 2)
            output = output.masked_fill(~pairs[..., 1], -torch.inf).masked_fill(~pairs[..., 0], torch.inf)
        else:
            output = output.masked_fill(~mask, -torch.inf)
    if head.kind in ("categorical", "q_values"):
        best = [part.argmax(dim=1) for part in torch.split(output, list(head.sizes), dim=1)]
        return torch.stack(best, dim=1).numpy().reshape(batch)
    if head.kind == "bernoulli":
        return (output > 0).to(torch.int8).numpy().reshape(batch)
    return executed(head, output).numpy().reshape(batch)


def executed(head: Head, output: Tensor) -> Tensor:
    """Return the continuous action that reaches the environment: squashed and scaled, or clipped to its bounds."""
    low, high = _bounds(head)
    if head.squashed:
        return low + 0.5 * (torch.tanh(output) + 1.0) * (high - low)
    return torch.clamp(output, low, high)


def log_probabilities(head: Head, output: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return log π of each choice, shape (batch, Σ sizes), for discrete heads.

    Args:
        head: A discrete head.
        output: Shape (batch, Σ sizes).
        scale: Spread of the Q-values, from :func:`q_scale`; other heads ignore it.
    """
    if head.kind == "bernoulli":
        return torch.cat([F.logsigmoid(output), F.logsigmoid(-output)], dim=-1)
    if head.kind == "q_values":
        return F.log_softmax(output / (TEMPERATURE * scale), dim=-1)
    return torch.cat([F.log_softmax(part, dim=-1) for part in torch.split(output, list(head.sizes), dim=-1)], dim=-1)


def q_scale(head: Head, output: Tensor) -> float:
    """Return the spread of Q-values that sets the temperature: the mean standard deviation over actions."""
    if head.kind != "q_values" or output.shape[-1] < 2:
        return 1.0
    return max(float(output.std(dim=-1).mean()), 1e-8)


def divergence(head: Head, dense: Tensor, pruned: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return KL(dense ‖ pruned) of the action distributions in each state, in nats, shape (batch,).

    For Q-values the distribution is softmax(Q / temperature) (Rusu 2016). For a Gaussian of equal deviations it is
    ½ Σ ((μ − μ′)/σ)² over the actions that reach the environment, so what is clipped away does not count.
    """
    if head.kind == "gaussian":
        std = torch.ones(1) if head.std is None else torch.as_tensor(head.std, dtype=dense.dtype)
        gap = (executed(head, dense) - executed(head, pruned)) / std.clamp_min(1e-3)
        return 0.5 * gap.square().sum(dim=-1)
    p = log_probabilities(head, dense, scale=scale)
    q = log_probabilities(head, pruned, scale=scale)
    return (p.exp() * (p - q)).sum(dim=-1)


def _bounds(head: Head) -> tuple[Tensor, Tensor]:
    def bound(value: FloatArray | None, default: float) -> Tensor:
        return torch.as_tensor(default if value is None else value.reshape(-1), dtype=torch.float32)

    return bound(head.low, -float("inf")), bound(head.high, float("inf"))
