"""The environments that an agent trains in, and their observations as Stable-Baselines3's networks see them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, preprocess_obs
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage
from torch import Tensor

from prunerl import environments
from prunerl.environments import NORMALIZED
from prunerl.errors import SpaceError
from prunerl.types import EnvSpec, Normalizer

BEFORE = "before_stacking"
"""Key that says that the observations are normalised before they are stacked."""
_OPTIONS = ("clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs", "norm_reward", "norm_obs_keys")


def seen_space(space: gym.Space[Any], normalization: Mapping[str, Any] | None = None) -> gym.Space[Any]:
    """Return a model's observation space: images have their channels first, unless they are normalised."""
    if isinstance(space, spaces.Dict):
        keys = (normalization or {}).get("norm_obs_keys") or list(space.spaces)
        parts = {k: seen_space(p, normalization if k in keys else None) for k, p in space.spaces.items()}
        return spaces.Dict(parts)
    if isinstance(space, spaces.Box) and is_image_space(space):
        if normalization is not None and normalization.get("norm_obs", True):
            clip = float(normalization.get("clip_obs", 10.0))
            return spaces.Box(-clip, clip, space.shape, np.float32)
        if not is_image_space_channels_first(space):
            return VecTransposeImage.transpose_space(space)
    return space


@dataclass(frozen=True, eq=False)
class View:
    """From packed observations, shape (batch, *packed), to a features extractor's input: one tensor, or a dict.

    Attributes:
        given: The environment's observation space.
        seen: The model's, from :func:`seen_space`.
        scaled: Images are divided by 255.
    """

    given: gym.Space[Any]
    seen: gym.Space[Any]
    scaled: bool

    def __call__(self, observations: Tensor) -> Any:
        """Take the observations apart, put channels first, and scale or encode them."""
        if not isinstance(self.given, spaces.Dict) or not isinstance(self.seen, spaces.Dict):
            moved = _channels_first(observations, self.given, self.seen)
            return preprocess_obs(moved, self.seen, normalize_images=self.scaled)
        parts, start = {}, 0
        for key, part in self.given.spaces.items():
            shape = environments.packed_shape(part)
            size = int(np.prod(shape))
            entries = observations[:, start : start + size].reshape(-1, *shape)
            parts[key] = _channels_first(entries, part, self.seen.spaces[key])
            start += size
        return preprocess_obs(parts, self.seen, normalize_images=self.scaled)


def _channels_first(observations: Tensor, given: gym.Space[Any], seen: gym.Space[Any]) -> Tensor:
    if given.shape == seen.shape or len(given.shape or ()) != 3:
        return observations
    if seen.shape is not None and seen.shape[0] == 1:
        # As NumPy lays it out for the library: convolutions of the two layouts differ in the last bit.
        return observations.reshape(-1, *seen.shape)
    moved = observations.permute(0, 3, 1, 2)
    alone = not torch.compiler.is_compiling() and len(moved) == 1
    return moved.contiguous() if alone else moved


def normalizer(normalization: Mapping[str, Any] | None, space: gym.Space[Any]) -> Normalizer | None:
    """Return the observation statistics over packed observations."""
    if normalization is None or not normalization.get("norm_obs", True) or normalization.get(BEFORE):
        return None
    clip, epsilon = float(normalization.get("clip_obs", 10.0)), float(normalization.get("epsilon", 1e-8))
    rms = normalization["obs_rms"]
    if not isinstance(space, spaces.Dict):
        return Normalizer(np.asarray(rms["mean"]), np.asarray(rms["var"]), epsilon, clip)
    means, variances, where = [], [], []
    for key, part in space.spaces.items():
        size = int(np.prod(environments.packed_shape(part)))
        known = rms.get(key)
        means.append(np.zeros(size) if known is None else np.ravel(known["mean"]))
        variances.append(np.ones(size) if known is None else np.ravel(known["var"]))
        where.append(np.full(size, known is not None))
    return Normalizer(np.concatenate(means), np.concatenate(variances), epsilon, clip, np.concatenate(where))


def check_statistics(normalization: Mapping[str, Any] | None, path: Path | None, space: gym.Space[Any]) -> None:
    """Check that observation statistics fit the environment.

    Raises:
        SpaceError: They are of observations of another shape.
    """
    rms = (normalization or {}).get("obs_rms") or {}
    parts = space.spaces if isinstance(space, spaces.Dict) else None
    if normalization is None or not normalization.get("norm_obs", True) or normalization.get(BEFORE):
        return
    pairs = [(rms, space)] if parts is None else [(rms[k], parts.get(k)) for k in rms]
    for known, part in pairs:
        got = np.shape(known.get("mean", np.empty(0))) if isinstance(known, Mapping) else None
        wanted = None if part is None else (part.shape or ())
        if got != wanted:
            raise SpaceError(
                f"{path} holds statistics of observations of shape {got}, the environment's have {wanted}. "
                "Give the statistics that were saved with this agent (vec_normalize=...), or move them away. "
                "Statistics of images or dicts that were taken before frames were stacked are not supported."
            )


