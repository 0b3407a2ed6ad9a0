"""Play episodes, several at once, in worker processes where that helps. Equal seeds give equal episodes."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from prunerl import environments, heads
from prunerl.errors import EnvironmentFailure
from prunerl.types import EnvSpec, Policy

LANES = 16
"""Environments that one process steps side by side; each forward pass takes them all, idle ones included, so that
an episode does not depend on which others are running."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """Episodes that were played to their end.

    Attributes:
        returns: Undiscounted return of each episode, in the order of the seeds.
        steps: Environment steps taken, all episodes together.
        observations: Raw observations, shape (steps, *observation), in the order of the seeds; empty unless recorded.
        lengths: Observations of each episode, in the order of the seeds.
    """

    returns: tuple[float, ...]
    steps: int
    observations: NDArray[Any]
    lengths: tuple[int, ...] = ()


def rollout(
    policy: Policy | None, env: EnvSpec, seeds: Sequence[int], *, record: bool = False, workers: int | None = None
) -> Rollout:
    """Play one episode a seed with deterministic actions, or with random ones when ``policy`` is None.

    Args:
        policy: What acts; None for the uniformly random policy.
        env: Where.
        seeds: Seed of each episode's reset.
        record: Keep the observations.
        workers: Processes; by default one a core. The result does not depend on it.

    Raises:
        EnvironmentFailure: The environment cannot be made, or fails in the middle of an episode.
    """
    count = min(workers or cores(), max(1, len(seeds) // 4))
    job = _Job(policy, _with_registration(env), tuple(seeds), record)
    bounds = [len(job.seeds) * i // count for i in range(count + 1)]
    shards = [replace(job, seeds=job.seeds[first:last]) for first, last in itertools.pairwise(bounds)]
    return _merged(_run(shards, count))


def rollout_each(
    policies: Sequence[Policy], env: EnvSpec, seeds: Sequence[int], *, record: bool = False
) -> list[Rollout]:
    """Play the same seeds with several policies, side by side in the worker processes.

    Raises:
        EnvironmentFailure: As :func:`rollout`.
    """
    jobs = [_Job(policy, _with_registration(env), tuple(seeds), record) for policy in policies]
    return _run(jobs, min(cores(), len(jobs)))


def _run(jobs: Sequence[_Job], workers: int) -> list[Rollout]:
    if workers == 1:
        return [_play(job) for job in jobs]
    try:
        return list(_executor(cores()).map(_play, jobs))
    except EnvironmentFailure:
        raise
    except Exception:  # what cannot be sent to another process is played in this one
        return [_play(job) for job in jobs]


def warm_up() -> None:
    """Start the worker processes in the background, so that they are there when they are needed."""
    if cores() > 1:
        _executor(cores()).submit(_ready)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class _Job:
    policy: Policy | None
    env: tuple[EnvSpec, Any]
    seeds: tuple[int, ...]
    record: bool


_POOL: dict[tuple[str, int], gym.Env[Any, Any]] = {}


def _executor(workers: int) -> Executor:
    from loky import get_reusable_executor

    return get_reusable_executor(max_workers=workers, timeout=600, initializer=_initialize)  # type: ignore[no-any-return]


def _initialize() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process alone answers Ctrl-C
    torch.set_num_threads(1)


def _ready() -> None:
    import stable_baselines3  # noqa: F401  imported here so that the first job finds it


def _with_registration(env: EnvSpec) -> tuple[EnvSpec, Any]:
    """Pair the environment with its registration, which workers lack when the user's script made it."""
    try:
        return env, gym.spec(env.id)
    except gym.error.Error:
        return env, None


def _lane(env: tuple[EnvSpec, Any], index: int) -> gym.Env[Any, Any]:
    spec, registration = env
    if registration is not None:
        gym.registry[spec.id] = registration
    key = (f"{spec} {registration.entry_point if registration else ''}", index)
    if key not in _POOL:
        for stale in [k for k in _POOL if k[0] != key[0]]:
            _POOL.pop(stale).close()
        _POOL[key] = environments.make(spec)
    return _POOL[key]


