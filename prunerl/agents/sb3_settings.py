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
PICKLED = (
    "policy_class policy_kwargs learning_rate clip_range clip_range_vf action_noise delta_std_schedule "
    "replay_buffer_class replay_buffer_kwargs"
).split()
"""What a zip pickles where it is not plain, and can be needed."""
ENTROPY = ("log_ent_coef", "ent_coef_tensor")
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
    contents: sb3_zip.Contents,
    statistics: Path | None,
    action_space: gym.Space[Any],
    *,
    trusted: Mapping[str, Any] | None = None,
) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings, and notes on what only a pickle knows.

    Args:
        contents: The zip.
        statistics: File of ``VecNormalize`` statistics.
        action_space: The environment's.
        trusted: What the pickles hold, from :func:`unpickled` or a live model; None where they must not be run.

    Raises:
        TrustError: The policy can only be built by running code from the zip, and ``trusted`` is None.
    """
    plain = {k: v for k, v in contents.data.items() if not (isinstance(v, dict) and sb3_zip.SERIALIZED in v)}
    if trusted is None:
        policy = sb3_zip.policy_kwargs(contents)
    else:
        given = sb3_zip.unwrapped(trusted.get("policy_kwargs") or {}, contents.path)
        policy = {k: v for k, v in given.items() if k not in sb3_zip.INFERRED}
    notes: list[str] = []
    settings = Settings(
        _arguments(contents, plain, action_space, trusted or {}, notes),
        policy,
        {k: plain[k] for k in COUNTERS if k in plain},
        {name: _options(state) for name, state in contents.optimizers.items()},
        None if statistics is None else sb3_zip.vec_normalize(statistics),
        int(plain.get("n_envs") or 1),
        _entropy(contents),
    )
    return settings, tuple(notes)


def unpickled(contents: sb3_zip.Contents) -> dict[str, Any]:
    """Return what the zip's pickles hold, by running them: only where its author is trusted."""
    from stable_baselines3.common.save_util import json_to_data

    only = {k: contents.data[k] for k in PICKLED if contents.data.get(k) is not None}
    loaded: dict[str, Any] = json_to_data(json.dumps(only))
    return loaded


def _arguments(
    contents: sb3_zip.Contents,
    plain: Mapping[str, Any],
    action_space: gym.Space[Any],
    trusted: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    data = contents.data
    parameters = inspect.signature(algorithm_class(contents.algorithm).__init__).parameters
    arguments = {k: plain[k] for k in parameters if k in plain and k not in _SPECIAL}
    arguments |= {"seed": None, "verbose": 0, "learning_rate": _learning_rate(contents, trusted, notes)}
    if "clip_range" in parameters:
        arguments |= _clip_ranges(data, trusted, notes)
    if "train_freq" in parameters:
        arguments["buffer_size"] = int(arguments.get("buffer_size", 1_000_000))
        arguments["train_freq"] = _train_freq(data, 4 if "exploration_fraction" in parameters else 1, notes)
    if "action_noise" in parameters:
        arguments["action_noise"] = trusted.get("action_noise") or _action_noise(data.get("action_noise"), notes)
    if "replay_buffer_class" in parameters:
        arguments |= _replay_buffer(data, trusted, notes)
    if "target_entropy" in parameters:
        arguments["target_entropy"] = _target_entropy(data.get("target_entropy"), action_space)
    if "delta_std" in parameters:
        arguments["delta_std"] = _delta_std(data.get("delta_std_schedule"), trusted, notes)
    return arguments


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


def _learning_rate(contents: sb3_zip.Contents, trusted: Mapping[str, Any], notes: list[str]) -> Any:
    for name in ("learning_rate", "lr_schedule"):
        found = sb3_zip.schedule(contents.data.get(name))
        if found:  # some of the RL Zoo's zips say 0 beside the pickled function that was in force
            return found
    if callable(trusted.get("learning_rate")):
        return trusted["learning_rate"]
    groups = next((s.get("param_groups") for s in contents.optimizers.values() if s), None) or [{}]
    rate = float(groups[0].get("lr", 0.0))
    rate = rate if rate > 0 else 3e-4
    notes.append(f"The learning rate is a pickled function; {rate:g} is used if the agent trains on.")
    return rate


def _clip_ranges(data: Mapping[str, Any], trusted: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    found, value = (
        sb3_zip.schedule(data.get(k)) if sb3_zip.schedule(data.get(k)) is not None else trusted.get(k)
        for k in ("clip_range", "clip_range_vf")
    )
    if found is None:
        notes.append(f"The clip range is a pickled function; {_CLIP_RANGE} is used if the agent trains on.")
    return {"clip_range": _CLIP_RANGE if found is None else found, "clip_range_vf": value}


def _train_freq(data: Mapping[str, Any], default: int, notes: list[str]) -> Any:
    value, episodes = data.get("train_freq"), data.get("n_episodes_rollout")
    if value == -1 and isinstance(episodes, int) and episodes > 0:  # as it was said before version 1.0
        return episodes, "episode"
    found = sb3_zip.train_frequency(value)
    if found is None:
        steps = "1 step is" if default == 1 else f"{default} steps are"
        notes.append(f"The training frequency is pickled; {steps} used if the agent trains on.")
    return default if found is None else found


def _replay_buffer(data: Mapping[str, Any], trusted: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the replay buffer's arguments, and its class where the algorithm does not choose it by itself."""
    from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

    given = data.get("replay_buffer_class")
    module = str(given.get("__module__", "")) if isinstance(given, dict) else ""
    own = trusted.get("replay_buffer_class")
    if module.startswith("stable_baselines3.her.") or own is HerReplayBuffer:
        chosen: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer}
    elif not module or module == "stable_baselines3.common.buffers":
        chosen = {}
    elif own is not None:
        chosen = {"replay_buffer_class": own}
    else:
        notes.append(f"The replay buffer is a class of {module!r}; the usual one is used if the agent trains on.")
        return {}
    kwargs = trusted.get("replay_buffer_kwargs", data.get("replay_buffer_kwargs")) or {}
    if isinstance(kwargs, dict) and sb3_zip.SERIALIZED not in kwargs:
        return {**chosen, "replay_buffer_kwargs": dict(kwargs)}
    notes.append("The replay buffer's arguments are pickled; its defaults are used if the agent trains on.")
    return chosen


def _target_entropy(value: Any, action_space: gym.Space[Any]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:  # a NumPy scalar
        return float(inert.read(base64.b64decode(str(value[sb3_zip.SERIALIZED])), "target_entropy"))
    except (TrustError, LookupError, TypeError, ValueError):
        return -float(np.prod(action_space.shape or ()))


def _delta_std(value: Any, trusted: Mapping[str, Any], notes: list[str]) -> Any:
    found = sb3_zip.schedule(value)
    found = trusted.get("delta_std_schedule") if found is None else found
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
