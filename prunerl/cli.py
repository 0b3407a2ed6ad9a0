"""The command line: prune an agent, evaluate it, inspect it, and print a report again."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prunerl.errors import BudgetError, LoadError, PruneError, RunError
from prunerl.types import Agent, EnvSpec, Verdict

if TYPE_CHECKING:
    from rich.console import Console

    from prunerl.loop import Result

FAILED, INTERRUPTED = 2, 130


@dataclass(frozen=True, kw_only=True)
class _Source:
    agent: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")]
    """Stable-Baselines3 zip, or the folder of a finished run."""
    env: str | None = None
    """Gymnasium id of the environment; the folder of a run knows its own."""
    algo: str | None = None
    """Algorithm of the zip (ppo, a2c or dqn); read off the file by default."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment as key=value; a value that is not JSON is text."""
    wrapper: tuple[str, ...] = ()
    """Wrappers of the environment as package.module:Class, outermost last."""
    head: str | None = None
    """What the output of a .keras file means: probabilities, logits, q_values, mean or squashed_mean."""
    vec_normalize: str | None = None
    """File of VecNormalize statistics; by default looked for beside the zip."""
    trust: bool = False
    """Allow code from the zip's pickles to run."""
    debug: bool = False
    """Show tracebacks of errors, and the warnings of other packages."""


@dataclass(frozen=True, kw_only=True)
class Prune(_Source):
    """Make the smallest agent that is not worse, and prove it on fresh seeds."""

    tolerance: float = 0.05
    """Largest satisfactory loss of return; 1 is the agent's gain over the random policy."""
    sparsity: float | None = None
    """Share of the actor's parameters to remove; the adaptive schedule takes it as a limit."""
    criterion: str | None = None
    """Score that says what goes; a wrong name lists all. By default variance, for single weights magnitude."""
    structure: str = "auto"
    """What is removed: units, weights, layers, or auto for layers and units."""
    schedule: str = "adaptive"
    """How far each round goes: adaptive, one_shot, linear or cubic."""
    rounds: int = 5
    """Rounds of a linear or cubic schedule."""
    rule: str = "sparsity"
    """How such a schedule decides: sparsity keeps the best, probability draws what goes by score."""
    ranking: str = "global"
    """Whether units compete over all layers (global) or within their own (local)."""
    count: str = "parameters"
    """What the sparsity counts: units, parameters or macs."""
    distribution: str | None = None
    """How sparsity spreads over layers: uniform or erk (single weights, counted in units)."""
    scope: str = "policy"
    """What is pruned: the policy that acts, or the whole learner, with its critics and their targets."""
    critic_sparsity: float = 0.5
    """Share of each critic's parameters to remove in the scope learner."""
    repair: str = "least_squares,distill"
    """Stages after the cut, separated by commas: least_squares, distill, finetune; or none."""
    finetune_steps: int = 10_000
    """Environment steps of the agent's own training in the stage finetune."""
    episodes: int | None = None
    """Episodes of selection and of confirmation; by default as many as the returns' spread needs."""
    seed: int = 0
    """Everything random follows from it."""
    out: str | None = None
    """Folder of the run; by default runs/ and the zip's name."""
    no_compare: bool = False
    """Leave the baselines out (same size from random weights, linear, one-shot magnitude)."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Source):
    """Play episodes with an agent, and judge it against another one on the same seeds."""

    against: str | None = None
    """The dense agent: zip or folder of a run. The verdict says whether AGENT is not worse."""
    tolerance: float = 0.05
    """Largest satisfactory loss of return; 1 is the dense agent's gain over the random policy."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = 0
    """Seeds of the episodes follow from it."""


@dataclass(frozen=True, kw_only=True)
class Inspect(_Source):
    """Show an agent's networks, layers and groups, what they cost, and what is not pruned."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print the report of a finished run again."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of the run, or its report.json."""
    debug: bool = False
    """Show tracebacks of errors."""


