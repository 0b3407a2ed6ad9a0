"""The trainings that ``benchmarks/shrink.py`` compares: tasks, and arms that differ in their networks alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import stable_baselines3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

from prunerl.train.shrink import Shrink
from prunerl.train.shrink_adaptive import AdaptiveShrink
from prunerl.train.shrink_cut import Cut
from prunerl.train.shrink_live import Live, everywhere

EPISODES = 20
EVALUATED = 1_000_000
"""Seeds of evaluation episodes are above it; training's are below."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One training: what, where, how long, how wide, and when it is cut.

    Attributes:
        at, narrow: Share of the steps after which the ``shrink`` arm is cut, and the width from then on.
        early: Share of the steps after which ``early`` stops.
        rate: Learning rate; falls to 0 with the clip range where ``decays``.
        adaptive: Whether the ``adaptive`` arm is measured by default.
        seeds: On which the settings were not chosen.
    """

    title: str
    algorithm: str
    env: str
    steps: int
    width: int
    narrow: int
    at: float
    early: float
    settings: Mapping[str, Any]
    rate: float = 1e-3
    decays: bool = False
    envs: int = 1
    adaptive: bool = False
    seeds: tuple[int, ...] = (10, 20, 30)


PPO_ZOO = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0}
DQN_GRAESSER = {
    "gamma": 0.99,
    "batch_size": 128,
    "buffer_size": 100_000,
    "learning_starts": 1000,
    "train_freq": 1,
    "target_update_interval": 100,
    "exploration_initial_eps": 0.01,
    "exploration_final_eps": 0.01,
}
TASKS = {
    "ppo-cartpole": Task(
        "PPO CartPole-v1",
        *("PPO", "CartPole-v1", 100_000, 256, 32, 0.05, 0.4, PPO_ZOO),
        decays=True,
        envs=8,
        adaptive=True,
    ),
    "sac-pendulum": Task("SAC Pendulum-v1", "SAC", "Pendulum-v1", 8_000, 256, 64, 0.1, 0.4, {}),
    "dqn-acrobot": Task(
        "DQN Acrobot-v1", "DQN", "Acrobot-v1", 20_000, 512, 64, 0.3, 0.4, DQN_GRAESSER, seeds=(40, 50, 60)
    ),
}


class Early(BaseCallback):
    """Take the model as it is at some point of its training, and prune that once, least squares included.

    Seconds until then are what stopping there would have cost; seconds spent here are no part of the training's.
    """

    def __init__(self, twin: Any, at: float, width: int) -> None:
        super().__init__()
        twin.set_logger(Logger(None, []))
        self.live = Live(twin, Cut(), states=4096, seed=0)
        self.at, self.width, self.began = at, width, 0.0
        self.seconds: float | None = None
        self.aside = 0.0

    def _on_training_start(self) -> None:
        self.began = time.process_time()

    def _on_rollout_end(self) -> None:
        if self.seconds is None and self.live.on_policy:
            begun = time.process_time()
            self.live.model.rollout_buffer = self.model.rollout_buffer
            self.live.keep_rollout()
            self.aside += time.process_time() - begun

    def _on_rollout_start(self) -> None:
        if self.seconds is not None or self.model.num_timesteps < self.at * self.model._total_timesteps:
            return
        before, begun, twin = self.aside, time.process_time(), self.live.model
        twin.num_timesteps = self.model.num_timesteps
        if not self.live.on_policy:
            twin.replay_buffer = self.model.replay_buffer
        if not self.live.ready():
            return
        twin.policy.load_state_dict(self.model.policy.state_dict())
        self.live.shrink(everywhere(self.live, self.width, self.width))
        now = time.process_time()
        self.seconds = now - self.began - before
        self.aside += now - begun

    def _on_step(self) -> bool:
        return True


def measure(asked: Result) -> Result:
    """Train one agent and evaluate it."""
    torch.set_num_threads(1)
    task, arm, seed = TASKS[asked["task"]], asked["arm"], asked["seed"]
    if arm == "random":
        return {"asked": asked, "returns": random_returns(task)}
    early = None
    if arm == "dense":
        twin = model_of(task, asked)  # made before the model, which then draws what it would draw without it
        early = Early(twin, task.early, task.narrow)
    model = model_of(task, asked)
    shrinking = {
        "shrink": lambda: Shrink(asked["at"], asked["width"]),
        "adaptive": lambda: AdaptiveShrink(start=asked["at"], least=asked["width"]),
    }
    callback = shrinking[arm]() if arm in shrinking else None
    begun = time.process_time()
    model.learn(asked["steps"], callback=callback or early)
    seconds = time.process_time() - begun - (early.aside if early else 0.0)
    trained = [float(episode["r"]) for episode in model.ep_info_buffer]
    result = {
        "asked": asked,
        "seconds": seconds,
        "returns": returns(task, model, seed),
        "training": sum(trained) / max(1, len(trained)),
        "widths": model.policy_kwargs["net_arch"],
    }
    if callback:
        result["changes"] = [[c.step, dict(c.widths), dict(c.differences), c.seconds] for c in callback.changes]
    if early and early.seconds is not None:
        result["early"] = {"seconds": early.seconds, "returns": returns(task, early.live.model, seed)}
    return result


def model_of(task: Task, asked: Result) -> Any:
    """Return an untrained model of an arm."""
    width = task.width if asked["arm"] in ("shrink", "adaptive") else asked["width"]
    arch: Any = [width, width]
    if asked["arm"] == "linear":
        arch = [] if task.algorithm == "DQN" else {"pi": [], "qf" if task.algorithm == "SAC" else "vf": arch}
    rate, settings = asked["rate"], dict(task.settings)
    if task.decays:
        settings |= {"clip_range": lambda left: 0.2 * left}
    return getattr(stable_baselines3, task.algorithm)(
        "MlpPolicy",
        make_vec_env(task.env, task.envs, seed=asked["seed"]),
        learning_rate=(lambda left: rate * left) if task.decays else rate,
        policy_kwargs={"net_arch": arch},
        seed=asked["seed"],
        device="cpu",
        **settings,
    )


def returns(task: Task, model: Any, seed: int) -> list[float]:
    """Return the returns of episodes that begin in the same states for all arms."""
    env = make_vec_env(task.env, 1, seed=EVALUATED + seed)
    found, _ = evaluate_policy(model, env, n_eval_episodes=EPISODES, return_episode_rewards=True)
    return [float(value) for value in found]


def random_returns(task: Task) -> list[float]:
    """Return the returns of random actions."""
    env = make_vec_env(task.env, 1, seed=2 * EVALUATED)
    env.action_space.seed(0)
    found: list[float] = []
    env.reset()
    while len(found) < 2 * EPISODES:
        _, _, dones, infos = env.step([env.action_space.sample()])
        if dones[0]:
            found.append(float(infos[0]["episode"]["r"]))
    return found
