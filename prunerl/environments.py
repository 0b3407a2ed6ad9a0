"""Make environments from their specification, with errors that say which one failed and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prunerl.errors import EnvironmentFailure
from prunerl.types import EnvSpec

Env = gym.Env[Any, Any]
NORMALIZED = "prunerl.environments:Normalized"
"""Name of :class:`Normalized` among the wrappers of a specification."""


def pack(space: gym.Space[Any], observation: Any) -> NDArray[Any]:
    """Return an observation as one array: as it is, or a dict's parts one after another as one float32 vector.

    The parts come in the order of ``space.spaces``, each flattened in C order, numbers as they are: an image keeps its
    0 to 255 and a Discrete its index.

    >>> pack(gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(0, 1, (2,))), {"b": [0.5, 1.0], "a": 2})
    array([2. , 0.5, 1. ], dtype=float32)
    """
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([np.ravel(pack(part, observation[key])) for key, part in space.spaces.items()]).astype(
            np.float32
        )
    return np.asarray(observation, dtype=space.dtype)


def packed_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return the shape of a packed observation."""
    if isinstance(space, gym.spaces.Dict):
        return (sum(int(np.prod(packed_shape(part))) for part in space.spaces.values()),)
    return tuple(space.shape or ())


class FrameStack(gym.Wrapper[Any, Any, Any, Any]):
    """Stack the last observations as Stable-Baselines3's ``VecFrameStack`` does, for one environment.

    At a reset the older ones are zero. Images are stacked along their channels, whichever dimension those are, other
    observations along the last dimension.
    """

    def __init__(self, env: Env, frames: int) -> None:
        from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

        super().__init__(env)
        space: Any = env.observation_space
        self.frames: Any = StackedObservations(1, frames, space)
        self.observation_space = self.frames.stacked_observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and fill up with zeros."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _unbatched(self.frames.reset(_batched(observation))), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and let the oldest observation go."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        stacked, _ = self.frames.update(_batched(observation), np.array([False]), [{}])
        return _unbatched(stacked), reward, terminated, truncated, info


class Normalized(gym.ObservationWrapper[Any, Any, Any]):
    """Normalise observations by statistics that stay as they are, bit for bit as Stable-Baselines3's ``VecNormalize``.

    For agents whose observations are normalised before frames are stacked: there the frames that fill up a stack are
    zero after the normalisation, which no statistics of stacked observations can say.
    """

    def __init__(self, env: Env, mean: Any, var: Any, epsilon: float = 1e-8, clip: float = 10.0) -> None:
        super().__init__(env)
        self.mean, self.var, self.epsilon, self.clip = np.asarray(mean), np.asarray(var), epsilon, clip

    def observation(self, observation: Any) -> NDArray[np.float32]:
        """Return ``clip((observation − mean) / sqrt(var + epsilon), ±clip)``."""
        moved = (observation - self.mean) / np.sqrt(self.var + self.epsilon)
        result: NDArray[np.float32] = np.clip(moved, -self.clip, self.clip).astype(np.float32)
        return result


def _batched(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(part)[None] for key, part in observation.items()}
    return np.asarray(observation)[None]


def _unbatched(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: part[0].copy() for key, part in observation.items()}
    return observation[0].copy()


def described(spec: EnvSpec) -> tuple[str, ...]:
    """Say in sentences what lies between an environment and the observations that an agent is given.

    >>> described(EnvSpec("CartPole-v1", frame_stack=3))
    ('An observation is 3 frames, the newest last; at the start those that are missing are 0.',)
    """
    result = []
    for name, settings in spec.wrappers:
        if name == NORMALIZED:
            epsilon, clip = settings["epsilon"], settings["clip"]
            formula = f"clip((frame - mean) / sqrt(variance + {epsilon:g}), -{clip:g}, {clip:g})"
            result.append(f"Each frame is normalised first, {formula}, by the statistics of the agent's VecNormalize.")
        else:
            result.append(f"Observations are as the wrapper {name} gives them.")
    if spec.frame_stack != 1:
        result.append(
            f"An observation is {spec.frame_stack} frames, the newest last; at the start those that are missing are 0."
        )
    return tuple(result)


def make(spec: EnvSpec) -> Env:
    """Make one environment, wrappers outermost last, frames stacked around them.

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
    return env if spec.frame_stack == 1 else FrameStack(env, spec.frame_stack)


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
