"""``prunerl prune``: prune, show the progress, and print the table and the files written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunerl.commands.source import Source, load
from prunerl.commands.table import aligned

if TYPE_CHECKING:
    from rich.console import Console

    from prunerl.loop import Result


@dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """What ``prunerl prune`` takes."""

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
    min_units: int = 1
    """Units that every hidden layer keeps; for single weights, what every matrix keeps."""
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
    zoo: str | None = None
    """Log folder of the RL Zoo; the agent is written there too, as the next run folder, for rl_zoo3.enjoy."""
    no_compare: bool = False
    """Leave the baselines out (same size from random weights, linear, one-shot magnitude)."""


def run(args: Arguments) -> None:
    """Prune, show the progress, and print the table and the files written."""
    from rich.console import Console

    from prunerl import loop
    from prunerl.load import check_zoo_folder, save_zoo_folder
    from prunerl.progress import progress

    out = Path(args.out) if args.out is not None else _default_out(Path(args.agent))
    finished = (out / "report.json").is_file()
    repair = () if args.repair == "none" else tuple(p.strip().replace("-", "_") for p in args.repair.split(","))
    loaded = load(args)
    if args.zoo is not None:
        check_zoo_folder(loaded)
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
            min_units=args.min_units,
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
    if args.zoo is not None:
        folder = save_zoo_folder(result.agent, args.zoo, source=args.agent)
        print(f"Written to {folder}: the agent, for rl_zoo3.enjoy --algo {result.agent.algorithm} -f {args.zoo}")


def _default_out(agent: Path) -> Path:
    """Name the run after the zip, or after the run that is to be pruned further."""
    return Path("runs") / (f"{agent.resolve().name}-smaller" if agent.is_dir() else agent.stem)


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
    print(aligned(("", ""), files))
