"""Every family of agents that can be compiled acts the same compiled for this machine, and as a C file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_sb3_table as table
import toy_env  # noqa: F401  registers its environments
from test_export import assert_agrees
from torch import nn

import prunerl
from prunerl.deploy.export import program_of
from prunerl.deploy.play import Visit, agent_player, play
from prunerl.deploy.program import Program
from prunerl.types import Agent

FAMILIES = {
    "MLP, discrete": "ppo",
    "CNN": "ppo-cnn",
    "CNN, continuous": "a2c-cnn-colour",
    "dict of arrays": "ppo-dict",
    "Q-values": "dqn",
    "quantiles": "qrdqn",
    "gSDE, squashed": "ppo-gsde-half",
    "squashed Gaussian": "sac-fixed",
    "deterministic actor": "td3",
    "batch norm": "crossq",
    "MultiDiscrete": "a2c",
    "MultiBinary": "ppo-binary",
    "masked actions": "ppo_mask",
    "LSTM": "ppo_lstm-two",
    "linear": "ars-discrete",
}
"""What a family is → the case of Stable-Baselines3 that stands for it."""

table.CASES.setdefault("ppo-binary", table.Case("ppo", acts="multi_binary"))


def module_agent() -> Agent:
    network = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.LayerNorm(16), nn.Linear(16, 2))
    made: Agent = prunerl.from_module(network, env="CartPole-v1", head="logits")
    return made


def keras_agent(folder: Path) -> Agent:
    keras = pytest.importorskip("keras")
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((4,)), dense(16, "relu"), dense(8, "tanh"), dense(2, "softmax")])
    model.save(folder / "model.keras")
    made: Agent = prunerl.load(folder / "model.keras", env="CartPole-v1")
    return made


Made = tuple[Any, Program, tuple[Visit, ...]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """From a family to its agent, the agent's program, and decisions that it made."""

    @functools.cache
    def made(name: str) -> Made:
        if name in FAMILIES:
            agent: Any = table.taken(FAMILIES[name])
        else:
            agent = module_agent() if name == "module" else keras_agent(tmp_path_factory.mktemp("keras"))
        played = play(agent_player(agent.policy), agent.env, range(12), masked=agent.policy.masked, keep=120)
        return agent, program_of(agent), played.visits

    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "module", "keras"])
def test_a_compiled_agent_acts_as_the_agent(name: str, family: Callable[[str], Made], cache: Path) -> None:
    agent, program, visits = family(name)
    policy = prunerl.compile(program, cache=cache, tune=False)
    assert policy.native
    differ = 0
    for visit in visits:
        if visit.first:
            policy.reset()
        mask = {} if visit.allowed is None else {"allowed": visit.allowed[0]}
        action = np.asarray(policy(visit.observation[0], **mask))
        assert action.shape == visit.action[0].shape
        if program.action_dtype == "float32":
            np.testing.assert_allclose(action, visit.action[0], rtol=1e-5, atol=1e-4)
        differ += program.action_dtype != "float32" and not np.array_equal(action, visit.action[0])
    assert len(visits) >= 100
    assert differ <= 1, agent.algorithm  # a tie in float32


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "module", "keras"])
def test_its_c_file_acts_as_the_agent(name: str, family: Callable[[str], Made], tmp_path: Path) -> None:
    assert_agrees("c", family(name), tmp_path)
