"""Agents of Stable-Baselines3 and sb3-contrib: loaded as data, rebuilt when they train or are saved."""

from __future__ import annotations

import copy
import io
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from prunerl.agents import resize, sb3_build, sb3_env, sb3_extractors, sb3_optimizers, sb3_policy
from prunerl.agents.sb3_algorithms import stacks
from prunerl.agents.sb3_settings import COUNTERS, Settings
from prunerl.agents.sb3_ties import ties
from prunerl.errors import EnvironmentFailure, RemovalError
from prunerl.types import Critic, EnvSpec, Policy, State, Tie


@dataclass(frozen=True, eq=False)
class SB3Agent:
    """An agent of Stable-Baselines3 or sb3-contrib as data; the live model is built from it when it is needed."""

    algorithm: str
    env: EnvSpec
    spaces: tuple[gym.Space[Any], gym.Space[Any]]
    settings: Settings
    state: State
    notes: tuple[str, ...] = ()

    @cached_property
    def policy(self) -> Policy:
        """What is deployed."""
        return sb3_policy.policy_of(self)

    @property
    def ties(self) -> tuple[Tie, ...]:
        """Target networks follow the online ones, exploration noise the last hidden layer."""
        return ties(self.algorithm, self.state.tensors)

    @cached_property
    def critics(self) -> tuple[Critic, ...]:
        """The value network, or each Q critic."""
        return sb3_policy.critics_of(self)

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` can train it on."""
        return True

    @property
    def suffix(self) -> str:
        """What the name of a saved file ends in."""
        return ".zip"

    @property
    def stacks(self) -> tuple[str, ...]:
        """The MLPs."""
        return stacks(self.algorithm, self.state.tensors)

    def with_state(self, state: State) -> SB3Agent:
        """Return the same agent with other tensors; the layers left are numbered anew.

        Raises:
            RemovalError: Layers of an LSTM have unequal widths, which sb3-contrib cannot build.
        """
        hidden = {
            n: t.shape[1]
            for n, t in state.tensors.items()
            if n.startswith(("lstm_actor.weight_hh", "lstm_critic.weight_hh"))
        }
        if len(set(hidden.values())) > 1:
            raise RemovalError(
                f"sb3-contrib has one width for all LSTM layers, got {hidden}. Keep as many units in each."
            )
        names = _renumbered(list(state.tensors), stacks(self.algorithm, state.tensors))
        renamed = State(
            {names[n]: t for n, t in state.tensors.items()},
            {names[n]: m for n, m in state.moments.items()},
            {names[n]: m for n, m in state.masks.items()},
        )
        return replace(self, state=renamed)

    def simplified(self) -> SB3Agent:
        """Return the agent with the quantiles of each action merged into their mean, which is what it acts by."""
        return _one_quantile(self) if self.algorithm == "qrdqn" else self

    def model(self, env: VecEnv | None = None) -> BaseAlgorithm:
        """Build the live model: weights, moments, entropy coefficient, counters, schedules.

        Where the agent was taken over from a live model, the replay buffer is that model's own one, and the action
        space's random generator stands where it stood. A zip has neither.
        """
        return sb3_build.build_model(self, env)

    def learn(self, steps: int, *, seed: int) -> SB3Agent:
        """Return the agent after ``steps`` more steps of its own algorithm; masks hold after every update.

        Raises:
            EnvironmentFailure: The environment failed while it was being stepped.
        """
        env = sb3_env.training_env(self.env, self.settings.n_envs, self.settings.normalization)
        if isinstance(env, VecNormalize):
            env.training = False  # the agent is judged, and saved, with the statistics that it came with
        live = replace(self.settings.live, replay_buffer=_copied(self.settings.live.replay_buffer))
        own = replace(self, settings=replace(self.settings, live=live))
        try:
            with _own_random_streams():
                model = own.model(env)
                model.set_random_seed(seed)
                _warm_up(model)
                release = _hold(model, self.state.masks)
                model.learn(steps, reset_num_timesteps=False)
                release()
                return _from_model(own, model)
        except Exception as error:  # a third party's environment can raise anything
            raise EnvironmentFailure(
                f"Training in {self.env.id!r} failed: {type(error).__name__}: {error}. Mend the environment."
            ) from error
        finally:
            env.close()

    def save(self, path: str | Path, *, portable: bool = True) -> None:
        """Write a zip that ``PPO.load`` (or another algorithm's) reads, and observation statistics beside it.

        The statistics go to ``<name>_vecnormalize.pkl``, as ``VecNormalize.load`` reads them. Tensors, moments, the
        entropy coefficient and counters are in the zip; a replay buffer and random generators are not.

        Args:
            path: The zip.
            portable: Where a features extractor has other widths than its class gives it, put the class that says so
                into the zip by value: then it loads where this package is not installed, with the same minor version
                of Python. False: the zip names the class, and this package has to be there.
        """
        from prunerl.files import write_atomically

        target = Path(path)
        buffer = io.BytesIO()
        with _by_value(sb3_extractors, resize) if portable else nullcontext():
            self.model().save(buffer)
        if self.settings.normalization is not None:
            statistics = sb3_env.dump(self.env, self.settings.n_envs, self.settings.normalization)
            write_atomically(target.with_name(f"{target.stem}_vecnormalize.pkl"), statistics)
        write_atomically(target, buffer.getvalue())


def _copied(replay_buffer: Any) -> Any:
    """Return a copy whose last episode, which the new environments do not go on with, is over."""
    made = copy.deepcopy(replay_buffer)
    finish = getattr(made, "truncate_last_trajectory", None)
    if finish is not None:
        with warnings.catch_warnings(action="ignore"):
            finish()
    return made


def _warm_up(model: Any) -> None:
    """Let a model with an empty buffer of hindsight play whole episodes first, as at its start: it has no goals yet."""
    buffer = getattr(model, "replay_buffer", None)
    if hasattr(buffer, "truncate_last_trajectory") and buffer.size() == 0:  # type: ignore[union-attr]
        model.learning_starts += model.num_timesteps


def _hold(model: Any, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """Hold masks while a live model trains; returns what ends it."""
    from prunerl.masks import attach

    if not masks:
        return lambda: None
    title = type(model).__name__
    # These two write weights without an optimizer: a line search, and a random one.
    update = {"TRPO": "train", "ARS": "_do_one_update"}.get(title)
    held = None if title == "ARS" else attach(model.policy, masks)
    if update is not None:
        setattr(model, update, _then_masked(model, getattr(model, update), masks))

    def release() -> None:
        if held is not None:
            held.remove()
        if update is not None:
            delattr(model, update)

    return release


def _then_masked(model: Any, update: Callable[..., None], masks: Mapping[str, Tensor]) -> Callable[..., None]:
    def masked(*arguments: Any) -> None:
        update(*arguments)
        for name, parameter in model.policy.named_parameters():
            if name in masks:
                parameter.data.mul_(masks[name])
        if getattr(model, "weights", None) is not None:  # the random search's own copy
            model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()

    return masked


def _one_quantile(agent: SB3Agent) -> SB3Agent:
    """Average the rows of the last layer over the quantiles of each action, in the target network as well."""
    actions = int(agent.spaces[1].n)  # type: ignore[attr-defined]
    tensors = dict(agent.state.tensors)
    for trunk in ("quantile_net.quantile_net.", "quantile_net_target.quantile_net."):
        last = max(int(n.removeprefix(trunk).split(".")[0]) for n in tensors if n.startswith(trunk))
        for name in (n for n in tuple(tensors) if n.startswith(f"{trunk}{last}.")):
            rows = tensors[name].unflatten(0, (-1, actions))  # type: ignore[no-untyped-call]
            tensors[name] = rows.mean(dim=0)
    changed = {n for n, t in tensors.items() if t.shape != agent.state.tensors[n].shape}
    if not changed:
        return agent
    count = agent.state.tensors[next(n for n in changed if n.endswith("bias"))].shape[0] // actions
    note = (
        f"The {count} quantiles of each action are merged into their mean, which acts the same; it trains on with one."
    )
    state = State(
        tensors,
        {n: m for n, m in agent.state.moments.items() if n not in changed},
        {n: m for n, m in agent.state.masks.items() if n not in changed},
    )
    return replace(agent.with_state(state), notes=(*agent.notes, note))


def _renumbered(names: Sequence[str], prefixes: Sequence[str]) -> dict[str, str]:
    result = {n: n for n in names}
    for prefix in prefixes:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(\w+)")
        matches = [m for m in (pattern.fullmatch(n) for n in names) if m]
        order = {old: 2 * new for new, old in enumerate(sorted({int(m.group(1)) for m in matches}))}
        result |= {m.group(0): f"{prefix}.{order[int(m.group(1))]}.{m.group(2)}" for m in matches}
    return result


def _from_model(agent: SB3Agent, model: Any) -> SB3Agent:
    """Return the agent as a live model of it is now."""
    counters = {k: getattr(model, k) for k in COUNTERS if hasattr(model, k)}
    normalization = agent.settings.normalization
    wrapper = model.get_vec_normalize_env()
    if normalization is not None and wrapper is not None:
        normalization = {**normalization, **sb3_env.statistics(wrapper)}
    live = replace(agent.settings.live, action_space_random=None)
    if live.replay_buffer is not None:
        live = replace(live, replay_buffer=model.replay_buffer)
    settings = replace(
        agent.settings,
        counters=counters,
        normalization=normalization,
        entropy=sb3_optimizers.entropy_of(model),
        live=live,
    )
    return replace(agent, settings=settings, state=sb3_build.state_of(model, agent.state.masks))


@contextmanager
def _by_value(*modules: ModuleType) -> Iterator[None]:
    """Let cloudpickle write what these modules define into a pickle, not their names."""
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _own_random_streams() -> Iterator[None]:
    """Put the user's random streams back: Stable-Baselines3 seeds the global ones."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
