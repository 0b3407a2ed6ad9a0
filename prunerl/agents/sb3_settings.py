"""Read what a model is built from, besides its tensors, out of a zip's JSON."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from prunerl.agents import inert, sb3_zip
from prunerl.agents.sb3_algorithms import algorithm_class
from prunerl.errors import TrustError

COUNTERS = (
    "num_timesteps _total_timesteps _num_timesteps_at_start _n_updates _n_calls _episode_num exploration_rate "
    "_current_progress_remaining"
).split()
_SPECIAL = frozenset(
    "self policy env learning_rate clip_range clip_range_vf delta_std train_freq action_noise replay_buffer_class "
    "replay_buffer_kwargs target_entropy tensorboard_log policy_kwargs verbose seed device stats_window_size "
    "_init_setup_model".split()
)
_CLIP_RANGE, _NOISE = 0.2, 0.05


@dataclass(frozen=True, eq=False)
class Live:
    """What a live model has and a zip has not.

    Attributes:
        replay_buffer: The model's own one, not a copy; ``SB3Agent.model()`` hands it on, ``learn`` trains on a copy.
        action_space_random: State of the generator of the action space, which draws the actions of a warm-up.
    """

    replay_buffer: Any = None
    action_space_random: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Settings:
    """What a model is built from, besides its tensors.

    Attributes:
        arguments: Keyword arguments of the algorithm's constructor; a learning rate may be a function.
        policy: Keyword arguments of the policy, without its widths.
        counters: Attributes that training goes on from.
        optimizers: Name, such as ``actor.optimizer``, → options of the optimizer's parameter group.
        normalization: Settings and statistics of ``VecNormalize``, or None.
        n_envs: Number of environments in training.
        entropy: The entropy coefficient of SAC, TQC and CrossQ: ``log_ent_coef`` and its optimizer's state, or
            ``ent_coef_tensor`` where it is fixed.
        live: What was taken over from a live model; zips hold none of it.
    """

    arguments: Mapping[str, Any]
    policy: Mapping[str, Any]
    counters: Mapping[str, Any]
    optimizers: Mapping[str, Mapping[str, Any]]
    normalization: Mapping[str, Any] | None
    n_envs: int
    entropy: Mapping[str, Any] = field(default_factory=dict)
    live: Live = field(default_factory=Live)


def read(
    contents: sb3_zip.Contents, statistics: Path | None, action_space: gym.Space[Any], *, trust: bool
) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings, and notes on what only a pickle knows.

    Raises:
        TrustError: The policy can only be built by running code from the zip, and ``trust`` is False.
    """
    data, notes = contents.data, list[str]()
    plain = {k: v for k, v in data.items() if not (isinstance(v, dict) and sb3_zip.SERIALIZED in v)}
    parameters = inspect.signature(algorithm_class(contents.algorithm).__init__).parameters
    arguments = {k: plain[k] for k in parameters if k in plain and k not in _SPECIAL}
    arguments |= {"seed": None, "verbose": 0}
    trusted = _trusted(contents) if trust else {}
    arguments["learning_rate"] = trusted.get("learning_rate") or _learning_rate(contents, notes)
    if "clip_range" in parameters:
        arguments |= _clip_ranges(data, trusted, notes)
    if "train_freq" in parameters:
        arguments["buffer_size"] = int(arguments.get("buffer_size", 1_000_000))
        arguments["train_freq"] = _train_freq(data, 4 if "exploration_fraction" in parameters else 1, notes)
    if "action_noise" in parameters:
        arguments["action_noise"] = trusted.get("action_noise") or _action_noise(data.get("action_noise"), notes)
    if "target_entropy" in parameters:
        arguments["target_entropy"] = _target_entropy(data.get("target_entropy"), action_space)
    if "delta_std" in parameters:
        arguments["delta_std"] = _delta_std(data.get("delta_std_schedule"), notes)
    policy = (
        sb3_zip.policy_kwargs(contents)
        if not trust
        else {k: v for k, v in (trusted.get("policy_kwargs") or {}).items() if k not in sb3_zip.INFERRED}
    )
    counters = {k: plain[k] for k in COUNTERS if k in plain}
    normalization = None if statistics is None else sb3_zip.vec_normalize(statistics)
    settings = Settings(
        arguments,
        policy,
        counters,
        {name: _options(state) for name, state in contents.optimizers.items()},
        normalization,
        int(plain.get("n_envs") or 1),
        _entropy(contents),
    )
    return settings, tuple(notes)


