"""The parts of Stable-Baselines3's policies that act and that judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from prunerl.agents.sb3_algorithms import ALGORITHMS, critics
from prunerl.agents.sb3_build import Described, build_policy, model_spaces
from prunerl.agents.sb3_env import View, features, normalizer
from prunerl.environments import packed_shape
from prunerl.types import Critic, Head, Policy, State


class _Acting(nn.Module):
    """A part of a policy under the policy's own parameter names: extractor, hidden layers, output."""

    def __init__(self, view: View, parts: dict[str, Any], order: tuple[str, ...]) -> None:
        super().__init__()
        self.view = view
        self.order = order
        for name, part in parts.items():
            _nest(self, name, part)

    def forward(self, observations: Tensor) -> Tensor:
        result = self.view(observations)
        for name in self.order:
            result = self.get_submodule(name)(result)
        output: Tensor = result
        return output


class _Quantiles(_Acting):
    """A quantile network; its output is the mean over the quantiles of each action."""

    shape: tuple[int, int]  # quantiles and actions

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations).view(-1, *self.shape).mean(dim=1)


class _Recurrent(_Acting):
    """A recurrent actor: extractor, LSTM, hidden layers, output."""

    def forward(self, sequences: Tensor) -> Tensor:
        """Map sequences, shape (batch, time, *observation), from an empty memory to (batch, time, outputs)."""
        extracted = self.get_submodule(self.order[0])(self.view(sequences.flatten(0, 1)))
        # The batch is said and the time left open: torch.export would take the time of its example for all.
        hidden, _ = self.get_submodule("lstm_actor")(extracted.unflatten(0, (sequences.shape[0], -1)).transpose(0, 1))
        return self._out(hidden.transpose(0, 1))

    def step(self, observations: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map observations, shape (batch, *observation), and a memory to the output and the next memory."""
        extracted = self.get_submodule(self.order[0])(self.view(observations))
        hidden, following = self.get_submodule("lstm_actor")(extracted.unsqueeze(0), memory)
        return self._out(hidden[0]), tuple(following)

    def _out(self, hidden: Tensor) -> Tensor:
        for name in self.order[2:]:
            hidden = self.get_submodule(name)(hidden)
        return hidden


class _Critic(nn.Module):
    """A chain of parts under the policy's own parameter names, from features to values."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        self.order = tuple(parts)
        for name, part in parts.items():
            _nest(self, name, part)

    def forward(self, inputs: Tensor) -> Tensor:
        for name in self.order:
            inputs = self.get_submodule(name)(inputs)
        return inputs


def _nest(root: nn.Module, name: str, part: nn.Module) -> None:
    """Set ``root.a.b`` for the name ``a.b``, so that parameters get the names that they have in the policy."""
    *path, last = name.split(".")
    for key in path:
        if not hasattr(root, key):
            root.add_module(key, nn.Module())
        root = root.get_submodule(key)
    root.add_module(last, part)


def view_of(agent: Described, policy: Any) -> View:
    """Return how the agent's networks see observations."""
    return View(agent.spaces[0], model_spaces(agent)[0], bool(policy.normalize_images))


def policy_of(agent: Described) -> Policy:
    """Return what is deployed."""
    built = build_policy(agent)
    network = acting(agent, built)
    network.requires_grad_(False).eval()
    observation_space, action_space = agent.spaces
    return Policy(
        network,
        _head(agent.algorithm, action_space, built, agent.state),
        packed_shape(observation_space),
        normalizer(agent.settings.normalization, observation_space),
        memory=_memory(agent),
        masked=agent.algorithm == "ppo_mask",
    )


def acting(agent: Described, policy: Any) -> nn.Module:
    """Return the network that acts, out of a live policy."""
    algorithm, view = ALGORITHMS[agent.algorithm], view_of(agent, policy)
    if algorithm.family in ("actor_critic", "recurrent"):
        recurrent = {"lstm_actor": policy.lstm_actor} if algorithm.family == "recurrent" else {}
        parts = {
            "features_extractor": policy.pi_features_extractor,
            **recurrent,
            "mlp_extractor.policy_net": policy.mlp_extractor.policy_net,
            "action_net": policy.action_net,
        }
        if recurrent:
            return _Recurrent(view, parts, tuple(parts))
    elif algorithm.family == "q_network":
        root = algorithm.actor.removesuffix(".")
        network = getattr(policy, root)
        parts = {f"{root}.features_extractor": network.features_extractor, f"{root}.{root}": getattr(network, root)}
    elif algorithm.family == "stochastic":
        actor = policy.actor
        parts = {f"actor.{part}": getattr(actor, part) for part in ("features_extractor", "latent_pi", "mu")}
    elif algorithm.family == "deterministic":
        # Without the last tanh, which the head says.
        parts = {"actor.features_extractor": policy.actor.features_extractor, "actor.mu": policy.actor.mu[:-1]}
    else:
        net = policy.action_net
        parts = {
            "features_extractor": policy.features_extractor,
            "action_net": net[:-1] if policy.squash_output else net,
        }
    if agent.algorithm != "qrdqn":
        return _Acting(view, parts, tuple(parts))
    quantiles = _Quantiles(view, parts, tuple(parts))
    quantiles.shape = (policy.n_quantiles, int(policy.action_space.n))
    return quantiles


def _memory(agent: Described) -> tuple[tuple[int, ...], ...]:
    if ALGORITHMS[agent.algorithm].family != "recurrent":
        return ()
    lstm = [t for name, t in agent.state.tensors.items() if name.startswith("lstm_actor.weight_hh_l")]
    return ((len(lstm), lstm[0].shape[1]),) * 2


def _head(algorithm: str, space: gym.Space[Any], policy: Any, state: State) -> Head:
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.Discrete):
        kind: Any = "q_values" if ALGORITHMS[algorithm].family == "q_network" else "categorical"
        # Stable-Baselines3 counts from 0, wherever the space starts.
        return Head(kind, sizes=(int(space.n),), shape=shape)
    if isinstance(space, spaces.MultiDiscrete):
        return Head("categorical", sizes=tuple(int(n) for n in space.nvec.reshape(-1)), shape=shape)
    if isinstance(space, spaces.MultiBinary):
        return Head("bernoulli", shape=shape)
    assert isinstance(space, spaces.Box)  # loading lets nothing else in
    log_std = state.tensors.get("log_std")
    std = log_std.exp().numpy() if log_std is not None and log_std.dim() == 1 else None
    return Head("gaussian", low=space.low, high=space.high, std=std, squashed=bool(policy.squash_output), shape=shape)