def _play(job: _Job) -> Rollout:
    """Play a job's episodes on up to LANES environments in this process."""
    seen: list[list[NDArray[Any]]] = [[] for _ in job.seeds]
    try:
        returns, steps = _episodes(job, seen)
    except EnvironmentFailure:
        raise
    except Exception as error:  # a third party's environment can raise anything
        _POOL.clear()
        raise EnvironmentFailure(
            f"Environment {job.env[0].id!r} failed while it was stepped: {type(error).__name__}: {error}. "
            "Nothing was lost; mend the environment and run the same command again."
        ) from error
    if not all(np.isfinite(returns)):
        bad = job.seeds[int(np.flatnonzero(~np.isfinite(returns))[0])]
        raise EnvironmentFailure(
            f"Environment {job.env[0].id!r} gave a reward that is not finite (seed {bad}). Mend it."
        )
    flat = [o for episode in seen for o in episode]
    lengths = tuple(len(episode) for episode in seen)
    return Rollout(tuple(returns), steps, np.stack(flat) if flat else np.empty(0), lengths)


def _episodes(job: _Job, seen: list[list[NDArray[Any]]]) -> tuple[list[float], int]:
    lanes = [_lane(job.env, i) for i in range(min(LANES, len(job.seeds)))]
    waiting = list(enumerate(job.seeds))[::-1]
    returns = [0.0] * len(job.seeds)
    running: dict[int, int] = {}
    batch: NDArray[Any] | None = None
    memory: heads.Memory = () if job.policy is None else heads.empty_memory(job.policy, LANES)
    steps = 0
    while waiting or running:
        for i in (i for i in range(len(lanes)) if i not in running and waiting):
            running[i], seed = waiting.pop()
            observation = _reset(lanes[i], seed)
            batch = np.stack([observation] * LANES) if batch is None else batch
            batch[i] = observation
            for part in memory:
                part[:, i] = 0.0
        assert batch is not None  # at least one lane was reset
        chosen = None
        if job.policy is not None:
            allowed = _allowed(lanes, running) if job.policy.masked else None
            chosen, memory = heads.step(job.policy, batch, memory, allowed)
        for i, episode in list(running.items()):
            if job.record:
                seen[episode].append(batch[i].copy())
            action = _sampled(lanes[i]) if chosen is None else chosen[i]
            observation, reward, terminated, truncated, _ = lanes[i].step(action)
            returns[episode] += float(reward)
            batch[i] = environments.pack(lanes[i].observation_space, observation)
            steps += 1
            if terminated or truncated:
                del running[i]
    return returns, steps


def _reset(env: gym.Env[Any, Any], seed: int) -> NDArray[Any]:
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    # As Stable-Baselines3 does: what the environment says it gives, whatever the type of the first array.
    return environments.pack(env.observation_space, observation)


def _allowed(lanes: Sequence[gym.Env[Any, Any]], running: Mapping[int, int]) -> NDArray[np.bool_]:
    """Return which actions each lane's environment allows; an idle lane allows all."""
    masks = {i: np.ravel(_mask(lanes[i])) for i in running}
    width = len(next(iter(masks.values())))
    return np.stack([masks.get(i, np.ones(width, dtype=bool)) for i in range(LANES)])


def _mask(env: gym.Env[Any, Any]) -> NDArray[np.bool_]:
    return np.asarray(env.get_wrapper_attr("action_masks")(), dtype=bool)


def _sampled(env: gym.Env[Any, Any]) -> Any:
    """Draw an action at random, among those that are allowed where the environment says which."""
    if not env.has_wrapper_attr("action_masks") or not isinstance(env.action_space, gym.spaces.Discrete):
        return env.action_space.sample()
    return env.action_space.sample(mask=_mask(env).astype(np.int8))


def _merged(parts: Sequence[Rollout]) -> Rollout:
    returns = tuple(value for part in parts for value in part.returns)
    lengths = tuple(length for part in parts for length in part.lengths)
    return Rollout(returns, sum(p.steps for p in parts), np.concatenate([p.observations for p in parts]), lengths)
