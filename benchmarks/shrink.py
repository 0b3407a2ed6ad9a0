"""Measure how much training time is saved by networks that shrink while they learn.

    python benchmarks/shrink.py > docs/data/shrink.md
    python benchmarks/shrink.py --tasks ppo-cartpole --seeds 2

Arms, with equal environment steps: ``dense``; ``shrink``, which starts as wide as that and is cut once by
``prunerl.train.Shrink``; ``narrow``, which has the final width from the start. Each measurement is a process of its own
on one core with torch on one thread, and the arms of a seed follow each other. Seconds are CPU time within ``learn()``,
all that shrinking does included. What is not: imports, to which belongs that of ``torch.export`` (1 to 3 s once a
process, given in the data as ``imports``). Returns are means over 20 evaluation episodes, the same for all arms.

The bound is f + (1 − f)·c: f is the share of the steps at full width, c the narrow arm's time over the
dense one's.

PPO and SAC have the settings of the RL Zoo, but for the width; DQN those of Graesser et al. 2022, but for the loss
(Huber's) and without their L2 penalty. Finished measurements are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EPISODES = 20
ARMS = ("dense", "shrink", "narrow")
Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One training: what, where, how long, how wide, and when it is cut."""

    title: str
    algorithm: str
    env: str
    steps: int
    width: int
    narrow: int
    at: float
    settings: Mapping[str, Any]
    envs: int = 1


TASKS = {
    "ppo-cartpole": Task(
        "PPO CartPole-v1",
        "PPO",
        "CartPole-v1",
        100_000,
        256,
        64,
        0.1,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": lambda left: 0.001 * left,
            "clip_range": lambda left: 0.2 * left,
        },
        envs=8,
    ),
    "sac-pendulum": Task("SAC Pendulum-v1", "SAC", "Pendulum-v1", 20_000, 256, 64, 0.2, {"learning_rate": 1e-3}),
    "dqn-acrobot": Task(
        "DQN Acrobot-v1",
        "DQN",
        "Acrobot-v1",
        100_000,
        512,
        64,
        0.2,
        {
            "learning_rate": 1e-3,
            "gamma": 0.99,
            "batch_size": 128,
            "buffer_size": 100_000,
            "learning_starts": 1000,
            "train_freq": 1,
            "target_update_interval": 100,
            "exploration_initial_eps": 0.01,
            "exploration_final_eps": 0.01,
        },
    ),
}


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, help="environment steps, for a quick look; by default those of the task")
    parser.add_argument("--at", type=float, help="share of the steps after which it is cut; by default the task's")
    parser.add_argument("--width", type=int, help="units that are left in each layer; by default the task's")
    parser.add_argument("--out", type=Path, default=Path("runs/shrink.jsonl"), help="file of finished measurements")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(json.loads(given.one))))
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for name in given.tasks:
        wanted = [of_task(name, arm, seed, given) for seed in range(given.seeds) for arm in given.arms]
        for asked in wanted:
            if not any(r["asked"] == asked for r in results):
                results.append(run(asked))
                with given.out.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
        print_task(TASKS[name], [r for r in results if r["asked"] in wanted])
    print(f"\n{platform.processor() or platform.machine()}, one core; `python benchmarks/shrink.py`")


def of_task(name: str, arm: str, seed: int, given: argparse.Namespace) -> Result:
    """Return all that identifies a measurement."""
    task = TASKS[name]
    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "steps": given.steps or task.steps,
        # The other arms do not depend on it, and are not measured again for another one.
        "at": (given.at or task.at) if arm == "shrink" else None,
        "width": (given.width or task.narrow) if arm != "dense" else task.width,
    }


def run(asked: Result) -> Result:
    """Measure in a process of its own."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "--one", json.dumps(asked)]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(asked: Result) -> Result:
    """Train one agent and evaluate it."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from prunerl.trace import trace
    from prunerl.train.shrink import Shrink

    torch.set_num_threads(1)
    begun = time.process_time()
    trace(torch.nn.Linear(2, 1), torch.zeros(3, 2))  # imports what torch.export needs
    imports = time.process_time() - begun
    task = TASKS[asked["task"]]
    width = task.width if asked["arm"] == "shrink" else asked["width"]
    model = getattr(stable_baselines3, task.algorithm)(
        "MlpPolicy",
        make_vec_env(task.env, task.envs, seed=asked["seed"]),
        policy_kwargs={"net_arch": [width, width]},
        seed=asked["seed"],
        device="cpu",
        **task.settings,
    )
    callback = Shrink(asked["at"], asked["width"]) if asked["arm"] == "shrink" else None
    begun = time.process_time()
    model.learn(asked["steps"], callback=callback)
    seconds = time.process_time() - begun
    returned, _ = evaluate_policy(
        model, make_vec_env(task.env, 1, seed=10_000 + asked["seed"]), n_eval_episodes=EPISODES
    )
    cut = sum(change.seconds for change in callback.changes) if callback else 0.0
    changes = [dict(change.differences) for change in callback.changes] if callback else []
    return {
        "asked": asked,
        "seconds": seconds,
        "cut": cut,
        "return": float(returned),
        "imports": imports,
        "changes": changes,
        "widths": model.policy_kwargs["net_arch"],
    }


def print_task(task: Task, results: list[Result]) -> None:
    """Print one task's table."""
    steps = results[0]["asked"]["steps"]
    dense = {r["asked"]["seed"]: r for r in results if r["asked"]["arm"] == "dense"}
    print(f"\n## {task.title}, {task.width}-{task.width}, {steps:,} steps\n")
    print(
        "| | width | CPU s | of it cutting | time / dense [least, most] | f + (1 − f)·c | return of each seed | mean |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        own = [r for r in results if r["asked"]["arm"] == arm]
        if not own:
            continue
        at = own[0]["asked"]["at"]
        shares = [r["seconds"] / dense[r["asked"]["seed"]]["seconds"] for r in own if r["asked"]["seed"] in dense]
        width = own[0]["asked"]["width"]
        label = f"{task.width} → {width} at {at:.0%}" if arm == "shrink" else f"{width}"
        seconds, cutting = (statistics.fmean(r[key] for r in own) for key in ("seconds", "cut"))
        share = f"{statistics.fmean(shares):.2f} [{min(shares):.2f}, {max(shares):.2f}]" if shares else "—"
        returns = [r["return"] for r in own]
        cells = (
            arm,
            label,
            f"{seconds:.1f}",
            f"{cutting:.2f}" if arm == "shrink" else "—",
            share,
            bound(results, at) if arm == "shrink" else "—",
            ", ".join(f"{value:.1f}" for value in returns),
            f"{statistics.fmean(returns):.1f}",
        )
        print("| " + " | ".join(cells) + " |")


def bound(results: list[Result], at: float) -> str:
    """Return what the narrow arm's time says that shrinking can reach."""
    from prunerl.train.shrink import time_ratio

    mean = {
        arm: statistics.fmean(r["seconds"] for r in results if r["asked"]["arm"] == arm)
        for arm in ("dense", "narrow")
        if any(r["asked"]["arm"] == arm for r in results)
    }
    return f"{time_ratio(at, mean['narrow'] / mean['dense']):.2f}" if len(mean) == 2 else "—"


if __name__ == "__main__":
    main()
