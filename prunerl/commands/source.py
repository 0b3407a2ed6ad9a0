"""The agent that a command is about: the options that name it, and how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prunerl.errors import LoadError

if TYPE_CHECKING:
    from prunerl.types import Agent, EnvSpec


@dataclass(frozen=True, kw_only=True)
class Source:
    """The options of every command that reads an agent."""

    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")]
    """Stable-Baselines3 zip, .keras file, or folder of a finished run or of the RL Zoo."""
    env: str | None = None
    """Gymnasium id of the environment; the folder of a run or of the RL Zoo knows its own."""
    algo: str | None = None
    """Algorithm of the zip, such as ppo or ppo_lstm; read off the file by default."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment as key=value; a value that is not JSON is text."""
    wrapper: tuple[str, ...] = ()
    """Wrappers of the environment as package.module:Class, outermost last."""
    frame_stack: int | None = None
    """Observations that are stacked, as by VecFrameStack; a folder knows its own."""
    head: str | None = None
    """What the output of a .keras file means: probabilities, logits, q_values, mean or squashed_mean."""
    vec_normalize: str | None = None
    """File of VecNormalize statistics; by default looked for beside the zip."""
    trust: bool = False
    """Allow code from the zip's pickles to run."""
    debug: bool = False
    """Show tracebacks of errors, and the warnings of other packages."""


def load(args: Source) -> Agent:
    """Load the agent.

    Raises:
        LoadError: There is none, its environment is not known, or it cannot be read.
    """
    from prunerl.load import load as load_agent

    spec = environment(args)
    if args.vec_normalize is not None and not Path(args.vec_normalize).is_file():
        raise LoadError(f"No file at {args.vec_normalize}. Give the file that VecNormalize.save() wrote.")
    return load_agent(
        args.agent,
        env=spec,
        algorithm=args.algo,
        vec_normalize=args.vec_normalize,
        trust=args.trust,
        head=args.head,
    )


def environment(args: Source) -> EnvSpec | None:
    """Return the environment: of the options, on top of what a run's folder knows; None where a Zoo folder says it."""
    from prunerl.journal import environment_of
    from prunerl.types import EnvSpec

    path = existing(args.agent)
    known = environment_of(path) if path.is_dir() and (args.env is None or args.env == "") else None
    if args.frame_stack is not None and args.frame_stack < 1:
        raise LoadError(f"--frame-stack must be at least 1, got {args.frame_stack}. It is a number of observations.")
    if known is None and not args.env:
        if not path.is_dir():
            raise LoadError(f"{path}: the environment is not known. Give its Gymnasium id with --env.")
        if not (args.env_kwargs or args.wrapper or args.frame_stack):
            return None
    base = known or EnvSpec(args.env or "")  # the RL Zoo's folder says the id
    return replace(
        base,
        kwargs={**base.kwargs, **dict(_pair(entry) for entry in args.env_kwargs)},
        wrappers=tuple((name, {}) for name in args.wrapper) or base.wrappers,
        frame_stack=args.frame_stack or base.frame_stack,
    )


def existing(agent: str) -> Path:
    """Return the path of an agent.

    Raises:
        LoadError: Nothing is there, or the folder of a run that has no agent yet.
    """
    from prunerl.journal import environment_of
    from prunerl.load import SAVED

    path = Path(agent)
    if not path.exists():
        raise LoadError(f"No file at {agent}. Give the path of a Stable-Baselines3 zip or of a run's folder.")
    if path.is_dir() and environment_of(path) is not None and not any((path / name).is_file() for name in SAVED):
        raise LoadError(f"Folder {agent} holds no agent of a finished run. Give a zip, or finish the run first.")
    return path


def _pair(entry: str) -> tuple[str, Any]:
    """Read one argument of the environment.

    >>> _pair("gravity=-5.0"), _pair("render_mode=human")
    (('gravity', -5.0), ('render_mode', 'human'))
    """
    key, equals, value = entry.partition("=")
    if not equals or not key.isidentifier():
        raise LoadError(f"--env-kwargs got {entry!r}. Write key=value, such as gravity=-5.0, and AGENT before it.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
