"""Take over agents of Stable-Baselines3: from a zip, read as data, or from a live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from torch import Tensor

from prunerl import environments
from prunerl.agents import allocation, sb3_build, sb3_classes, sb3_env, sb3_optimizers, sb3_settings, sb3_zip
from prunerl.agents.sb3 import SB3Agent
from prunerl.agents.sb3_algorithms import ALGORITHMS, algorithm_class, first_layer, last_layer, name_of
from prunerl.agents.sb3_extractors import Narrowed
from prunerl.agents.sb3_settings import Live
from prunerl.errors import LoadError, PruneError, SpaceError
from prunerl.types import EnvSpec, State

_ACTIONS: Mapping[str, tuple[type[gym.Space[Any]], ...]] = {
    "q_network": (spaces.Discrete,),
    "stochastic": (spaces.Box,),
    "deterministic": (spaces.Box,),
    "search": (spaces.Box, spaces.Discrete),
}


def load(
    path: str | Path,
    *,
    env: EnvSpec,
    algorithm: str | None = None,
    vec_normalize: str | Path | None = None,
    trust: bool = False,
) -> SB3Agent:
    """Load a Stable-Baselines3 zip, of today or of the ``gym`` era.

    Args:
        path: The zip.
        env: The environment to act in; gives the spaces, which must fit the zip's tensors.
        algorithm: Its name, one of ``sb3_algorithms.ALGORITHMS``; read off the zip by default.
        vec_normalize: File of ``VecNormalize`` statistics; by default looked for beside the zip.
        trust: Also run the zip's pickles, for schedules and custom arguments that are not plain data.

    Raises:
        LoadError: The file is not such an agent, or sb3-contrib is needed and not installed.
        TrustError: It can only be read by running code from it, and ``trust`` is False.
        SpaceError: The environment's spaces do not fit the agent.
    """
    path = Path(path)
    if algorithm is not None:
        algorithm_class(algorithm.lower())
    contents = sb3_zip.read_zip(path, algorithm.lower() if algorithm else None)
    statistics = Path(vec_normalize) if vec_normalize is not None else find_statistics(path)
    return _agent(contents, env, statistics, lambda: sb3_settings.unpickled(contents) if trust else None)


def _agent(
    contents: sb3_zip.Contents,
    env: EnvSpec,
    statistics: Path | None,
    trusted: Callable[[], Mapping[str, Any] | None],
) -> SB3Agent:
    algorithm_class(contents.algorithm)
    made = environments.make(env)
    pair = (made.observation_space, made.action_space)
    made.close()
    _check_spaces(contents, env, pair)
    try:
        opened = trusted()
        own = sb3_classes.own_class(contents, opened)
        settings, notes = sb3_settings.read(contents, statistics, pair[1], trusted=opened)
        env, normalization = sb3_env.normalized_before(env, settings.normalization, pair[0])
        settings = replace(settings, normalization=normalization)
        if (normalization or {}).get(sb3_env.BEFORE):
            notes = (*notes, "Observations are normalised before they are stacked; an export takes normalised frames.")
        sb3_env.check_statistics(settings.normalization, statistics, pair[0])
        agent = SB3Agent(contents.algorithm, env, pair, settings, State(contents.tensors), notes)
        with allocation.Limit(10**7 + 8 * sum(t.numel() for t in contents.tensors.values())):
            return _with_moments(_canonical(contents, agent, own), contents)
    except PruneError:
        raise
    except Exception as error:  # settings of any kind may stand in a file
        raise LoadError(
            f"{contents.path}: its settings are not those of an agent ({type(error).__name__}: {error}). "
            "Save the agent again."
        ) from error


def from_model(model: BaseAlgorithm, *, env: EnvSpec | None = None) -> SB3Agent:
    """Take over a live model, which is left as it is; tensors and statistics are copied, its replay buffer is not.

    Args:
        model: With ``VecNormalize``, ``VecFrameStack`` or ``VecTransposeImage`` around its environments, or none.
        env: How to make its environment; read off the model by default.

    Raises:
        LoadError: Its algorithm, its policy or a wrapper of its environment is not supported.
    """
    name = name_of(model)
    if name is None:
        raise LoadError(f"A {type(model).__name__} is not one of: {', '.join(a.title for a in ALGORITHMS.values())}.")
    spec = _with_frames(model, _spec(model) if env is None else env)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "agent.zip"
        model.save(file)
        wrapper = model.get_vec_normalize_env()
        statistics = None
        if wrapper is not None:
            statistics = Path(folder) / "statistics.pkl"
            wrapper.save(str(statistics))
        contents = sb3_zip.read_zip(file, name)
        agent = _agent(contents, spec, statistics, lambda: {k: getattr(model, k, None) for k in sb3_settings.PICKLED})
    return replace(agent, settings=replace(agent.settings, live=_live(model)))


def _spec(model: BaseAlgorithm) -> EnvSpec:
    spec = None if model.env is None else model.env.get_attr("spec")[0]
    if spec is None:
        raise LoadError("The model's environment has no id. Give it: prunerl.load(model, env=...).")
    if any(wrapper.name != "Monitor" for wrapper in spec.additional_wrappers):
        raise LoadError("The model's environment has wrappers. Name them: prunerl.load(model, env=EnvSpec(...)).")
    return EnvSpec(spec.id, dict(spec.kwargs))


def _with_frames(model: BaseAlgorithm, spec: EnvSpec) -> EnvSpec:
    """Return the specification with the number of stacked frames, once all wrappers are known ones."""
    frames, env = 1, model.env
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            frames = env.stacked_obs.n_stack
        elif not isinstance(env, _TRANSPARENT):
            raise LoadError(
                f"The model's environments are wrapped in {type(env).__name__}, which is not known. "
                "Save the model, and load it with an environment that does the same: prunerl.load(path, env=...)."
            )
        env = env.venv
    return replace(spec, frame_stack=frames) if spec.frame_stack == 1 else spec


_TRANSPARENT = (VecNormalize, VecTransposeImage, VecMonitor, VecCheckNan)


def _live(model: Any) -> Live:
    generator = getattr(model.action_space, "_np_random", None)
    state = None if generator is None else generator.bit_generator.state
    return Live(getattr(model, "replay_buffer", None), state)


def find_statistics(path: Path) -> Path | None:
    """Return the ``VecNormalize`` file that belongs to a zip: ours, the RL Zoo's, or one beside it."""
    candidates = (
        path.with_name(f"{path.stem}_vecnormalize.pkl"),
        path.with_suffix("") / "vecnormalize.pkl",
        path.with_name("vecnormalize.pkl"),
    )
    return next((c for c in candidates if c.is_file()), None)