def critics_of(agent: Described) -> tuple[Critic, ...]:
    """Return the networks that judge; they read features, which are no part of them."""
    family = ALGORITHMS[agent.algorithm].family
    if family in ("q_network", "search"):
        return ()
    policy = build_policy(agent)
    policy.requires_grad_(False)
    view = view_of(agent, policy)
    if family in ("actor_critic", "recurrent"):
        network = _Critic({"mlp_extractor.value_net": policy.mlp_extractor.value_net, "value_net": policy.value_net})
        return (Critic("value", network, _valued(policy, view, recurrent=family == "recurrent"), "value"),)
    actor = acting(agent, policy)
    actions = int(np.prod(agent.spaces[1].shape or (1,)))

    def judged(observations: Tensor) -> Tensor:
        with torch.no_grad():  # a critic takes actions within −1 and 1
            return torch.cat(
                [features(policy.critic.features_extractor, view, observations), actor(observations).tanh()], 1
            )

    return tuple(
        Critic(f"qf{i}", _Critic({f"critic.qf{i}": getattr(policy.critic, f"qf{i}")}), judged, "qf", actions)
        for i in range(critics(agent.state.tensors))
    )


def _valued(policy: Any, view: View, *, recurrent: bool) -> Callable[[Tensor], Tensor]:
    """Return the function from the policy network's inputs to those of the value network's hidden layers."""

    def seen(observations: Tensor) -> Tensor:
        return features(policy.vf_features_extractor, view, observations)

    def remembered(sequences: Tensor) -> Tensor:
        found = seen(sequences.flatten(0, 1))
        memory = policy.lstm_critic or (policy.lstm_actor if policy.shared_lstm else None)
        with torch.no_grad():
            if memory is None:  # a linear layer in its place
                result: Tensor = policy.critic(found)
                return result
            hidden, _ = memory(found.reshape(*sequences.shape[:2], -1).transpose(0, 1))
            return hidden.transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]

    return remembered if recurrent else seen
