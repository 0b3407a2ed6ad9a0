"""Replicate the classic-control part of Graesser et al. 2022: DQN 512-512, methods × sparsities × seeds.

    python benchmarks/graesser.py --envs Acrobot-v1 --methods dense gradual-erk --sparsities 0.9 --seeds 0 1 2

One file a run; what is there already is not run again, so a stopped command goes on, and several subsets add up to one
table. ``--print`` prints the table of what is there. Each table has the narrow dense network of equal parameters.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.nn import functional

from prunerl import train
from prunerl.files import write_atomically

ENVS = ("Acrobot-v1", "MountainCar-v0", "CartPole-v1")
METHODS = (
    *("dense", "narrow"),
    *(f"{name}-{spread}" for name in ("static", "set", "rigl", "gradual") for spread in ("erk", "uniform")),
)
STEPS, WIDTH, EVALUATIONS, EPISODES = 100_000, 512, 50, 20
PUBLISHED = {
    ("Acrobot-v1", "dense"): {0.0: -67},
    ("Acrobot-v1", "gradual-erk"): {0.9: -65, 0.95: -65.5, 0.98: -73},
    ("Acrobot-v1", "rigl-erk"): {0.9: -73, 0.95: -73, 0.98: -85},
    ("Acrobot-v1", "set-erk"): {0.9: -68, 0.95: -74, 0.98: -94},
    ("Acrobot-v1", "static-erk"): {0.9: -72, 0.95: -79, 0.98: -95},
    ("Acrobot-v1", "narrow"): {0.9: -76, 0.95: -81, 0.98: -90},
    ("Acrobot-v1", "gradual-uniform"): {0.9: -84, 0.95: -95, 0.98: -125},
    ("MountainCar-v0", "dense"): {0.0: -123},
    ("MountainCar-v0", "gradual-erk"): {0.8: -102, 0.9: -111, 0.95: -115, 0.98: -119},
    ("MountainCar-v0", "gradual-uniform"): {0.8: -200, 0.9: -200, 0.95: -200, 0.98: -200},
    ("MountainCar-v0", "rigl-erk"): {0.9: -157},
    ("MountainCar-v0", "set-erk"): {0.9: -142},
    ("MountainCar-v0", "narrow"): {0.9: -150},
    ("MountainCar-v0", "static-erk"): {0.9: -122},
}
"""Scores digitised from the paper's figures, ± 1–2."""


class TheirDQN(DQN):
    """Their loss: the mean squared error, and an L2 penalty of 1e-6 on the kernels of hidden layers."""

    def train(self, gradient_steps: int, batch_size: int = 128) -> None:
        """Update as they do, without a clip of the gradient's norm."""
        self.policy.set_training_mode(True)
        layers = [m.weight for m in self.q_net.modules() if isinstance(m, nn.Linear)][:-1]
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size)
            with torch.no_grad():
                following = self.q_net_target(batch.next_observations).max(1, keepdim=True).values
                target = batch.rewards + (1 - batch.dones) * self.gamma * following
            values = self.q_net(batch.observations).gather(1, batch.actions.long())
            loss = functional.mse_loss(values, target) + 1e-6 * sum(w.square().sum() for w in layers)
            self.policy.optimizer.zero_grad()
            loss.backward()
            self.policy.optimizer.step()
        self._n_updates += gradient_steps


class Evaluate(BaseCallback):
    """Play greedy episodes now and then, on seeds that training does not use."""

    def __init__(self, env: str, every: int) -> None:
        super().__init__()
        self.env, self.every, self.returns = gym.make(env), every, list[float]()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            first = 1_000_000 + EPISODES * len(self.returns)
            self.returns.append(float(np.mean([self.play(first + episode) for episode in range(EPISODES)])))
        return True

    def play(self, seed: int) -> float:
        """Return the return of one episode."""
        observation, _ = self.env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = self.model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = self.env.step(int(action))
            total, over = total + float(reward), terminated or truncated
        return total


@dataclass(frozen=True)
class Cell:
    """One run."""

    env: str
    method: str
    sparsity: float
    seed: int
    steps: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.env}_{self.method}_{self.sparsity:g}_{self.seed}_{self.steps}.json"


def parameters(inputs: int, width: int, actions: int) -> int:
    """Return the parameters of a network with two hidden layers."""
    return inputs * width + width + width * width + width + width * actions + actions


