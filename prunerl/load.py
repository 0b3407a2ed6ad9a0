"""Load a trained agent from a file or take over a live model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunerl.errors import LoadError
from prunerl.types import Agent, EnvSpec

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
            our runs, or a live Stable-Baselines3 model.
        env: Gymnasium id, or a full specification with wrappers. Needed for files.
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
    """
    from prunerl.agents import keras, keras_file, sb3_load

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
    if path.is_dir():
        path = next((path / name for name in SAVED if (path / name).is_file()), path)
    if env is None:
        raise LoadError(f"{path}: the environment is not known. Give its Gymnasium id (env=..., --env).")
    spec = EnvSpec(env) if isinstance(env, str) else env
    if keras_file.recognises(path):
        if algorithm not in (None, "keras") or vec_normalize is not None:
            raise LoadError(f"{path}: a .keras file has no algorithm and no VecNormalize statistics. Leave them out.")
        return keras.load(path, env=replace(spec, kwargs={**spec.kwargs, **(env_kwargs or {})}), head=head)
    if head is not None:
        raise LoadError(f"{path}: head={head!r} is for .keras files; this file says itself what its output means.")
    zoo = zoo_settings(path)
    kwargs = {**zoo.kwargs, **spec.kwargs, **(env_kwargs or {})}
    frames = spec.frame_stack if spec.frame_stack != 1 else zoo.frame_stack
    spec = EnvSpec(spec.id, kwargs, spec.wrappers or zoo.wrappers, frames)
    return sb3_load.load(path, env=spec, algorithm=algorithm, vec_normalize=vec_normalize, trust=trust)


def zoo_settings(path: Path) -> EnvSpec:
    """Read the environment's arguments, wrappers and stacked frames from the RL Zoo's folder beside a zip, if any."""
    config = _yaml(path.with_suffix("") / "config.yml")
    arguments = _yaml(path.with_suffix("") / "args.yml")
    kwargs = arguments.get("env_kwargs") or {}
    found = config.get("env_wrapper") or []
    wrappers = []
    for entry in [found] if isinstance(found, str | dict) else found:
        if not entry or not isinstance(entry, str | dict):
            raise LoadError(f"{path.with_suffix('') / 'config.yml'}: env_wrapper holds {entry!r}. Mend or remove it.")
        name, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        wrappers.append((str(name), dict(options or {})))
    frames = config.get("frame_stack") or 1
    if not isinstance(frames, int):
        raise LoadError(f"{path.with_suffix('') / 'config.yml'}: frame_stack is {frames!r}. Mend or remove it.")
    return EnvSpec("", dict(kwargs) if isinstance(kwargs, dict) else {}, tuple(wrappers), frames)


def _yaml(path: Path) -> dict[str, Any]:
    """Read the Zoo's YAML; of Python objects it may only hold an OrderedDict, which is data."""
    import yaml

    if not path.is_file():
        return {}

    class Loader(yaml.SafeLoader):
        pass

    def ordered(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
        assert isinstance(node, yaml.SequenceNode)
        pairs = loader.construct_sequence(node, deep=True)
        return dict(pairs[0]) if pairs else {}

    Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ordered)
    try:
        result = yaml.load(path.read_text(), Loader)  # a SafeLoader
    except (yaml.YAMLError, AssertionError, TypeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path} is not a Zoo configuration ({first}). Mend or remove it.") from error
    return result if isinstance(result, dict) else {}