Command = Prune | Evaluate | Inspect | Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error, 130 after an interruption.

    Args:
        arguments: What follows the program's name; by default those of this process.
    """
    command: Command = tyro.cli(
        Command,
        prog="prunerl",
        description="Make deep reinforcement-learning agents small and fast, with proof that they still work.",
        args=None if arguments is None else list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        with _fewer_warnings(command.debug):
            _run(command)
        sys.stdout.flush()
    except KeyboardInterrupt:
        more = " The same command goes on from the last finished round." if isinstance(command, Prune) else ""
        print(f"prunerl: interrupted.{more}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PruneError as error:
        if command.debug:
            traceback.print_exc()
        print(f"prunerl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    return 0


def _run(command: Command) -> None:
    if isinstance(command, Prune):
        prune(command)
    elif isinstance(command, Evaluate):
        evaluate(command)
    elif isinstance(command, Inspect):
        inspect(command)
    else:
        report(command)


def prune(args: Prune) -> None:
    """Prune, show the progress, and print the table and the files written."""
    from rich.console import Console

    from prunerl import loop
    from prunerl.progress import progress

    out = Path(args.out) if args.out is not None else _default_out(Path(args.agent))
    finished = (out / "report.json").is_file()
    repair = () if args.repair == "none" else tuple(p.strip().replace("-", "_") for p in args.repair.split(","))
    spec = _env(args)
    loaded = _load(args, spec)
    console = Console(highlight=False)
    with progress(console, schedule=args.schedule, rounds=args.rounds, compare=not args.no_compare) as observer:
        result = loop.prune(
            loaded,
            name=args.agent,
            tolerance=args.tolerance,
            sparsity=args.sparsity,
            criterion=args.criterion,
            structure=args.structure,
            schedule=args.schedule,
            rounds=args.rounds,
            rule=args.rule,
            ranking=args.ranking,
            scope=args.scope,
            critic_sparsity=args.critic_sparsity,
            count=args.count,
            distribution=args.distribution,
            repair=tuple(filter(None, repair)),
            finetune_steps=args.finetune_steps,
            episodes=args.episodes,
            seed=args.seed,
            out=out,
            compare=not args.no_compare,
            observer=observer,
        )
    if finished:
        print(f"{out} holds this very run, finished before; this is its report.")
    _print_result(result, console, out)


def evaluate(args: Evaluate) -> None:
    """Print returns, their mean and interval, and the verdict against another agent."""
    from prunerl import stats
    from prunerl.evaluate import compare, seeds
    from prunerl.evaluate import evaluate as play
    from prunerl.load import load
    from prunerl.report.cells import interval, number

    _at_least("episodes", args.episodes, 1)
    _at_least("seed", args.seed, 0)
    stats.check_tolerance(args.tolerance)
    agent = _load(args, _env(args))
    verdict = None
    if args.against is None:
        returns = play(agent, episodes=args.episodes, seed=args.seed).returns
    else:
        dense = load(_existing(args.against), env=agent.env, trust=args.trust)
        verdict = compare(agent, dense, tolerance=args.tolerance, episodes=args.episodes, seed=args.seed)
        returns = verdict.pruned
    first = seeds(args.seed, "confirm", args.episodes)[0]
    shown = " ".join(f"{value:.6g}" for value in returns)
    print(f"{agent.algorithm} on {agent.env.id}, seeds {first} to {first + args.episodes - 1}")
    print(f"returns: {shown}")
    lines = [
        ("mean", number(fmean(returns))),
        ("interquartile mean", number(stats.iqm(returns))),
        ("95 % interval of the mean", interval(*stats.interval(returns))),
        *_against(verdict),
    ]
    print(_aligned(("", ""), lines))


def inspect(args: Inspect) -> None:
    """Print an agent's networks, layers and groups."""
    import numpy as np

    from prunerl import cost, environments, heads
    from prunerl.trace import layer_groups, matrix, unit_groups
    from prunerl.visits import trace_policy

    agent = _load(args, _env(args))
    env = environments.make(agent.env)
    env.observation_space.seed(0)
    space = env.observation_space
    observations = np.stack([environments.pack(space, space.sample()) for _ in range(3)])
    env.close()
    tensors = agent.state.tensors
    prepared = heads.prepare(agent.policy, observations)
    traced = trace_policy(
        agent.policy, prepared.unsqueeze(1).expand(3, 2, *prepared.shape[1:]) if agent.policy.memory else prepared
    )
    own = cost.size(traced, tensors)
    print(f"{agent.algorithm} on {agent.env.id}: {own.parameters:,} parameters act, {own.macs:,} multiply–accumulates")
    networks = [("the policy, which acts", f"{own.parameters:,}"), *_others(agent, traced.parameters)]
    print(_aligned(("network", "parameters"), networks))
    layers = [
        (
            e.name,
            f"{w.shape[1]:,} → {w.shape[0]:,}",
            f"{w.numel() * e.positions:,}",
            ", ".join(e.reads) or "observation",
            ", ".join(e.makes) or ("actions" if e.name == traced.output else "kept whole"),
        )
        for e in traced.layers
        for w in (matrix(e, tensors),)
    ]
    print(_aligned(("layer", "shape", "multiply–accumulates", "reads", "makes"), layers))
    whole = {group.name for group in layer_groups(traced, agent.stacks)}
    groups = [
        (
            g.name,
            f"{g.units:,}",
            "yes" if g.name in whole else "no",
            ", ".join(f"{s.tensor}[{s.dim}]" for s in g.slices),
        )
        for g in unit_groups(traced, tensors)
    ]
    print(_aligned(("group", "units", "layer can go", "a unit owns (tensor[dimension])"), groups))
    kept = list(traced.kept_whole.items())
    print(_aligned(("kept whole", "because"), kept))
    for note in agent.notes:
        print(f"Note: {note}")


