"""Small live models of each algorithm, and what their networks compute, for the tests of shrinking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from sb3_contrib import TQC
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from torch import Tensor

WIDE = [24, 20]
OFF: dict[str, Any] = {"learning_starts": 40, "buffer_size": 2000, "batch_size": 32}
ON: dict[str, Any] = {"n_steps": 32}
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ppo": (PPO, "CartPole-v1", {**ON, "batch_size": 32, "n_epochs": 2}),
    "ppo-gsde": (PPO, "Pendulum-v1", {**ON, "batch_size": 32, "n_epochs": 2, "use_sde": True}),
    "a2c": (A2C, "CartPole-v1", ON),
    "dqn": (DQN, "CartPole-v1", {**OFF, "target_update_interval": 30}),
    "sac": (SAC, "Pendulum-v1", OFF),
    "sac-gsde": (SAC, "Pendulum-v1", {**OFF, "use_sde": True}),
    "td3": (TD3, "Pendulum-v1", OFF),
    "tqc": (TQC, "Pendulum-v1", {**OFF, "top_quantiles_to_drop_per_net": 1}),
}
STEPS = 96


def made(name: str, arch: Any = None) -> Any:
    """Return a fresh model."""
    cls, env, options = CASES[name]
    policy = {"net_arch": list(WIDE) if arch is None else arch}
    return cls("MlpPolicy", env, policy_kwargs=policy, seed=0, device="cpu", **options)


def again(name: str, path: Any) -> Any:
    """Load a model by its own library alone."""
    cls, env, _ = CASES[name]
    return cls.load(path, env=gym.make(env))


def observations(model: Any, count: int = 64) -> Tensor:
    """Return arbitrary observations."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *model.observation_space.shape, generator=generator)


def outputs(model: Any) -> dict[str, Tensor]:
    """Return what each network of a model computes, targets included, by the policy's own methods."""
    policy, seen = model.policy, observations(model)
    policy.set_training_mode(False)
    with torch.no_grad():
        if hasattr(policy, "value_net"):
            latent = policy.mlp_extractor.forward_actor(seen)
            return {"pi": policy.action_net(latent), "vf": policy.predict_values(seen)}
        if hasattr(policy, "q_net"):
            return {"q": policy.q_net(seen), "q_target": policy.q_net_target(seen)}
        actions = torch.linspace(-1.0, 1.0, len(seen)).unsqueeze(1)
        found = {}
        for side in ("critic", "critic_target"):
            values = getattr(policy, side)(seen, actions)
            for i, value in enumerate(values if isinstance(values, tuple) else values.unbind(1)):
                found[f"{side}_{i}"] = value
        actor = policy.actor
        if hasattr(actor, "latent_pi"):
            mean, log_std, _ = actor.get_action_dist_params(seen)
            return {**found, "mean": mean, "log_std": log_std if log_std.shape == mean.shape else mean}
        return {**found, "pi": actor(seen), "pi_target": policy.actor_target(seen)}


def optimized(model: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers of the policy's parts."""
    parts: Callable[[Any], list[Any]] = lambda part: [v for v in vars(part).values()]  # noqa: E731
    return [v for part in model.policy.modules() for v in parts(part) if isinstance(v, torch.optim.Optimizer)]
