"""Load a trained agent from a file or take over a live model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunerl.errors import LoadError, RunError
from prunerl.types import Agent, EnvSpec

if TYPE_CHECKING:
    from prunerl.agents.sb3 import SB3Agent

SAVED = ("agent.zip", "agent.keras")
"""The files, one of which a run's folder holds, that :func:`load` reads without being told what network it is."""


def load(
    source: object,
    *,
    env: str | EnvSpec | None = None,
    algorithm: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    vec_normalize: str | Path | None = None,
    trust: bool = False,
    head: str | None = None,
) -> Agent:
    """Load an agent.

    Args:
        source: Path of a Stable-Baselines3 zip (today's or of the ``gym`` era), a ``.keras`` file, a folder of one of
            our runs or of the RL Zoo (``<algo>/<env>_<n>``), or a live Stable-Baselines3 model.
        env: Gymnasium id, or a full specification with wrappers. Needed for files; the folder of a run or of the Zoo
            says its own.
        algorithm: As the RL Zoo names it, such as ``ppo``, ``sac`` or ``qrdqn``; read off the file by default.
        env_kwargs: Keyword arguments for the environment, on top of those a Zoo folder names.
        vec_normalize: File of ``VecNormalize`` statistics; by default looked for beside the zip.
        trust: Allow code from the zip's pickles to run. Reading weights and plain settings never needs it.
        head: What the output of a ``.keras`` file means: ``probabilities``, ``logits``, ``q_values``, ``mean`` or
            ``squashed_mean``; by default read off its last activation and the action space.

    Returns:
        The agent, as data; nothing is shared with ``source``.

    Raises:
        LoadError: The source is not a supported agent.
        TrustError: It can only be read by running code from it.
        SpaceError: The environment's spaces do not fit.
        RunError: The folder of a run does not say its environment any more.
    """
    from prunerl import journal
    from prunerl.agents import keras, keras_file, sb3_load, zoo, zoo_settings

    if not isinstance(source, str | Path):
        from stable_baselines3.common.base_class import BaseAlgorithm

        if isinstance(source, BaseAlgorithm):
            if algorithm is not None or env_kwargs is not None or vec_normalize is not None or trust:
                raise LoadError("A live model brings its own settings. Give env=... alone, or save it first.")
            return sb3_load.from_model(source, env=EnvSpec(env) if isinstance(env, str) else env)
        raise LoadError(
            f"Cannot load an agent from a {type(source).__name__}. Give a path or a Stable-Baselines3 model."
        )
    path = Path(source)
    spec = EnvSpec(env) if isinstance(env, str) else env
    if path.is_dir():
        spec = journal.environment_of(path) if spec is None else spec
        path = next((path / name for name in SAVED if (path / name).is_file()), None) or zoo.find(path) or path
    if keras_file.recognises(path):
        if spec is None or not spec.id:
            raise LoadError(f"{path}: the environment is not known. Give its Gymnasium id (env=..., --env).")
        if algorithm not in (None, "keras") or vec_normalize is not None:
            raise LoadError(f"{path}: a .keras file has no algorithm and no VecNormalize statistics. Leave them out.")
        return keras.load(path, env=replace(spec, kwargs={**spec.kwargs, **(env_kwargs or {})}), head=head)
    if head is not None:
        raise LoadError(f"{path}: head={head!r} is for .keras files; this file says itself what its output means.")
    folder = zoo_settings.settings(path)
    spec = zoo_settings.environment(folder, spec, env_kwargs, trust=trust)
    if vec_normalize is None and sb3_load.find_statistics(path) is None:
        vec_normalize = zoo_settings.statistics(path, folder)
    return sb3_load.load(path, env=spec, algorithm=algorithm, vec_normalize=vec_normalize, trust=trust)


def save_zoo_folder(agent: Agent, root: str | Path, *, source: str | Path | None = None) -> Path:
    """Write a Stable-Baselines3 agent as the RL Zoo's next run folder, ``<root>/<algo>/<env>_<n>/``.

    ``python -m rl_zoo3.enjoy --algo <algo> --env <env> -f <root>`` plays it, and :func:`load` reads it.

    Args:
        agent: The agent.
        root: The Zoo's log folder; what is in it stays as it is.
        source: The Zoo folder, or the zip in it, that the agent came from; its hyperparameters are kept.

    Returns:
        The folder.

    Raises:
        RunError: The Zoo has no such agents, or the folder cannot be written. Then there is no part of it.
    """
    from prunerl.agents import zoo

    return zoo.save_folder(_for_zoo(agent), root, source=source)


def check_zoo_folder(agent: Agent) -> None:
    """Check that the RL Zoo can run such an agent, before one is made.

    Raises:
        RunError: It cannot.
    """
    from prunerl.agents import zoo

    zoo.check_runnable(_for_zoo(agent))


def _for_zoo(agent: Agent) -> SB3Agent:
    from prunerl.agents.sb3 import SB3Agent

    if not isinstance(agent, SB3Agent):
        raise RunError(f"The RL Zoo has no {type(agent).__name__}. Save it with agent.save().")
    return agent