def narrow(inputs: int, actions: int, sparsity: float) -> int:
    """Return the width of the largest dense network with no more parameters than the sparse one has."""
    matrices = inputs * WIDTH + WIDTH * WIDTH
    left = parameters(inputs, WIDTH, actions) - sparsity * matrices
    return max(w for w in range(1, WIDTH + 1) if parameters(inputs, w, actions) <= left)


def pruning(cell: Cell) -> BaseCallback | None:
    """Return the callback of a method, with the settings of the paper's appendix."""
    if cell.method in ("dense", "narrow"):
        return None
    name, distribution = cell.method.split("-")
    settings: dict[str, Any] = {"sparsity": cell.sparsity, "distribution": distribution, "seed": cell.seed}
    if name == "gradual":
        return train.Gradual(**settings, start=0.2, end=0.75, every=1000)
    if name == "static":
        return train.Static(**settings)
    return {"set": train.SET, "rigl": train.RigL}[name](**settings, every=1000, share=0.5, end=1.0)


def run(cell: Cell) -> dict[str, Any]:
    """Train and evaluate."""
    torch.set_num_threads(1)
    env = gym.make(cell.env)
    inputs, actions = env.observation_space.shape[0], env.action_space.n
    width = narrow(inputs, actions, cell.sparsity) if cell.method == "narrow" else WIDTH
    model = TheirDQN(
        "MlpPolicy", env, learning_rate=1e-3, buffer_size=100_000, learning_starts=1000, batch_size=128, gamma=0.99,
        train_freq=1, gradient_steps=1, target_update_interval=100, exploration_fraction=1000 / cell.steps,
        exploration_final_eps=0.01, policy_kwargs={"net_arch": [width, width]}, seed=cell.seed, device="cpu",
    )  # fmt: skip
    evaluate = Evaluate(cell.env, max(cell.steps // EVALUATIONS, 1))
    own = pruning(cell)
    begun = time.process_time()
    model.learn(cell.steps, callback=[evaluate] if own is None else [own, evaluate])
    seconds = time.process_time() - begun
    last = evaluate.returns[-max(len(evaluate.returns) // 10, 1) :]
    left = sum(int((p != 0).sum()) for p in model.q_net.parameters())
    return {
        **vars(cell), "width": width, "nonzero": left, "returns": evaluate.returns, "score": float(np.mean(last)),
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def table(folder: Path) -> str:
    """Return the table of what is there, with 95 % intervals over seeds (Student's t) and the published numbers."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = ["| env | method | sparsity | steps | seeds | score | 95 % | published | parameters |", "|---" * 9 + "|"]
    for key in sorted({(r["env"], r["method"], r["sparsity"], r["steps"]) for r in found}):
        mine = [r for r in found if (r["env"], r["method"], r["sparsity"], r["steps"]) == key]
        scores = np.array([r["score"] for r in mine])
        known = PUBLISHED.get(key[:2], {}).get(key[2], "–")
        left = round(float(np.mean([r["nonzero"] for r in mine])))
        lines.append(
            f"| {key[0]} | {key[1]} | {key[2]:g} | {key[3]} | {len(scores)} | {scores.mean():.1f} | "
            f"{interval_of(scores)} | {known} | {left} |"
        )
    return "\n".join(lines)


def interval_of(scores: np.ndarray) -> str:
    """Return the 95 % interval of the mean, a dash for one score."""
    if len(scores) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
    return f"{scores.mean() - half:.1f} … {scores.mean() + half:.1f}"


def main() -> None:
    """Run the cells that are asked for and not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=["Acrobot-v1", "MountainCar-v0"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run; the paper's are 100,000")
    parser.add_argument("--out", type=Path, default=Path("runs/graesser"), help="folder of the results")
    parser.add_argument("--print", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    methods = args.methods if "narrow" in args.methods or args.methods == ["dense"] else [*args.methods, "narrow"]
    cells = {
        Cell(env, method, 0.0 if method == "dense" else sparsity, seed, args.steps): None
        for seed in args.seeds for env in args.envs for sparsity in args.sparsities for method in methods
    }  # fmt: skip
    for cell in () if args.print else cells:
        path = args.out / cell.file
        if path.is_file():
            continue
        result = run(cell)
        write_atomically(path, json.dumps(result))
        print(f"{cell.file}: {result['score']:.1f} ({result['cpu_seconds']} CPU s)", flush=True)
    print(table(args.out))


if __name__ == "__main__":
    main()