def report(args: Report) -> None:
    """Print the report of a finished run."""
    from prunerl.report import from_json, render

    path = Path(args.folder)
    path = path if path.is_file() else path / "report.json"
    if not path.is_file():
        raise RunError(f"No report at {path}. A run writes it at its end; the command that began it goes on with it.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}). Give the report.json of a run.") from error
    print(render(from_json(text)))


@contextmanager
def _fewer_warnings(debug: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not debug:
            for category in (UserWarning, DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        yield


def _default_out(agent: Path) -> Path:
    """Name the run after the zip, or after the run that is to be pruned further."""
    return Path("runs") / (f"{agent.resolve().name}-smaller" if agent.is_dir() else agent.stem)


def _load(args: _Source, spec: EnvSpec | None) -> Agent:
    from prunerl.load import load

    if args.vec_normalize is not None and not Path(args.vec_normalize).is_file():
        raise LoadError(f"No file at {args.vec_normalize}. Give the file that VecNormalize.save() wrote.")
    return load(
        args.agent,
        env=spec,
        algorithm=args.algo,
        vec_normalize=args.vec_normalize,
        trust=args.trust,
        head=args.head,
    )


def _env(args: _Source) -> EnvSpec | None:
    """Return the environment: of the options, on top of what a run's folder knows; None where a Zoo folder says it."""
    path = _existing(args.agent)
    known = _remembered(path) if path.is_dir() and (args.env is None or args.env == "") else None
    if known is None and not args.env:
        if path.is_dir() and not args.env_kwargs and not args.wrapper:
            return None
        raise LoadError(f"{path}: the environment is not known. Give its Gymnasium id with --env.")
    base = known or EnvSpec(str(args.env))
    kwargs = {**base.kwargs, **dict(_pair(entry) for entry in args.env_kwargs)}
    return replace(base, kwargs=kwargs, wrappers=tuple((name, {}) for name in args.wrapper) or base.wrappers)


def _existing(agent: str) -> Path:
    from prunerl.load import SAVED

    path = Path(agent)
    if not path.exists():
        raise LoadError(f"No file at {agent}. Give the path of a Stable-Baselines3 zip or of a run's folder.")
    if path.is_dir() and _remembered(path) is not None and not any((path / name).is_file() for name in SAVED):
        raise LoadError(f"Folder {agent} holds no agent of a finished run. Give a zip, or finish the run first.")
    return path


def _remembered(folder: Path) -> EnvSpec | None:
    from prunerl.journal import SETTINGS
    from prunerl.report import schema

    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        found: EnvSpec = schema.read(EnvSpec, json.loads(path.read_text(encoding="utf-8"))["env"], "env")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}). Give the environment with --env.") from error
    return found


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


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BudgetError(f"{name} must be at least {least}, got {value}.")


def _against(verdict: Verdict | None) -> list[tuple[str, str]]:
    from prunerl.report.cells import interval, number, passes, percent

    if verdict is None:
        return []
    return [
        ("the other's mean", number(fmean(verdict.dense))),
        ("the random policy's mean", number(verdict.random)),
        ("normalised return", number(verdict.normalized)),
        (f"{percent(verdict.confidence)} interval of the difference", interval(*verdict.interval)),
        (f"verdict at tolerance {verdict.tolerance:g}", passes(verdict.satisfied)),
    ]


def _others(agent: Agent, acting: Sequence[str]) -> list[tuple[str, str]]:
    """Return what else the agent holds, by the networks' names, with its number of parameters."""
    sizes: dict[str, int] = {}
    for name, tensor in agent.state.tensors.items():
        if name not in acting:
            network = ".".join(part for part in name.split(".")[:-1] if not part.isdigit()) or name
            sizes[network] = sizes.get(network, 0) + tensor.numel()
    return [(name, f"{size:,}") for name, size in sizes.items()]


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table with plain spaces; a header of empty cells is left out.

    >>> print(_aligned(("name", "size"), [("a", "1")]))
    name  size
    a     1
    """
    lines = [header, *rows] if any(header) else [*rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(text)


def _print_result(result: Result, console: Console, out: Path) -> None:
    from prunerl.report import render

    print(render(result.report, width=console.width if console.is_terminal else 120))
    print(f"Written to {out}:")
    meanings = {
        "agent.zip": "the pruned agent; Stable-Baselines3 loads it",
        "agent.keras": "the pruned policy; Keras loads it",
        "agent_vecnormalize.pkl": "its observation statistics, for VecNormalize.load",
        "report.md": "the report, to be read",
        "report.json": "the report, as data",
        "return.png": "return against size",
        "events": "the same for TensorBoard",
    }
    files = [(f"  {out / name}", meaning) for name, meaning in meanings.items() if (out / name).exists()]
    print(_aligned(("", ""), files))
