"""Measure how much training time is saved by networks that shrink while they learn.

    python benchmarks/shrink.py > docs/data/shrink.md
    python benchmarks/shrink.py --tasks ppo-cartpole --seeds 10 20

Arms, with equal environment steps:

- ``dense``;
- ``shrink``: as wide as that in the beginning, and cut once by ``prunerl.train.Shrink``;
- ``adaptive``: the same by ``AdaptiveShrink``, down to that width at most; on one task;
- ``narrow``: the final width from the start, with the best of four learning rates, chosen on a seed of its own;
- ``linear``: a policy without hidden layers, critics as narrow;
- ``early``: ``dense``, stopped early and pruned to the final width by least squares.

Each measurement is a process of its own on one core with torch on one thread, and the arms of a seed follow each other.
Seconds are CPU time within ``learn()``, with all that shrinking does and all that PyTorch imports there. Evaluation
episodes begin in the same states for all arms. Finished measurements are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from shrink_arms import TASKS, Result, Task, measure

from prunerl import stats
from prunerl.train.shrink import time_ratio

ARMS = ("dense", "shrink", "adaptive", "narrow", "linear")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
CHOOSING = 100
TOLERANCE = 0.05


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="by default those of the task")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those of the task")
    parser.add_argument("--steps", type=int, help="environment steps, for a quick look; by default those of the task")
    parser.add_argument("--at", type=float, help="share of the steps after which it is cut; by default the task's")
    parser.add_argument("--width", type=int, help="units that are left in each layer; by default the task's")
    parser.add_argument("--out", type=Path, default=Path("runs/shrink.jsonl"), help="file of finished measurements")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(json.loads(given.one))))
        return
    command = " ".join(["python benchmarks/shrink.py", *sys.argv[1:]])
    print(
        f"# What is saved by networks that shrink while they learn\n\n`{command}`, on one core of {platform.machine()}."
    )
    for name in given.tasks:
        arms = {seed: given.arms or default_arms(name) for seed in given.seeds or TASKS[name].seeds}
        rate, tuned = tuning(name, given) if any("narrow" in own for own in arms.values()) else (None, "")
        wanted = [asked(name, arm, seed, given, rate) for seed, own in arms.items() for arm in own]
        [chance] = measured([asked(name, "random", 0, given)], given.out)
        print_task(TASKS[name], measured(wanted, given.out), statistics.fmean(chance["returns"]))
        print(tuned, flush=True)


def default_arms(name: str) -> list[str]:
    """Return all arms; the adaptive one where the task has it."""
    return [arm for arm in ARMS if arm != "adaptive" or TASKS[name].adaptive]


def asked(name: str, arm: str, seed: int, given: argparse.Namespace, rate: float | None = None) -> Result:
    """Return all that identifies a measurement."""
    task = TASKS[name]
    cut = arm in ("shrink", "adaptive")
    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "steps": given.steps or task.steps,
        # The other arms do not depend on it, and are not measured again for another one.
        "at": (given.at or task.at) if cut else None,
        "width": task.width if arm == "dense" else given.width or task.narrow,
        "rate": rate if arm == "narrow" and rate else task.rate,
    }


def measured(wanted: list[Result], out: Path) -> list[Result]:
    """Return measurements, each made in a process of its own if it is not there yet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for ask in wanted:
        if any(r["asked"] == ask for r in known):
            continue
        command = [sys.executable, __file__, "--one", json.dumps(ask)]
        done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
        known.append(json.loads(done.stdout.splitlines()[-1]))
        with out.open("a") as file:
            file.write(json.dumps(known[-1]) + "\n")
    return [next(r for r in known if r["asked"] == ask) for ask in wanted]


def tuning(name: str, given: argparse.Namespace) -> tuple[float, str]:
    """Return the narrow network's best learning rate on the seed for choosing, and what it was chosen from."""
    tried = measured([asked(name, "narrow", CHOOSING, given, rate) for rate in RATES], given.out)
    scores = {r["asked"]["rate"]: (statistics.fmean(r["returns"]), r["training"]) for r in tried}
    listed = "; ".join(f"{rate:g}: {played:.1f} ({trained:.1f})" for rate, (played, trained) in scores.items())
    best = max(scores, key=lambda rate: scores[rate])
    return best, (
        f"\nLearning rate of `narrow`, chosen on seed {CHOOSING} by the return in evaluation, then by that of its "
        f"last 100 training episodes, in brackets: {listed}."
    )


