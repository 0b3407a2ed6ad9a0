"""Real trained agents, found outside of the repository and never copied into it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import prunerl
from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent

TODAY = {"LunarLander-v2": "LunarLander-v3", "Hopper-v3": "Hopper-v5", "HalfCheetah-v3": "HalfCheetah-v5"}
"""Environments of the ``gym`` era, and those of today that their agents act in."""

REAL = (
    "ppo/CartPole-v1",
    "a2c/CartPole-v1",
    "dqn/CartPole-v1",
    "dqn/Acrobot-v1",
    "dqn/MountainCar-v0",
    "dqn/LunarLander-v2",
    "ppo/LunarLander-v2",
    "ppo/Pendulum-v1",
    "ppo/Hopper-v3",
    "sac/Pendulum-v1",
    "sac/HalfCheetah-v3",
    "ddpg/Pendulum-v1",
    "qrdqn/CartPole-v1",
)


torch.set_num_threads(1)  # small networks are fastest so, and the tests may run side by side


@pytest.fixture(scope="session")
def agents() -> Path:
    """The folder of real agents, ``<algorithm>/<env>_1/<env>.zip``."""
    default = Path(__file__).parents[2] / "shared" / "agents"
    folder = Path(os.environ.get("PRUNERL_AGENTS", default))
    if not folder.is_dir():
        pytest.skip(f"no trained agents in {folder}; set PRUNERL_AGENTS to a folder of <algo>/<env>_1/<env>.zip")
    return folder


@pytest.fixture(scope="session")
def zip_of(agents: Path) -> Callable[[str], Path]:
    """From a name such as ``ppo/CartPole-v1`` to the path of its zip."""

    def path(name: str) -> Path:
        algorithm, env = name.split("/")
        return agents / algorithm / f"{env}_1" / f"{env}.zip"

    return path


@pytest.fixture(scope="session")
def load_agent(zip_of: Callable[[str], Path]) -> Callable[[str], SB3Agent]:
    """From a name such as ``ppo/CartPole-v1`` to the agent, in the environment of today."""

    @functools.cache
    def load(name: str) -> SB3Agent:
        env = name.split("/")[1]
        agent = prunerl.load(zip_of(name), env=TODAY.get(env, env))
        assert isinstance(agent, SB3Agent)
        return agent

    return load


@pytest.fixture(scope="session")
def quick() -> Callable[[SB3Agent], SB3Agent]:
    """From an agent to one that makes few updates, whose rollouts are short, while it trains on."""
    fewer = {"gradient_steps": 4, "buffer_size": 1000, "n_epochs": 2, "n_steps": 64}

    def change(agent: SB3Agent) -> SB3Agent:
        arguments = {k: min(fewer.get(k, v), v) if k in fewer else v for k, v in agent.settings.arguments.items()}
        return replace(agent, settings=replace(agent.settings, arguments=arguments))

    return change


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, load_agent: Callable[[str], SB3Agent]) -> SB3Agent:
    """Each real agent of a supported algorithm in turn."""
    return load_agent(request.param)


@pytest.fixture(scope="session")
def visit() -> Callable[..., np.ndarray]:
    """From an agent to raw observations that it visits, in the order in which it does."""

    def observations(agent: SB3Agent, count: int = 64) -> np.ndarray:
        env = environments.make(agent.env)
        seen: list[np.ndarray] = []
        episode, over = 0, True
        while len(seen) < count:
            if over:
                current, _ = env.reset(seed=episode)
                episode += 1
            seen.append(np.asarray(current))
            action = heads.act(agent.policy, np.asarray(current)[None])[0]
            current, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        env.close()
        return np.stack(seen)

    return observations


@pytest.fixture(scope="session")
def inputs(visit: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """From an agent to its network's inputs in states that it visits."""
    return lambda agent, count=64: heads.prepare(agent.policy, visit(agent, count))
