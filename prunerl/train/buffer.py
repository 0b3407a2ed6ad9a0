"""A replay buffer that sums rewards over several steps and can forget its oldest transitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from prunerl.errors import LearnError
from prunerl.train.methods.rlx2 import RLx2

OLDEST = 2048
"""Transitions that the distance from the policy is measured on."""


class DynamicReplayBuffer(NStepReplayBuffer):
    """Stable-Baselines3's multi-step buffer, of which only the newest ``held`` transitions are drawn.

    Attributes:
        held: Transitions that count, of each environment.
        checked: Step at which the distance was last measured.
    """

    held: int
    checked: int

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add a transition."""
        super().add(*args, **kwargs)
        self.held = min(self.held + 1, self.buffer_size)

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.held = 0

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draw transitions that count, each as likely."""
        return self._get_samples(
            (self.pos - 1 - np.random.randint(0, self.held, size=batch_size)) % self.buffer_size, env
        )

    def oldest(self, count: int) -> np.ndarray:
        """Return where the oldest transitions that count are, shape (at most ``count``,)."""
        return (self.pos - self.held + np.arange(min(count, self.held))) % self.buffer_size

    def forget(self, count: int) -> None:
        """Let the oldest transitions no longer count."""
        self.held -= count


def install(model: Any) -> None:
    """Put a dynamic buffer, with all that has been collected, in the place of a model's replay buffer.

    Raises:
        LearnError: The model has no replay buffer of arrays, or one that stores observations once only.
    """
    check(model)
    old: Any = model.replay_buffer
    if isinstance(old, DynamicReplayBuffer):
        return
    new = DynamicReplayBuffer.__new__(DynamicReplayBuffer)
    new.__dict__ = {"n_steps": 1, "gamma": model.gamma, **vars(old), "checked": model.num_timesteps}
    new.held = old.size()
    model.replay_buffer = new


def check(model: Any) -> None:
    """Check that a dynamic buffer can take the place of a model's replay buffer.

    Raises:
        LearnError: The model has no replay buffer of arrays, or one that stores observations once only.
    """
    old: Any = getattr(model, "replay_buffer", None)
    if isinstance(old, DynamicReplayBuffer):
        return
    if not isinstance(model, OffPolicyAlgorithm) or type(old) not in (ReplayBuffer, NStepReplayBuffer):
        raise LearnError(
            f"RLx2 needs an off-policy algorithm with a plain replay buffer; {type(model).__name__} has "
            f"{type(old).__name__}. Use SAC, TD3, DDPG, TQC, DQN or QRDQN, or the method RigL."
        )
    if old.optimize_memory_usage:
        raise LearnError("RLx2 sums rewards over steps, which optimize_memory_usage=True rules out. Set it to False.")


def adjust(model: Any, method: RLx2, step: int) -> None:
    """Sum rewards over more steps once the delay is over; now and then look whether the oldest are too old."""
    buffer: DynamicReplayBuffer = model.replay_buffer
    if step >= method.delay:
        buffer.n_steps = max(buffer.n_steps, method.n_steps)
    if method.threshold == 0.0 or step - buffer.checked < method.check_every:
        return
    buffer.checked = step
    if buffer.held * buffer.n_envs > method.least and distance(model, buffer) > method.threshold:
        buffer.forget(buffer.held // 10)


@torch.no_grad()
def distance(model: Any, buffer: DynamicReplayBuffer) -> float:
    """Return half the mean squared difference between the oldest stored actions and the policy's in their states.

    Actions are scaled to [−1, 1]; discrete ones that differ count as 2 apart. Stored actions hold the exploration
    noise; the original stores the mean beside it.
    """
    where = buffer.oldest(OLDEST)
    observations = buffer._normalize_obs(buffer.observations[where, 0], model.get_vec_normalize_env())
    stored = buffer.actions[where, 0]
    training = model.policy.training
    model.policy.set_training_mode(False)
    now = model.policy._predict(model.policy.obs_to_tensor(observations)[0], deterministic=True).cpu().numpy()
    model.policy.set_training_mode(training)
    if isinstance(model.action_space, spaces.Discrete):
        return float(2.0 * (now.reshape(-1) != stored.reshape(-1)).mean())
    return float(((now.reshape(stored.shape) - stored) ** 2).mean() / 2.0)