def print_task(task: Task, results: list[Result], chance: float) -> None:
    """Print one task's table."""
    dense = {r["asked"]["seed"]: r for r in results if r["asked"]["arm"] == "dense"}
    steps = results[0]["asked"]["steps"]
    print(f"\n## {task.title}, {task.width}-{task.width}, {steps:,} steps\n")
    print("Seeds " + ", ".join(f"{seed}" for seed in dict.fromkeys(r["asked"]["seed"] for r in results)), end=". ")
    print(f"Random actions: {chance:.1f}. Difference: paired by episode, in shares of dense − random, 95 % interval.\n")
    print("| | width | rate | CPU s | time / dense [least, most] | bound | return of each seed | mean | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    early = [{**r, **r["early"], "asked": {**r["asked"], "arm": "early"}} for r in dense.values() if "early" in r]
    for arm in (*ARMS, "early"):
        own = [r for r in [*results, *early] if r["asked"]["arm"] == arm]
        if own:
            print("| " + " | ".join(cells(task, arm, own, results, chance)) + " |")
    for arm in ("shrink", "adaptive"):
        for r in (r for r in results if r["asked"]["arm"] == arm):
            print_changes(arm, r)


def cells(task: Task, arm: str, own: list[Result], results: list[Result], chance: float) -> tuple[str, ...]:
    """Return one row."""
    dense = {r["asked"]["seed"]: r for r in results if r["asked"]["arm"] == "dense"}
    at, width, seed = (own[0]["asked"][key] for key in ("at", "width", "seed"))
    label = {
        "shrink": f"{task.width} → {width} at {at}",
        "adaptive": f"{task.width} → ≥ {width} from {at}",
        "linear": "none",
        "early": f"{task.width} → {task.narrow} after {task.early:.0%}",
    }.get(arm, f"{width}")
    paired = [(r, dense[r["asked"]["seed"]]) for r in own if r["asked"]["seed"] in dense]
    shares = [r["seconds"] / d["seconds"] for r, d in paired]
    means = [statistics.fmean(r["returns"]) for r in own]
    difference = "—"
    if paired and arm != "dense" and statistics.fmean(v for _, d in paired for v in d["returns"]) > chance:
        there = [[value for pair in paired for value in pair[side]["returns"]] for side in (1, 0)]
        found = stats.verdict(*there, chance, tolerance=TOLERANCE, first_seed=seed)
        low, high = found.interval
        judged = f"not inferior by {TOLERANCE}" if found.satisfied else "not shown"
        difference = f"{found.normalized - 1.0:+.3f} [{low:+.3f}, {high:+.3f}], {judged}"
    return (
        f"`{arm}`",
        label,
        f"{own[0]['asked']['rate']:g}",
        f"{statistics.fmean(r['seconds'] for r in own):.1f}",
        f"{statistics.fmean(shares):.2f} [{min(shares):.2f}, {max(shares):.2f}]" if shares else "—",
        bound(results, at) if arm == "shrink" else "—",
        ", ".join(f"{value:.1f}" for value in means),
        f"{statistics.fmean(means):.1f}",
        difference,
    )


def print_changes(arm: str, result: Result) -> None:
    """Print what was changed when in one run."""
    changes = [
        f"at {step:,} {max(max(layers) for layers in widths.values())} ({seconds:.2f} s, outputs by "
        f"{max(differences.values()):.3f})"
        for step, widths, differences, seconds in result["changes"]
    ]
    print(f"\n`{arm}`, seed {result['asked']['seed']}: " + "; ".join(changes) + ".")


def bound(results: list[Result], at: float) -> str:
    """Return f + (1 − f)·c, the narrow arm's time over the dense one's being c."""
    mean = {
        arm: statistics.fmean(r["seconds"] for r in results if r["asked"]["arm"] == arm)
        for arm in ("dense", "narrow")
        if any(r["asked"]["arm"] == arm for r in results)
    }
    return f"{time_ratio(at, mean['narrow'] / mean['dense']):.2f}" if len(mean) == 2 else "—"


if __name__ == "__main__":
    main()
