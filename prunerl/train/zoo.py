"""An untrained Stable-Baselines3 model from hyperparameters as the RL Zoo writes them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from torch import nn

from prunerl import errors
from prunerl.errors import EnvironmentFailure, LoadError

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **{name: ("stable_baselines3", name.upper()) for name in ("ppo", "a2c", "dqn", "sac", "td3", "ddpg")},
    **{name: ("sb3_contrib", name.upper()) for name in ("qrdqn", "tqc", "ars")},
}
_NOT_YET = ("env_wrapper", "vec_env_wrapper", "frame_stack", "callback", "replay_buffer_class", "monitor_kwargs")


def untrained(
    algorithm: str, env: str, *, file: Path | None = None, seed: int = 0, tensorboard_log: str | None = None
) -> tuple[Any, int | None]:
    """Make a model.

    Args:
        algorithm: Name as the RL Zoo has it.
        env: Gymnasium id.
        file: YAML of hyperparameters: of one environment, or by environment, with ``default`` for all others.
        seed: Of the model and its environments.
        tensorboard_log: Where TensorBoard's files go.

    Returns:
        The model, and ``n_timesteps`` where the file has it.

    Raises:
        NameUnknownError: There is no such algorithm.
        LoadError: The file cannot be read, or names what is not supported.
        EnvironmentFailure: The environment cannot be made.
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    if algorithm not in ALGORITHMS:
        raise errors.unknown("algorithm", algorithm, ALGORITHMS)
    package, title = ALGORITHMS[algorithm]
    settings = read(file, env) if file is not None else {}
    steps = settings.pop("n_timesteps", None)
    normalize = settings.pop("normalize", False)
    number, kwargs = int(settings.pop("n_envs", 1)), settings.pop("env_kwargs", None)
    try:
        made: Any = make_vec_env(env, n_envs=number, seed=seed, env_kwargs=kwargs)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise EnvironmentFailure(f"Environment {env!r} cannot be made: {error}. Check its id.") from error
    if normalize:
        options = normalize if isinstance(normalize, dict) else {}
        made = VecNormalize(made, **{"gamma": settings.get("gamma", 0.99), **options})
    kind = getattr(importlib.import_module(package), title)
    arguments = _arguments(settings, made.action_space)
    try:
        policy = arguments.pop("policy", "MlpPolicy")
        return kind(policy, made, seed=seed, tensorboard_log=tensorboard_log, **arguments), (
            int(float(steps)) if steps is not None else None
        )
    except (TypeError, ValueError, AssertionError) as error:
        mend = f"Mend {file}" if file is not None else "Choose another algorithm, or environment"
        raise LoadError(f"{title} on {env} cannot be made: {error}. {mend}.") from error


def read(file: Path, env: str) -> dict[str, Any]:
    """Return the hyperparameters for an environment, texts that stand for values read.

    Raises:
        LoadError: The file is damaged, has none for this environment, or names what is not supported.
    """
    if not file.is_file():
        raise LoadError(f"{file} does not exist, or is no file. Give a YAML file of hyperparameters.")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LoadError(f"{file} cannot be read as YAML ({error}). Mend it.") from error
    if not isinstance(found, dict):
        raise LoadError(f"{file} holds no hyperparameters by name. Write name: value, or an environment's name first.")
    if (
        found
        and not found.keys() & {"policy", "policy_kwargs"}
        and all(isinstance(value, dict) for value in found.values())
    ):
        chosen = found.get(env, found.get("default"))
        if not isinstance(chosen, dict):
            raise LoadError(f"{file} has no hyperparameters for {env!r}. It has: {', '.join(map(str, found))}.")
        found = chosen
    bad = [name for name in _NOT_YET if found.get(name)]
    if bad:
        raise LoadError(f"{file}: {', '.join(bad)} cannot be used here. Remove them, or train from a script.")
    return {str(name): _value(file, str(name), value) for name, value in found.items() if name not in _NOT_YET}


def _arguments(settings: Mapping[str, Any], action_space: Any) -> dict[str, Any]:
    from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

    arguments = dict(settings)
    kind, deviation = arguments.pop("noise_type", None), float(arguments.pop("noise_std", 0.0))
    if kind is not None:
        if kind not in ("normal", "ornstein-uhlenbeck"):
            raise errors.unknown("noise_type", str(kind), ("normal", "ornstein-uhlenbeck"))
        noise = NormalActionNoise if kind == "normal" else OrnsteinUhlenbeckActionNoise
        size = action_space.shape
        arguments["action_noise"] = noise(np.zeros(size), deviation * np.ones(size))
    if isinstance(arguments.get("train_freq"), list):
        arguments["train_freq"] = tuple(arguments["train_freq"])
    return arguments


def _value(file: Path, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith("lin_"):
        from stable_baselines3.common.utils import LinearSchedule

        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    try:
        if name == "normalize" or name.endswith("_kwargs") or (name == "train_freq" and "(" in value):
            return evaluated(ast.parse(value.strip(), mode="eval").body)
        return float(value) if name not in ("policy", "noise_type", "device") and value != "auto" else value
    except (ValueError, SyntaxError) as error:
        if name in ("ent_coef", "target_entropy", "train_freq"):
            return value
        raise LoadError(f"{file}: {name} is {value[:80]!r}, which cannot be read ({error}). Mend it.") from error


def evaluated(node: ast.expr) -> Any:
    """Return what an expression of literals, ``dict(...)`` and ``nn.ReLU`` and the like stands for; no code runs.

    Raises:
        ValueError: It is anything else.

    >>> evaluated(ast.parse("dict(net_arch=[64, 64], activation_fn=nn.Tanh)", mode="eval").body)["net_arch"]
    [64, 64]
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): evaluated(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [evaluated(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): evaluated(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
        found = getattr(nn, node.attr, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    return ast.literal_eval(node)
