"""Train a small agent on CartPole-v1 with Stable-Baselines3 and prune it: the whole way in less than a minute.

Run it with ``make demo``, as often as you like: the agent and the run under ``runs/demo`` are made anew each time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

if __name__ != "__main__":
    raise ImportError("This recipe is a script. Run it: python recipes/demo.py")

ENV = "CartPole-v1"
STEPS = 40_000
FOLDER = Path("runs/demo")

torch.set_num_threads(1)  # networks of this size only lose time on more threads

# The settings are the RL Zoo's for this task; with them the full return of 500 takes well under a minute.
print(f"Training PPO on {ENV} for {STEPS:,} steps ...", flush=True)
start = time.perf_counter()
model = PPO(
    "MlpPolicy",
    make_vec_env(ENV, n_envs=8, seed=0),
    n_steps=32,
    batch_size=256,
    n_epochs=20,
    gae_lambda=0.8,
    gamma=0.98,
    ent_coef=0.0,
    learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
    clip_range=LinearSchedule(0.2, 0.0, 1.0),
    seed=0,
    device="cpu",
)
model.learn(STEPS)
shutil.rmtree(FOLDER, ignore_errors=True)
FOLDER.mkdir(parents=True)
model.save(FOLDER / "cartpole.zip")
print(f"Trained in {time.perf_counter() - start:.1f} s.\n")

arguments = ["prune", str(FOLDER / "cartpole.zip"), "--env", ENV, "--out", str(FOLDER / "run")]
print("$ prunerl", *arguments, flush=True)
sys.exit(subprocess.run([sys.executable, "-m", "prunerl", *arguments], check=False).returncode)
