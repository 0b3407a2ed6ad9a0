"""The algorithms of Stable-Baselines3 and sb3-contrib: their classes, and where their networks keep what."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from prunerl.errors import LoadError

Family = Literal["actor_critic", "recurrent", "q_network", "stochastic", "deterministic", "search"]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        title: Name of its class.
        package: ``stable_baselines3`` or ``sb3_contrib``.
        family: ``actor_critic`` (one optimizer, a value network), ``recurrent`` (the same with LSTMs), ``q_network``,
            ``stochastic`` (a squashed Gaussian and Q critics), ``deterministic`` (a tanh and Q critics) or ``search``.
        actor: Prefix of the network that acts.
    """

    title: str
    package: str
    family: Family
    actor: str = ""


ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": Algorithm("PPO", "stable_baselines3", "actor_critic"),
    "a2c": Algorithm("A2C", "stable_baselines3", "actor_critic"),
    "dqn": Algorithm("DQN", "stable_baselines3", "q_network", "q_net."),
    "sac": Algorithm("SAC", "stable_baselines3", "stochastic", "actor."),
    "td3": Algorithm("TD3", "stable_baselines3", "deterministic", "actor."),
    "ddpg": Algorithm("DDPG", "stable_baselines3", "deterministic", "actor."),
    "trpo": Algorithm("TRPO", "sb3_contrib", "actor_critic"),
    "ars": Algorithm("ARS", "sb3_contrib", "search"),
    "qrdqn": Algorithm("QRDQN", "sb3_contrib", "q_network", "quantile_net."),
    "tqc": Algorithm("TQC", "sb3_contrib", "stochastic", "actor."),
    "crossq": Algorithm("CrossQ", "sb3_contrib", "stochastic", "actor."),
    "ppo_mask": Algorithm("MaskablePPO", "sb3_contrib", "actor_critic"),
    "ppo_lstm": Algorithm("RecurrentPPO", "sb3_contrib", "recurrent"),
}
"""Name → algorithm; the names are those of the RL Zoo."""

TRUNKS: Mapping[Family, tuple[str, ...]] = {
    "actor_critic": ("mlp_extractor.policy_net", "mlp_extractor.value_net"),
    "recurrent": ("mlp_extractor.policy_net", "mlp_extractor.value_net"),
    "q_network": ("q_net.q_net", "q_net_target.q_net", "quantile_net.quantile_net", "quantile_net_target.quantile_net"),
    "stochastic": ("actor.latent_pi",),
    "deterministic": ("actor.mu", "actor_target.mu"),
    "search": ("action_net",),
}


def algorithm_class(name: str) -> Any:
    """Return the class of an algorithm, sb3-contrib's imported only now.

    Raises:
        LoadError: The name is not known, or sb3-contrib is not installed.
    """
    if name not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        raise LoadError(f"Algorithm {name!r} is not supported. Choose from: {known}.")
    algorithm = ALGORITHMS[name]
    try:
        return getattr(importlib.import_module(algorithm.package), algorithm.title)
    except ImportError as error:
        raise LoadError(
            f"{algorithm.title} belongs to sb3-contrib, which is not installed. Install it: pip install sb3-contrib."
        ) from error


def name_of(model: object) -> str | None:
    """Return the name of a live model's algorithm, also of a subclass's; None when it is not known."""
    for parent in type(model).__mro__:
        for name, algorithm in ALGORITHMS.items():
            if parent.__name__ == algorithm.title and parent.__module__.split(".")[0] == algorithm.package:
                return name
    return None


def layers(tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Return the names of the linear layers of a Sequential, in order."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    matches = [m for m in map(pattern.fullmatch, tensors) if m and tensors[m.group(0)].dim() == 2]
    return [m.group(0).removesuffix(".weight") for m in sorted(matches, key=lambda m: int(m.group(1)))]


def widths(tensors: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Return the number of units that each layer of a Sequential makes."""
    return [tensors[f"{layer}.weight"].shape[0] for layer in layers(tensors, prefix)]


def critics(tensors: Mapping[str, Tensor]) -> int:
    """Return how many Q critics there are."""
    return len({name.split(".")[1] for name in tensors if name.startswith("critic.qf")})


def stacks(algorithm: str, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the prefixes of the plain MLPs: linear layers, each followed by its activation."""
    found = [*TRUNKS[ALGORITHMS[algorithm].family]]
    found += [f"{net}.qf{i}" for net in ("critic", "critic_target") for i in range(critics(tensors))]
    # A norm, or an activation with a weight of its own, would be left without its layer.
    between = [n for n, t in tensors.items() if n.endswith(".ra_mean") or (n.endswith(".weight") and t.dim() == 1)]
    mixed = {name.rsplit(".", 2)[0] for name in between}
    return tuple(prefix for prefix in found if layers(tensors, prefix) and prefix not in mixed)


def first_layer(algorithm: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the linear layer that reads the actor's features, or its LSTM's outputs."""
    family = ALGORITHMS[algorithm].family
    trunk = f"{ALGORITHMS[algorithm].actor}{'q_net' if algorithm == 'dqn' else 'quantile_net'}"
    prefix = trunk if family == "q_network" else TRUNKS[family][0]
    found = layers(tensors, prefix)
    if found:
        return found[0]
    if family == "stochastic":
        return "actor.mu.0" if "actor.mu.0.weight" in tensors else "actor.mu"
    return "action_net"


def last_layer(algorithm: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the linear layer that makes the actor's output."""
    family = ALGORITHMS[algorithm].family
    if family == "stochastic":
        return "actor.mu.0" if "actor.mu.0.weight" in tensors else "actor.mu"
    if family in ("actor_critic", "recurrent"):
        return "action_net"
    trunk = {"dqn": "q_net.q_net", "qrdqn": "quantile_net.quantile_net", "ars": "action_net"}.get(algorithm, "actor.mu")
    found = layers(tensors, trunk)
    return found[-1] if found else trunk
