"""Run folders of the RL Zoo, ``<algo>/<env>_<n>/``: find the agent in one, and write one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunerl.agents.sb3 import SB3Agent
from prunerl.agents.sb3_env import BEFORE, without_statistics
from prunerl.agents.zoo_settings import ARGUMENTS, BEST, CONFIG, STATISTICS, Settings, settings, settings_folders
from prunerl.agents.zoo_yaml import dump
from prunerl.errors import RunError
from prunerl.files import new_folder, write_atomically

_MISSING = frozenset({"ppo_mask"})
"""Algorithms that the Zoo does not have."""


def find(folder: Path) -> Path | None:
    """Return the zip in a Zoo run folder: the last one of the training or, if that is not there, the best one."""
    inner = settings_folders(folder)
    names = [path.name for path in inner]
    number = re.fullmatch(r"(.+)_\d+", folder.resolve().name)
    if not inner and number:
        names = [number[1]]
    if len(names) != 1:
        return None
    candidates = (folder / f"{names[0]}.zip", *((folder / BEST,) if inner else ()))
    return next((c for c in candidates if c.is_file()), None)


def save_folder(agent: SB3Agent, root: str | Path, *, source: str | Path | None = None) -> Path:
    """Write an agent as the Zoo's next run folder, ``<root>/<algo>/<env>_<n>/``, whole or not at all.

    ``python -m rl_zoo3.enjoy --algo <algo> --env <env> -f <root>`` plays it.

    Args:
        agent: The agent; the folder is named after the environment that it acts in.
        root: The Zoo's log folder.
        source: The Zoo folder, or the zip in it, that the agent came from. Its hyperparameters and options are kept
            (those of the network say how it was before it was pruned; the Zoo reads the widths off the zip), but
            the environment and the normalisation are the agent's.

    Returns:
        The folder.

    Raises:
        RunError: The Zoo cannot run such an agent, or the folder cannot be written.
    """
    check_runnable(agent)
    name = _name(agent.env.id)
    old = Settings(Path())
    if source is not None:
        path = Path(source)
        old = settings((find(path) or path) if path.is_dir() else path)
    texts = {CONFIG: dump(_config(agent, old.config)), ARGUMENTS: dump(_arguments(agent, old.arguments))}
    parent = Path(root) / agent.algorithm
    try:
        parent.mkdir(parents=True, exist_ok=True)
        target = parent / f"{name}_{_last(parent, name) + 1}"
    except OSError as error:
        raise RunError(f"Cannot write in {str(root)!r}: {error.strerror}. Choose another folder.") from error
    with new_folder(target) as folder:
        agent.save(folder / f"{name}.zip")
        (folder / name).mkdir()
        statistics = folder / f"{name}_vecnormalize.pkl"
        if statistics.is_file():
            os.replace(statistics, folder / name / STATISTICS)
        for file, text in texts.items():
            write_atomically(folder / name / file, text)
    return target


def _name(env: str) -> str:
    """Return an environment's name as the Zoo has it in names of files."""
    name = env.replace("/", "-").rpartition(":")[2]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RunError(f"Environment {env!r} cannot name a folder. Give it a name of letters, digits, dots and dashes.")
    return name


def check_runnable(agent: SB3Agent) -> None:
    """Check that the Zoo can run an agent.

    Raises:
        RunError: It cannot.
    """
    _name(agent.env.id)
    if agent.algorithm in _MISSING:
        raise RunError(
            f"The RL Zoo has no {agent.algorithm}, and its enjoy asks no environment which actions are allowed. "
            "Save the agent with agent.save()."
        )
    normalization = agent.settings.normalization
    after = normalization is not None and normalization.get("norm_obs", True) and not normalization.get(BEFORE)
    if agent.env.frame_stack != 1 and after:
        raise RunError("The RL Zoo normalises before it stacks frames, this agent after. Save it with agent.save().")


def _last(parent: Path, name: str) -> int:
    matches = (re.fullmatch(rf"{re.escape(name)}_(\d+)", path.name) for path in parent.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


def _config(agent: SB3Agent, old: Mapping[str, Any]) -> dict[str, Any]:
    own = ("normalize", "env_wrapper", "vec_env_wrapper", "frame_stack", "env_kwargs")
    result = {key: value for key, value in old.items() if key not in own}
    result.setdefault("policy", "MlpPolicy")
    result.setdefault("n_timesteps", int(agent.settings.counters.get("num_timesteps", 0)))
    normalization, before = agent.settings.normalization, old.get("normalize")
    if normalization is None:
        result["normalize"] = False
    elif before is True or isinstance(before, dict):
        result["normalize"] = before
    else:  # the Zoo evaluates a text as code
        result["normalize"] = {key: bool(normalization.get(key, True)) for key in ("norm_obs", "norm_reward")}
    env = without_statistics(agent.env)
    if env.wrappers:
        named = [(name.replace(":", "."), dict(kwargs)) for name, kwargs in env.wrappers]
        result["env_wrapper"] = [{name: kwargs} if kwargs else name for name, kwargs in named]
    if env.frame_stack != 1:
        result["frame_stack"] = env.frame_stack
    if env.kwargs:
        result["env_kwargs"] = dict(env.kwargs)
    return result


def _arguments(agent: SB3Agent, old: Mapping[str, Any]) -> dict[str, Any]:
    own = {"algo": agent.algorithm, "env": agent.env.id, "env_kwargs": dict(agent.env.kwargs) or None}
    return {**old, **own}
