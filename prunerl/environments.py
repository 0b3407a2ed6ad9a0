"""Make environments from their specification, with errors that say which one failed and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from prunerl.errors import EnvironmentFailure
from prunerl.types import EnvSpec

Env = gym.Env[Any, Any]


def make(spec: EnvSpec) -> Env:
    """Make one environment, wrappers outermost last.

    Raises:
        EnvironmentFailure: The id, a keyword argument or a wrapper is not known.
    """
    try:
        env: Env = gym.make(spec.id, disable_env_checker=True, **spec.kwargs)
    except Exception as error:  # whatever a third party's constructor raises
        raise EnvironmentFailure(
            f"Environment {spec.id!r} with arguments {dict(spec.kwargs)} cannot be made: {_first_line(error)}. "
            "Check the id and --env-kwargs, and that the package that registers it is installed."
        ) from error
    for path, kwargs in spec.wrappers:
        wrapper = _wrapper(path)
        try:
            env = wrapper(env, **kwargs)
        except Exception as error:  # whatever a third party's constructor raises
            raise EnvironmentFailure(
                f"Wrapper {path!r} with arguments {dict(kwargs)} cannot be put around {spec.id!r}: "
                f"{_first_line(error)}. Check its arguments."
            ) from error
    return env


def _wrapper(path: str) -> Callable[..., Env]:
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found: Callable[..., Env] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise EnvironmentFailure(
            f"Wrapper {path!r} cannot be imported: {_first_line(error)}. Give it as package.module:Class."
        ) from error
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
