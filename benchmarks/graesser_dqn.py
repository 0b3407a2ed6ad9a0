"""The DQN of Graesser et al. 2022 for classic control, and how it is evaluated; used by ``graesser.py``.

Reference: Graesser et al. 2022, *The state of sparse training in deep reinforcement learning*, and the settings and
initialisations of its published code, https://github.com/google-research/rigl (``rigl/rl/tfagents``).
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from graesser_update import BATCH, Update, sample
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from prunerl import train

RANDOM_STEPS, EPSILON, DECAY = 1000, 0.01, 1e-6
FIRST_SEED = 1_000_000
"""Evaluation's seeds are from here on; training does not use them."""


class TheirDQN(DQN):
    """Their loss: the mean squared error, and an L2 penalty on the kernels of hidden layers."""

    masked_by: train.Sparse | None = None
    update: Update | None = None

    def train(self, gradient_steps: int, batch_size: int = BATCH) -> None:
        """Update as they do, without a clip of the gradient's norm."""
        self.update = self.update or Update(self.q_net, self.q_net_target, self.gamma, DECAY, self.masked_by)
        for _ in range(gradient_steps):
            self.update(sample(self.replay_buffer, batch_size))
            self.policy.optimizer.step()
        self._n_updates += gradient_steps

    def _sample_action(self, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> tuple[Any, Any]:
        """Draw what Stable-Baselines3 draws, from the same random numbers, without its checks of the observation."""
        if self.num_timesteps < learning_starts or np.random.rand() < self.exploration_rate:
            action = np.array([self.action_space.sample() for _ in range(n_envs)])
        else:
            action = greedy(self.q_net, self._last_obs)
        return action, action


class SparseStart(BaseCallback):
    """Draw the weights of masks that are there from the start by the number of inputs and outputs that they leave.

    Each is from U(±√(3 / n)), n the mean of the inputs that its unit reads and the units that read its input, at
    least 1, as in their code's ``fixed_sparse_init``.
    """

    def __init__(self, own: train.Sparse) -> None:
        super().__init__()
        self.own = own

    def _on_training_start(self) -> None:
        parameters = dict(self.model.policy.named_parameters())
        with torch.no_grad():
            for name, mask in self.own.masks.items():
                parameters[name].copy_((2 * torch.rand(mask.shape) - 1) * limits(mask) * mask)
        self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())

    def _on_step(self) -> bool:
        return True


class Evaluate(BaseCallback):
    """Play greedy episodes now and then; the networks that did best so far are kept until ``keep_until``."""

    def __init__(self, env: str, every: int, episodes: int, keep_until: int = 0) -> None:
        super().__init__()
        self.envs = [make(env) for _ in range(episodes)]
        self.every, self.keep_until, self.returns = every, keep_until, list[float]()
        self.best: tuple[int, nn.Module] | None = None

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            first = FIRST_SEED + len(self.envs) * len(self.returns)
            self.returns.append(float(np.mean(play(self.model.q_net, self.envs, first))))
            if self.num_timesteps <= self.keep_until and self.returns[-1] >= max(self.returns):
                self.best = (self.num_timesteps, copy.deepcopy(self.model.q_net))
        return True


def make(env: str) -> gym.Env[Any, Any]:
    """Return an environment that does not check its use at each step."""
    return gym.make(env, disable_env_checker=True)


def dqn(env: str, widths: list[int], *, rate: float, steps: int, seed: int) -> TheirDQN:
    """Return their agent, initialised as theirs."""
    model = TheirDQN(
        "MlpPolicy", make(env), learning_rate=rate, buffer_size=100_000, learning_starts=RANDOM_STEPS, batch_size=BATCH,
        gamma=0.99, train_freq=1, gradient_steps=1, target_update_interval=100, seed=seed, device="cpu",
        exploration_initial_eps=EPSILON, exploration_final_eps=EPSILON,
        policy_kwargs={"net_arch": widths, "optimizer_kwargs": {"fused": True, "eps": 1e-7}},
    )  # fmt: skip
    initialise(model.q_net)
    model.q_net_target.load_state_dict(model.q_net.state_dict())
    return model


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draw hidden weights from a normal distribution cut at two deviations, of variance 2 / inputs; last ones ±.03."""
    *hidden, last = linear(network)
    for layer in hidden:
        # Cut at two deviations, a normal distribution's deviation is 0.8796 of what it was.
        deviation = (2 / layer.in_features) ** 0.5 / 0.87962566
        nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
        layer.bias.zero_()
    last.weight.uniform_(-0.03, 0.03)
    last.bias.fill_(-0.2)


def limits(mask: Tensor) -> Tensor:
    """Return √(3 / n) of each weight, see :class:`SparseStart`.

    >>> limits(torch.tensor([[True, True], [True, False]])) ** 2
    tensor([[1.5000, 2.0000],
            [2.0000, 3.0000]])
    """
    reads, readers = mask.sum(1, keepdim=True), mask.sum(0, keepdim=True)
    return (3.0 / ((reads + readers) / 2.0).clamp(min=1.0)).sqrt()


def linear(network: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in order."""
    return [m for m in network.modules() if isinstance(m, nn.Linear)]


@torch.no_grad()
def greedy(network: Any, observations: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the action of the highest Q-value of each row."""
    found: NDArray[np.int64] = network.q_net(torch.from_numpy(observations)).argmax(1).numpy()
    return found


def play(network: Any, envs: list[gym.Env[Any, Any]], first: int) -> NDArray[np.float64]:
    """Return the return of one greedy episode in each environment, seeds ``first``, ``first + 1``, …

    All episodes take a step together, so that one forward pass serves them; those that are over leave.
    """
    returns = np.zeros(len(envs))
    rows = [env.reset(seed=first + i)[0] for i, env in enumerate(envs)]
    open_ = list(range(len(envs)))
    while open_:
        actions = greedy(network, np.stack([rows[i] for i in open_]))
        going = []
        for i, action in zip(open_, actions.tolist(), strict=True):
            rows[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += float(reward)
            if not (terminated or truncated):
                going.append(i)
        open_ = going
    return returns