def _check_spaces(contents: sb3_zip.Contents, env: EnvSpec, pair: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
    algorithm, tensors = ALGORITHMS[contents.algorithm], contents.tensors
    first, last = (f(contents.algorithm, tensors) for f in (first_layer, last_layer))
    reader, head = tensors.get(f"{first}.weight"), tensors.get(f"{last}.weight")
    if algorithm.family == "recurrent":
        reader = tensors.get("lstm_actor.weight_ih_l0")
    if head is None or reader is None or head.dim() != 2 or reader.dim() != 2:
        raise LoadError(
            f"{contents.path}: no tensors {first}.* of a policy of {algorithm.title}. Save the agent again."
        )
    observation_space, action_space = pair
    plain = not any("features_extractor." in name for name in tensors)
    kinds: Any = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Dict
    if not isinstance(observation_space, kinds):
        raise SpaceError(f"Observations of {env.id!r} are {observation_space}, which no policy takes.")
    wanted, got = spaces.flatdim(observation_space), reader.shape[1]
    if plain and wanted != got:
        stacked = f", or with --frame-stack {got // wanted}" if got % wanted == 0 and env.frame_stack == 1 else ""
        raise SpaceError(
            f"{contents.path} takes {got} inputs, but {env.id!r} observes {wanted}. "
            f"Give the env it was trained in{stacked}."
        )
    outputs = sb3_env.outputs(action_space)
    kinds = _ACTIONS.get(algorithm.family)
    if outputs is None or (kinds is not None and not isinstance(action_space, kinds)):
        raise SpaceError(f"{algorithm.title} cannot act in {env.id!r}: its actions are {action_space}.")
    if contents.algorithm == "qrdqn":
        quantiles = contents.data.get("n_quantiles")
        outputs *= quantiles if isinstance(quantiles, int) else max(head.shape[0] // outputs, 1)
    if outputs != head.shape[0]:
        raise SpaceError(
            f"{contents.path} has {head.shape[0]} outputs, but {env.id!r} takes {action_space}. "
            "Give the env it was trained in."
        )


def _canonical(contents: sb3_zip.Contents, agent: SB3Agent, own: Any) -> SB3Agent:
    """Return the agent with each tensor under its first name only, once all are checked to fit."""
    try:
        policy = sb3_build.build_policy(agent, load=False)
        theirs = None if own is None else sb3_build.build_policy(agent, load=False, cls=own)
    except (ValueError, TypeError, RuntimeError, AssertionError, KeyError) as error:
        raise LoadError(f"{contents.path}: its policy cannot be rebuilt: {error}.") from error
    expected, second = policy.state_dict(), sb3_build.aliases(policy)
    narrowed = sb3_build.extractor_kwargs(agent).get("features_extractor_class") is Narrowed
    if narrowed and not sb3_zip.is_narrowed(contents.data.get("policy_kwargs") or {}):
        own = next(name for name in expected if sb3_build.EXTRACTOR in name)
        raise LoadError(
            f"{contents.path}: tensor {own!r} and others do not have the shapes of their extractor's class."
        )
    wrong = [
        n for n in sorted({*expected, *contents.tensors} - second.keys()) if not _fits(n, expected, contents.tensors)
    ]
    wrong += [
        n for n, f in second.items() if n in contents.tensors and not _same(contents.tensors[n], contents.tensors[f])
    ]
    if wrong:
        raise LoadError(
            f"{contents.path}: tensor {wrong[0]!r} does not fit a policy of {agent.algorithm.upper()} "
            f"({len(wrong)} such). Policies with layers of their own are not supported."
        )
    tensors = {n: contents.tensors[n].clone() for n in expected if n not in second}
    notes: tuple[str, ...] = ()
    if theirs is not None:
        for each in (theirs, policy):
            each.load_state_dict(sb3_build.with_aliases(policy, tensors), strict=False)
        notes = (sb3_classes.check_alike(theirs, policy, contents.path),)
    return replace(agent, state=State(tensors), notes=(*agent.notes, *notes))


def _fits(name: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> bool:
    return name in expected and name in got and expected[name].shape == got[name].shape


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _with_moments(agent: SB3Agent, contents: sb3_zip.Contents) -> SB3Agent:
    """Return the agent with the optimizers' moments by parameter name."""
    moments: dict[str, dict[str, Tensor]] = {}
    policy = sb3_build.build_policy(agent)
    for name, optimizer in sb3_optimizers.optimizers(policy).items():
        names = sb3_optimizers.parameter_names(policy, optimizer)
        found = sb3_optimizers.saved_moments(agent.state.tensors, contents.optimizers.get(name) or {}, names)
        if found is None:
            return replace(agent, notes=(*agent.notes, "The optimizer's state does not fit and starts anew."))
        moments |= found
    return replace(agent, state=replace(agent.state, moments=moments))
