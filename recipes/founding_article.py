"""The founding article's experiment, done right: a dense DQN on CartPole against one that is pruned while it learns.

    python recipes/founding_article.py                          # 5 seeds, both arms
    python recipes/founding_article.py --seeds 1 --episodes 30  # a quick test

CartPole with the 200-step cap (``CartPole-v0``'s rules: ``CartPole-v1`` with ``max_episode_steps=200``), a network
4-64-64-64-64-2 with ReLU, a DQN with ε-greedy exploration, a replay buffer and a target network. The arm ``pruned``
removes units from the network while it learns, at two points of the training (``prunerl.train.Shrink``).

Training ends when the mean return of the last 100 training episodes is 195 or more (or there were as many as
``--episodes``); the table says after how many episodes that was, and the CPU seconds within ``learn()`` until then.
The reward is the mean over 100 episodes of the greedy policy, on seeds that training does not use. Arms take turns,
each training a process of its own on one core. Imports are not timed, in neither arm. Intervals are t-intervals of the
mean over seeds at 95 %; the time's is over the ratios of the two arms of each seed.

Finished trainings are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from prunerl.trace import trace
from prunerl.train.shrink import Shrink

NETWORK = [64, 64, 64, 64]
CAP, SOLVED, WINDOW, EVALUATED = 200, 195.0, 100, 100
STEPS = 60_000
AT, WIDTHS = (0.1, 0.2), (32, 16)
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 50_000,
    "learning_starts": 1000,
    "batch_size": 64,
    "gamma": 0.99,
    "train_freq": 4,
    "gradient_steps": 4,
    "target_update_interval": 250,
    "exploration_initial_eps": 1.0,
    "exploration_fraction": 0.1,  # of all steps; then ε stays at its last value
    "exploration_final_eps": 0.01,
}
ARMS = ("dense", "pruned")
ARTICLE = {"dense": (195.6, 90, 219), "pruned": (196.2, 85, 186)}  # reward, episodes, seconds


class Solved(BaseCallback):
    """Stop once the running average is reached, or after so many episodes."""

    def __init__(self, episodes: int | None) -> None:
        super().__init__()
        self.most = episodes
        self.returns: list[float] = []
        self.solved_at: int | None = None

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(float(info["episode"]["r"]))
        full = len(self.returns) >= WINDOW
        if full and statistics.fmean(self.returns[-WINDOW:]) >= SOLVED:
            self.solved_at = len(self.returns)
        return self.solved_at is None and (self.most is None or len(self.returns) < self.most)


def make_env() -> gym.Env[Any, Any]:
    return Monitor(gym.make("CartPole-v1", max_episode_steps=CAP))


def train(arm: str, seed: int, episodes: int | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    trace(torch.nn.Linear(2, 1), torch.zeros(3, 2))  # imports what torch.export needs, in both arms
    policy = {"net_arch": list(NETWORK), "activation_fn": torch.nn.ReLU}
    model = DQN("MlpPolicy", make_env(), policy_kwargs=policy, seed=seed, device="cpu", **SETTINGS)
    solved = Solved(episodes)
    shrink = [Shrink(AT, WIDTHS)] if arm == "pruned" else []
    begun = time.process_time()
    model.learn(STEPS, callback=CallbackList([*shrink, solved]))
    seconds = time.process_time() - begun
    env = make_env()
    env.reset(seed=1_000_000 + seed)
    reward, _ = evaluate_policy(model, env, n_eval_episodes=EVALUATED)
    return {
        "arm": arm,
        "seed": seed,
        "episodes": episodes,
        "reward": float(reward),
        "solved_at": solved.solved_at,
        "played": len(solved.returns),
        "steps": model.num_timesteps,
        "seconds": seconds,
        "widths": model.policy_kwargs["net_arch"],
        "parameters": sum(p.numel() for p in model.q_net.parameters()),
    }


def interval(values: list[float], digits: int = 1) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    low, high = stats.t.interval(0.95, len(values) - 1, mean, np.std(values, ddof=1) / len(values) ** 0.5)
    spread = f"[{low:.{digits}f}, {high:.{digits}f}]" if high > low else ""
    return f"{mean:.{digits}f} {spread}".strip()


def row(title: str, results: list[dict[str, Any]], dense: dict[int, float]) -> str:
    # A training that did not get there counts with the episodes that it had.
    reached = sum(r["solved_at"] is not None for r in results)
    cells = (
        title,
        f"{results[0]['parameters']:,}",
        interval([r["reward"] for r in results]),
        interval([float(r["solved_at"] or r["played"]) for r in results], 0),
        f"{reached} of {len(results)}",
        interval([r["seconds"] for r in results]),
        interval([r["seconds"] / dense[r["seed"]] for r in results if r["seed"] in dense], 2) if dense else "—",
        interval([1e3 * r["seconds"] / r["steps"] for r in results], 2),
    )
    return "| " + " | ".join(cells) + " |"


parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--episodes", type=int, help="stop after so many episodes, solved or not")
parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
parser.add_argument("--out", type=Path, default=Path("runs/founding_article.jsonl"))
parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
given = parser.parse_args()

if given.one:
    print(json.dumps(train(given.one[0], int(given.one[1]), given.episodes)))
    sys.exit()

given.out.parent.mkdir(parents=True, exist_ok=True)
done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
own = [r for r in done if r["episodes"] == given.episodes and r["seed"] < given.seeds and r["arm"] in given.arms]
for seed in range(given.seeds):
    for arm in given.arms:
        if any((r["arm"], r["seed"]) == (arm, seed) for r in own):
            continue
        command = [sys.executable, __file__, "--one", arm, str(seed)]
        command += ["--episodes", str(given.episodes)] if given.episodes else []
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        output = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True).stdout
        own.append(json.loads(output.splitlines()[-1]))
        with given.out.open("a") as file:
            file.write(json.dumps(own[-1]) + "\n")

print(
    f"| | parameters | average reward | episodes until ≥ {SOLVED:.0f} | reached | CPU s | time / dense | ms a step |\n"
    "|---|---|---|---|---|---|---|---|"
)
dense = {r["seed"]: r["seconds"] for r in own if r["arm"] == "dense"}
for arm in given.arms:
    print(row(arm, [r for r in own if r["arm"] == arm], dense))
for arm, (reward, count, seconds) in ARTICLE.items():
    print(f"| {arm}, as published | | {reward} | {count} | | {seconds} | {seconds / ARTICLE['dense'][2]:.2f} | |")
