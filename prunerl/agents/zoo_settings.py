"""Read what the RL Zoo's folder beside a zip says of the agent in it, as data."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunerl.agents.zoo_yaml import read
from prunerl.errors import LoadError, TrustError
from prunerl.types import EnvSpec

CONFIG, ARGUMENTS, STATISTICS, BEST = "config.yml", "args.yml", "vecnormalize.pkl", "best_model.zip"
_MOVED = {"utils.wrappers.": "rl_zoo3.wrappers.", "gym.wrappers.": "gymnasium.wrappers."}
"""Where wrappers of the ``gym`` era are today."""
_KNOWN = (
    "gymnasium.wrappers.",
    "rl_zoo3.wrappers.",
    "sb3_contrib.common.wrappers.",
    "stable_baselines3.common.atari_wrappers.",
    "stable_baselines3.common.monitor.Monitor",
)


@dataclass(frozen=True)
class Settings:
    """A Zoo folder's files.

    Attributes:
        folder: Where they are, or would be.
        config: ``config.yml``: the hyperparameters of the training.
        arguments: ``args.yml``: the options that it was started with.
    """

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


def settings(path: Path) -> Settings:
    """Read the Zoo's files that belong to a zip; they are empty where there are none.

    Raises:
        LoadError: One is damaged.
    """
    several = path.name == BEST or path.name.startswith("rl_model_")  # these are beside the last one, named after it
    around = settings_folders(path.parent) if several else []
    folder = around[0] if len(around) == 1 else path.with_suffix("")
    return Settings(folder, read(folder / CONFIG), read(folder / ARGUMENTS))


def settings_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that hold a file of the Zoo."""
    try:
        return sorted(p for p in folder.iterdir() if any((p / f).is_file() for f in (CONFIG, ARGUMENTS)))
    except OSError:
        return []


def environment(
    zoo: Settings, env: EnvSpec | None, kwargs: Mapping[str, Any] | None, *, trust: bool = False
) -> EnvSpec:
    """Return the environment of an agent: what was given, on top of what the Zoo says.

    Args:
        zoo: What it says.
        env: What was given; its wrappers and frames replace the Zoo's, its arguments add to them.
        kwargs: More arguments.
        trust: Also take wrappers and environments from any module.

    Raises:
        LoadError: Nobody says which environment it is, or what the Zoo says cannot be used.
        TrustError: The Zoo names a wrapper or an environment from a module that is not known, without ``trust``.
    """
    file = zoo.folder / CONFIG
    if zoo.config.get("vec_env_wrapper"):
        raise LoadError(f"{file}: vec_env_wrapper is not supported. Remove it, or wrap the environment itself.")
    return EnvSpec(
        env.id if env is not None and env.id else _id(zoo, trust),
        {**_kwargs(zoo), **(env.kwargs if env is not None else {}), **(kwargs or {})},
        (env.wrappers if env is not None else ()) or _wrappers(file, zoo.config.get("env_wrapper"), trust),
        env.frame_stack if env is not None and env.frame_stack != 1 else _frames(file, zoo.config.get("frame_stack")),
    )


def statistics(path: Path, zoo: Settings) -> Path | None:
    """Return the file of ``VecNormalize`` in the Zoo's folder.

    Raises:
        LoadError: Observations were normalised, and there is no such file; the agent would act on other inputs.
    """
    found = next((f for f in (zoo.folder / STATISTICS, path.with_name(STATISTICS)) if f.is_file()), None)
    if found is None and _normalizes(zoo.config.get("normalize")):
        raise LoadError(
            f"{zoo.folder / CONFIG}: observations were normalised, but there is no {STATISTICS}. "
            "Give it with --vec-normalize (vec_normalize=...)."
        )
    return found


def _id(zoo: Settings, trust: bool) -> str:
    found, file = zoo.arguments.get("env"), zoo.folder / ARGUMENTS
    if found is None:
        name = re.fullmatch(r"(.+)_\d+", zoo.folder.resolve().parent.name)
        if name is None or name[1] != zoo.folder.name:
            raise LoadError(f"{zoo.folder}: the environment is not known. Give its Gymnasium id (env=..., --env).")
        return name[1]
    if not isinstance(found, str) or not re.fullmatch(r"[\w:./-]+", found):
        raise LoadError(f"{file}: env is not the name of an environment. Mend it, or give --env.")
    if ":" in found and not trust:
        raise TrustError(
            f"{file}: environment {found[:60]!r} imports a module. If you trust the folder's author, allow "
            "that with --trust (trust=True), or give the environment with --env."
        )
    return found


def _kwargs(zoo: Settings) -> dict[str, Any]:
    found, file = zoo.arguments.get("env_kwargs"), ARGUMENTS
    if found is None:
        found, file = zoo.config.get("env_kwargs"), CONFIG
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise LoadError(f"{zoo.folder / file}: env_kwargs are not arguments by name. Mend or remove them.")
    return dict(found)


def _wrappers(file: Path, found: Any, trust: bool) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    wrappers = []
    for entry in found if isinstance(found, list) else [found] if found else []:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
        if not isinstance(name, str) or not name or not isinstance(options, dict | None):
            shown = str(name)[:60] if isinstance(name, str | int | float | None) else f"a {type(name).__name__}"
            raise LoadError(f"{file}: env_wrapper holds {shown!r}. Mend or remove it.")
        for old, new in _MOVED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        if not trust and not name.startswith(_KNOWN):
            raise TrustError(
                f"{file}: env_wrapper {name[:60]!r} is not from a package that is known. If you trust the folder's "
                "author, allow it with --trust (trust=True), or name the wrappers with --wrapper."
            )
        wrappers.append((name, dict(options or {})))
    return tuple(wrappers)


def _frames(file: Path, found: Any) -> int:
    if found is None:
        return 1
    if type(found) is not int or not 0 <= found <= 1000:
        raise LoadError(f"{file}: frame_stack is not a number of frames. Mend or remove it.")
    return max(found, 1)


def _normalizes(found: Any) -> bool:
    """Say whether ``normalize`` of a ``config.yml`` means observations."""
    if isinstance(found, str):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return not re.search(r"norm_obs['\"]?\s*[=:]\s*False", found)
    return bool(found.get("norm_obs", True)) if isinstance(found, dict) else bool(found)
