"""The founding article's experiment, done right: a dense DQN on CartPole against one that is pruned while it learns.

    python recipes/founding_article.py                                    # 5 seeds, all arms
    python recipes/founding_article.py --seeds 1 --episodes 30            # a quick test
    python recipes/founding_article.py --arms dense pruned --seeds 10

CartPole with the 200-step cap (``CartPole-v0``'s rules: ``CartPole-v1`` with ``max_episode_steps=200``), a network
4-64-64-64-64-2 with ReLU, a DQN with ε-greedy exploration, a replay buffer and a target network. The arms:

- ``dense``: the article's network, to the end.
- ``pruned``: once the mean of the last ``READY_EPISODES`` training episodes is ``READY`` or more, it is cut to 4-32-2:
  units of the first layer are kept by score, the layers behind it are removed, the output layer is refitted by least
  squares and distilled, on states of the replay buffer. Then it goes on learning, with half of the updates.
- ``dense, fewer updates``: the same without the cut. What pruning itself is worth is the difference to this arm.
- ``narrow``: 4-32-2 from scratch, with the learning rate of ``RATES`` that is best on the seeds of tuning.
- ``stop early``: cut as ``pruned``, and then played without learning on.
- ``linear``: no DQN: linear policies drawn at random until one plays an episode to the cap, anew whenever it fails.

Training ends when the mean return of the last 100 training episodes is 195 or more (or there were as many as
``--episodes``); the table says after how many episodes that was, and the CPU seconds within ``learn()`` until then, all
that pruning does included. The reward is the mean over 100 episodes of the greedy policy, on seeds that training does
not use. Arms take turns, each training a process of its own on one core. Imports are not timed, in no arm.
Intervals are t-intervals of the mean over seeds at 95 %; the time's is over the ratios of the two arms of each seed.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.monitor import Monitor
from torch import nn

from prunerl.train import Reached, Shrink

if __name__ != "__main__":
    raise ImportError("This recipe is a script. Run it: python recipes/founding_article.py")

NETWORK, UNITS = [64, 64, 64, 64], 32
CAP, SOLVED, WINDOW, EVALUATED = 200, 195.0, 100, 100
READY, READY_EPISODES = 190.0, 5
STEPS = 150_000
DISTILLED = 1000
RIDGE = 0.1  # without it the output weights are 10 times as large, and some agents lose the task after the cut
RATES, TUNING_SEEDS = (3e-4, 1e-3, 3e-3, 1e-2), (100, 101)
FIRST_SEED = 20
SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "batch_size": 128,
    "gamma": 0.98,
    "train_freq": 4,
    "gradient_steps": 2,
    "target_update_interval": 500,
    "exploration_initial_eps": 1.0,
    "exploration_fraction": 1 / 15,  # of all steps; then ε stays at its last value
    "exploration_final_eps": 0.01,
}
ARMS = ("dense", "pruned", "dense, fewer updates", "narrow", "stop early", "linear")
ARTICLE = {"dense": (195.6, 90, 219), "pruned": (196.2, 85, 186)}  # reward, episodes, seconds


class Solved(BaseCallback):
    """Stop once the running average is reached, or after so many episodes."""

    def __init__(self, episodes: int | None) -> None:
        super().__init__()
        self.most = episodes
        self.returns: list[float] = []
        self.solved_at: int | None = None

    def _on_step(self) -> bool:
        self.returns += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        if solved(self.returns):
            self.solved_at = len(self.returns)
        return self.solved_at is None and (self.most is None or len(self.returns) < self.most)


class FewerUpdates(BaseCallback):
    """Make fewer updates once the agent plays well."""

    def __init__(self, ready: Reached, updates: int) -> None:
        super().__init__()
        self.ready, self.updates = ready, updates
        self.at: int | None = None

    def _on_rollout_start(self) -> None:
        if self.at is None and self.ready(self.model):
            self.at = self.num_timesteps
            self.model.gradient_steps = self.updates

    def _on_step(self) -> bool:
        return True


def train(arm: str, seed: int, episodes: int | None, rate: float | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    if arm == "linear":
        return searched(seed, episodes)
    settings = SETTINGS | ({"learning_rate": rate} if rate else {})
    policy = {"net_arch": [UNITS] if arm == "narrow" else list(NETWORK), "activation_fn": nn.ReLU}
    model = DQN("MlpPolicy", Monitor(make_env()), policy_kwargs=policy, seed=seed, device="cpu", **settings)
    episode = Solved(episodes)
    ready = Reached(READY, episodes=READY_EPISODES)
    cut = Shrink(at=ready, width=UNITS, depth=1, ridge=RIDGE, distill=DISTILLED)
    pruning = [cut] if arm in ("pruned", "stop early") else []
    updates = {"pruned": 1, "dense, fewer updates": 1, "stop early": 0}
    fewer = [FewerUpdates(ready, updates[arm])] if arm in updates else []
    begun = time.process_time()
    model.learn(STEPS, callback=CallbackList([*pruning, *fewer, episode]))
    seconds = time.process_time() - begun
    count = sum(p.numel() for p in model.q_net.parameters())
    values = model.q_net.q_net
    found = {"solved_at": episode.solved_at, "played": len(episode.returns), "steps": model.num_timesteps}
    with torch.no_grad():
        reward = evaluated(lambda o: int(values(torch.from_numpy(o)).argmax()), seed)
    return found | {"reward": reward, "seconds": seconds, "parameters": count, "cut_at": fewer[0].at if fewer else None}


def searched(seed: int, episodes: int | None) -> dict[str, Any]:
    """Draw linear policies until one plays to the cap, and keep it as long as it does."""
    generator, env = np.random.default_rng(seed), make_env()
    returns: list[float] = []
    steps, begun = 0, time.process_time()
    direction = generator.uniform(-1, 1, 4)
    while not solved(returns) and steps < STEPS and (episodes is None or len(returns) < episodes):
        returns.append(played(env, lambda o, d=direction: int(o @ d > 0), seed if not returns else None))
        steps += int(returns[-1])
        if returns[-1] < CAP:
            direction = generator.uniform(-1, 1, 4)
    seconds = time.process_time() - begun
    at = len(returns) if solved(returns) else None
    reward = evaluated(lambda o: int(o @ direction > 0), seed)
    found = {"solved_at": at, "played": len(returns), "steps": steps, "reward": reward}
    return found | {"seconds": seconds, "parameters": 4, "cut_at": None}


def make_env() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1", max_episode_steps=CAP)


def solved(returns: list[float]) -> bool:
    return len(returns) >= WINDOW and statistics.fmean(returns[-WINDOW:]) >= SOLVED


def played(env: gym.Env[Any, Any], act: Callable[[Any], int], seed: int | None) -> float:
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total, over = total + float(reward), terminated or truncated
    return total


def evaluated(act: Callable[[Any], int], seed: int) -> float:
    first, env = 1_000_000 + EVALUATED * seed, make_env()
    return statistics.fmean(played(env, act, first + i) for i in range(EVALUATED))


def interval(values: list[float], digits: int = 1) -> str:
    mean = statistics.fmean(values)
    if min(values) == max(values):
        return f"{mean:.{digits}f}"
    low, high = stats.t.interval(0.95, len(values) - 1, mean, np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def row(results: list[dict[str, Any]], dense: dict[int, float]) -> str:
    # A training that did not get there counts with the episodes that it had.
    reached = sum(r["solved_at"] is not None for r in results)
    shares = [r["seconds"] / dense[r["seed"]] for r in results if r["seed"] in dense]
    counts = sorted({r["parameters"] for r in results})
    cells = (
        results[0]["arm"] + (f", rate {results[0]['rate']:g}" if results[0]["rate"] else ""),
        " or ".join(f"{count:,}" for count in counts),
        interval([r["reward"] for r in results]),
        interval([float(r["solved_at"] or r["played"]) for r in results], 0),
        f"{reached} of {len(results)}",
        interval([r["seconds"] for r in results]),
        interval(shares, 2) if shares else "—",
        interval([1e3 * r["seconds"] / r["steps"] for r in results], 2),
    )
    return "| " + " | ".join(cells) + " |"


parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--seeds", type=int, default=5, help=f"how many, from {FIRST_SEED} on")
parser.add_argument("--episodes", type=int, help="stop after so many episodes, solved or not")
parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
parser.add_argument("--out", type=Path, default=Path("runs/founding_article.jsonl"))
parser.add_argument("--one", help=argparse.SUPPRESS)
given = parser.parse_args()

if given.one:
    asked = json.loads(given.one)
    print(json.dumps(asked | train(**asked)))
    sys.exit()

given.out.parent.mkdir(parents=True, exist_ok=True)


def ensure(arm: str, seed: int, rate: float | None = None) -> dict[str, Any]:
    """Return what a training gave; train in a process of its own if that is not known yet."""
    asked = {"arm": arm, "seed": seed, "episodes": given.episodes, "rate": rate}
    for line in given.out.read_text().splitlines() if given.out.exists() else ():
        if asked.items() <= (known := json.loads(line)).items():
            return dict(known)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "--one", json.dumps(asked)]
    output = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True).stdout
    with given.out.open("a") as file:
        file.write(output.splitlines()[-1] + "\n")
    return dict(json.loads(output.splitlines()[-1]))


def tuned() -> float:
    """Return the learning rate with which the narrow network needs the fewest steps, on seeds that are not reported."""
    steps = {rate: statistics.fmean(ensure("narrow", s, rate)["steps"] for s in TUNING_SEEDS) for rate in RATES}
    return min(steps, key=lambda rate: steps[rate])


seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
best = tuned() if "narrow" in given.arms else None
own = [ensure(arm, seed, best if arm == "narrow" else None) for seed in seeds for arm in given.arms]
print(
    f"| | parameters | average reward | episodes until ≥ {SOLVED:.0f} | reached | CPU s | time / dense | ms a step |\n"
    "|---|---|---|---|---|---|---|---|"
)
dense = {r["seed"]: r["seconds"] for r in own if r["arm"] == "dense"}
for arm in given.arms:
    print(row([r for r in own if r["arm"] == arm], dense))
for arm, (reward, count, seconds) in ARTICLE.items():
    print(f"| {arm}, as published | | {reward} | {count} | | {seconds} | {seconds / ARTICLE['dense'][2]:.2f} | |")