def normalized_before(
    spec: EnvSpec, normalization: Mapping[str, Any] | None, space: gym.Space[Any]
) -> tuple[EnvSpec, Mapping[str, Any] | None]:
    """Return the environment with the statistics in it, where they are those of one frame of a stack of vectors.

    Args:
        spec: The environment as it was given.
        normalization: Settings and statistics of ``VecNormalize``.
        space: The observations, stacked.
    """
    if normalization is None or not normalization.get("norm_obs", True) or spec.frame_stack == 1:
        return spec, normalization
    rms, shape = normalization["obs_rms"], space.shape or ()
    mean = np.asarray(rms.get("mean", ())) if isinstance(rms, Mapping) else np.empty(0)
    if isinstance(space, spaces.Dict) or len(shape) != 1 or mean.shape != (shape[0] // spec.frame_stack,):
        return spec, normalization
    settings = {
        "mean": mean.tolist(),
        "var": np.asarray(rms["var"]).tolist(),
        "epsilon": float(normalization.get("epsilon", 1e-8)),
        "clip": float(normalization.get("clip_obs", 10.0)),
    }
    wrapped = replace(spec, wrappers=(*without_statistics(spec).wrappers, (NORMALIZED, settings)))
    return wrapped, {**normalization, BEFORE: True}


def without_statistics(spec: EnvSpec) -> EnvSpec:
    """Return the environment without the wrapper of :func:`normalized_before`."""
    return replace(spec, wrappers=tuple(w for w in spec.wrappers if w[0] != NORMALIZED))


def training_env(spec: EnvSpec, n_envs: int, normalization: Mapping[str, Any] | None) -> VecEnv:
    """Make the environments to train in, with their statistics."""
    from stable_baselines3.common.monitor import Monitor

    env: VecEnv = DummyVecEnv([lambda: Monitor(environments.make(spec))] * n_envs)
    if normalization is None:
        return env
    options = {k: normalization[k] for k in _OPTIONS if normalization.get(k) is not None}
    before = bool(normalization.get(BEFORE))
    wrapped = VecNormalize(env, **{**options, "norm_obs": False} if before else options)
    for name in ("ret_rms",) if before else ("obs_rms", "ret_rms"):
        saved = normalization.get(name)
        if saved:
            nested = "mean" not in saved
            setattr(wrapped, name, {k: _rms(v) for k, v in saved.items()} if nested else _rms(saved))
    return wrapped


def statistics(env: VecNormalize) -> dict[str, Any]:
    """Return the statistics of a ``VecNormalize`` as data."""
    found = {}
    for name in ("obs_rms", "ret_rms"):  # rewards alone may be normalised
        rms = getattr(env, name, None)
        if rms is not None:
            found[name] = {k: _numbers(r) for k, r in rms.items()} if isinstance(rms, dict) else _numbers(rms)
    return found


def dump(spec: EnvSpec, n_envs: int, normalization: Mapping[str, Any]) -> bytes:
    """Return the bytes that ``VecNormalize.load`` reads; it goes where it was, around single frames or stacked ones."""
    if normalization.get(BEFORE):
        spec = replace(without_statistics(spec), frame_stack=1)
        normalization = {k: v for k, v in normalization.items() if k != BEFORE}
    env = training_env(spec, n_envs, normalization)
    try:
        return pickle.dumps(env)
    finally:
        env.close()


def _rms(saved: Mapping[str, Any]) -> RunningMeanStd:
    rms = RunningMeanStd(shape=np.shape(saved["mean"]))
    rms.mean, rms.var, rms.count = (saved[k] for k in ("mean", "var", "count"))
    return rms


def _numbers(rms: RunningMeanStd) -> dict[str, Any]:
    return {k: getattr(rms, k) for k in ("mean", "var", "count")}


def outputs(action_space: gym.Space[Any]) -> int | None:
    """Return how many numbers say an action of a space; None for a space that no policy acts in."""
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    if isinstance(action_space, spaces.MultiBinary | spaces.Box):
        return int(np.prod(action_space.shape))
    return None


def features(extractor: Any, view: View, observations: Tensor) -> Tensor:
    """Return what a features extractor makes of packed observations."""
    with torch.no_grad():
        result: Tensor = extractor(view(observations))
        return result
