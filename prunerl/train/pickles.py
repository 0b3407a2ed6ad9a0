"""Pickles that hold environments with their state, and callbacks without their model."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
from gymnasium.utils import EzPickle
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from prunerl.errors import RunError


def pickled(value: Any) -> bytes:
    """Return a pickle.

    Raises:
        RunError: Something in it, such as an environment, cannot be pickled.
    """
    stream = io.BytesIO()
    try:
        _Pickler(stream).dump(value)
    except Exception as error:  # an environment can raise anything
        raise RunError(
            f"A checkpoint cannot hold {type(value).__name__} ({type(error).__name__}: {error}). Environments must be "
            "picklable: use DummyVecEnv, and leave out of them what cannot be, such as windows and open files."
        ) from error
    return stream.getvalue()


def stateless(env: Any) -> Iterator[gym.Env[Any, Any]]:
    """Yield the environments, and wrappers of them, whose pickles do not hold the state of an episode."""
    for one in vars(innermost(env)).get("envs", ()):
        yield from (layer for layer in layers(one) if _forgets(layer) and not _simulates(layer))


def layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Yield an environment's wrappers and itself."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def innermost(env: Any) -> Any:
    """Return what the wrappers of vectorised environments are around."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles ``VecNormalize`` together with what it wraps, environments that leave their state out with it, and
    callbacks without their model.
    """

    def reducer_override(self, obj: Any) -> Any:
        if _forgets(obj) and not isinstance(obj, gym.Wrapper):
            known = vars(obj).items()
            if _simulates(obj):
                kept = {name: value for name, value in known if name != "mujoco_renderer"}
            else:
                kept = {name: value for name, value in known if name in ("_np_random", "_np_random_seed")}
            return _blank, (type(obj),), (obj.__getstate__(), kept), None, None, _remake
        if isinstance(obj, BaseCallback) and type(obj).__getstate__ is object.__getstate__:
            kept = {name: value for name, value in vars(obj).items() if name not in ("model", "locals", "globals")}
            return _blank, (type(obj),), {**kept, "locals": {}, "globals": {}}
        if isinstance(obj, VecNormalize):
            return _normalized, (type(obj), obj.__getstate__(), obj.venv, obj.returns)
        return super().reducer_override(obj)


def _forgets(env: Any) -> bool:
    """Say whether an environment's own pickle is how it was made, and not its state."""
    return isinstance(env, gym.Env) and getattr(type(env), "__getstate__", None) is EzPickle.__getstate__


def _simulates(env: Any) -> bool:
    """Say whether an environment holds a simulation of MuJoCo."""
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(vars(env).get("data"), mujoco.MjData)


def _blank(kind: Any) -> Any:
    return kind.__new__(kind)


def _remake(env: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Make an environment as it was made, and put what was kept into it."""
    arguments, kept = state
    env.__setstate__(arguments)
    vars(env).update(kept)
    renderer = vars(env).get("mujoco_renderer")
    if renderer is not None:
        renderer.model, renderer.data = env.model, env.data


def _normalized(kind: type[VecNormalize], state: dict[str, Any], venv: VecEnv, returns: Any) -> VecNormalize:
    made = kind.__new__(kind)
    made.__setstate__(state)
    made.set_venv(venv)
    made.returns = returns
    return made