def _options(state: Any) -> dict[str, Any]:
    options = dict((state or {}).get("param_groups", [{}])[0])
    options.pop("params", None)
    return options


def _entropy(contents: sb3_zip.Contents) -> dict[str, Any]:
    found: dict[str, Any] = {k: contents.variables[k] for k in ENTROPY if k in contents.variables}
    state = (contents.optimizers.get("ent_coef_optimizer") or {}).get("state") or {}
    moments = next(iter(state.values()), None)
    if "log_ent_coef" in found and isinstance(moments, Mapping):
        found["moments"] = {k: v for k, v in moments.items() if isinstance(v, Tensor | int | float)}
    return found


ENTROPY = ("log_ent_coef", "ent_coef_tensor")


def _trusted(contents: sb3_zip.Contents) -> dict[str, Any]:
    """Unpickle what the zip's author said; only with trust."""
    from stable_baselines3.common.save_util import json_to_data

    wanted = ("policy_kwargs", "learning_rate", "clip_range", "action_noise")
    only = {k: contents.data[k] for k in wanted if contents.data.get(k) is not None}
    loaded: dict[str, Any] = json_to_data(json.dumps(only))
    return loaded


def _learning_rate(contents: sb3_zip.Contents, notes: list[str]) -> Any:
    found = sb3_zip.schedule(contents.data.get("learning_rate"))
    if found is None:
        found = sb3_zip.schedule(contents.data.get("lr_schedule"))
    if found:  # some of the RL Zoo's zips say 0 beside the pickled function that was in force
        return found
    groups = next((s.get("param_groups") for s in contents.optimizers.values() if s), None) or [{}]
    rate = float(groups[0].get("lr", 0.0))
    rate = rate if rate > 0 else 3e-4
    notes.append(f"The learning rate is a pickled function; {rate:g} is used if the agent trains on.")
    return rate


def _clip_ranges(data: Mapping[str, Any], trusted: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    found = trusted.get("clip_range") or sb3_zip.schedule(data.get("clip_range"))
    if found is None:
        notes.append(f"The clip range is a pickled function; {_CLIP_RANGE} is used if the agent trains on.")
    return {
        "clip_range": _CLIP_RANGE if found is None else found,
        "clip_range_vf": sb3_zip.schedule(data.get("clip_range_vf")),
    }


def _train_freq(data: Mapping[str, Any], default: int, notes: list[str]) -> Any:
    value, episodes = data.get("train_freq"), data.get("n_episodes_rollout")
    if value == -1 and isinstance(episodes, int) and episodes > 0:  # as it was said before version 1.0
        return episodes, "episode"
    found = sb3_zip.train_frequency(value)
    if found is None:
        steps = "1 step is" if default == 1 else f"{default} steps are"
        notes.append(f"The training frequency is pickled; {steps} used if the agent trains on.")
    return default if found is None else found


def _target_entropy(value: Any, action_space: gym.Space[Any]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:  # a NumPy scalar
        return float(inert.read(base64.b64decode(str(value[sb3_zip.SERIALIZED])), "target_entropy"))
    except (TrustError, LookupError, TypeError, ValueError):
        return -float(np.prod(action_space.shape or ()))


def _delta_std(value: Any, notes: list[str]) -> Any:
    found = sb3_zip.schedule(value)
    if found is None:
        notes.append(f"The width of the search is a pickled function; {_NOISE} is used if the agent trains on.")
    return _NOISE if found is None else found


def _action_noise(value: Any, notes: list[str]) -> Any:
    """Rebuild Gaussian or Ornstein–Uhlenbeck noise from the numbers in its pickle."""
    from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

    if value is None:
        return None
    try:
        fields = inert.read(base64.b64decode(str(value[sb3_zip.SERIALIZED])), "action_noise").fields
        fields = getattr(fields.get("base_noise"), "fields", fields)
        mean, sigma = np.asarray(fields["_mu"], float), np.asarray(fields["_sigma"], float)
        if "_theta" in fields:
            return OrnsteinUhlenbeckActionNoise(mean, sigma, float(fields["_theta"]), float(fields["_dt"]))
        return NormalActionNoise(mean, sigma)
    except (TrustError, AttributeError, LookupError, TypeError, ValueError):
        notes.append("The action noise is pickled; none is used if the agent trains on.")
        return None
