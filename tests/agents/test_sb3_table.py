"""Every algorithm with every kind of policy: taken over, cut, saved, loaded by its own library alone, trained on."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_env
from torch import Tensor, nn

import prunerl
from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.agents.sb3_algorithms import ALGORITHMS, algorithm_class
from prunerl.errors import TrustError
from prunerl.remove import remove
from prunerl.trace import trace, unit_groups
from prunerl.types import Decision

pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")


@dataclass(frozen=True)
class Case:
    """One agent: algorithm, environment, and what differs from the smallest."""

    algorithm: str
    observes: str = "box"
    acts: str = "discrete"
    options: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    env: str = "Toy-v0"
    name: str = "MlpPolicy"
    steps: int = 24


CNN: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": 12}}
DICT: dict[str, Any] = {"features_extractor_kwargs": {"cnn_output_dim": 12}}
OWN: dict[str, Any] = {"features_extractor_class": toy_env.Custom}
SDE: dict[str, Any] = {"use_sde": True}
QF: dict[str, Any] = {"net_arch": {"pi": [8, 6], "qf": [7, 9]}}

CASES = {
    "ppo": Case("ppo"),
    "ppo-gsde": Case("ppo", acts="box", options=SDE),
    "ppo-gsde-half": Case("ppo", acts="box", options=SDE, policy={"full_std": False, "squash_output": True}),
    "a2c-gsde": Case("a2c", acts="box", options=SDE),
    "ppo-cnn": Case("ppo", "picture", name="CnnPolicy", policy=CNN),
    "a2c-cnn-colour": Case("a2c", "colour", "box", name="CnnPolicy", policy=CNN),
    "ppo-cnn-first": Case("ppo", "first", name="CnnPolicy", policy=CNN),
    "ppo-cnn-separate": Case("ppo", "picture", name="CnnPolicy", policy={**CNN, "share_features_extractor": False}),
    "ppo-cnn-linear": Case("ppo", "picture", name="CnnPolicy", policy={**CNN, "net_arch": []}),
    "ppo-own": Case("ppo", "picture", name="CnnPolicy", policy=OWN),
    "ppo-dict": Case("ppo", "dict", name="MultiInputPolicy", policy=DICT),
    "ppo-flat-dict": Case("ppo", "flat_dict", name="MultiInputPolicy"),
    "a2c": Case("a2c", acts="multi_discrete"),
    "dqn": Case("dqn"),
    "dqn-cnn": Case("dqn", "picture", name="CnnPolicy", policy=CNN),
    "dqn-dict": Case("dqn", "dict", name="MultiInputPolicy", policy=DICT),
    "sac": Case("sac", acts="box", policy=QF),
    "sac-fixed": Case("sac", acts="matrix", options={"ent_coef": 0.1}, policy={"n_critics": 3}),
    "sac-gsde": Case("sac", acts="box", options=SDE),
    "sac-gsde-unclipped": Case("sac", acts="box", options=SDE, policy={"clip_mean": 0.0}),
    "sac-cnn": Case("sac", "picture", "box", name="CnnPolicy", policy=CNN),
    "sac-cnn-shared": Case("sac", "picture", "box", name="CnnPolicy", policy={**CNN, "share_features_extractor": True}),
    "sac-own": Case("sac", "picture", "box", name="CnnPolicy", policy=OWN),
    "td3": Case("td3", acts="box", policy=QF),
    "td3-cnn": Case("td3", "picture", "box", name="CnnPolicy", policy=CNN),
    "td3-cnn-shared": Case("td3", "picture", "box", name="CnnPolicy", policy={**CNN, "share_features_extractor": True}),
    "td3-dict": Case("td3", "dict", "box", name="MultiInputPolicy", policy=DICT),
    "ddpg": Case("ddpg", acts="box"),
    "trpo": Case("trpo", acts="box"),
    "ars": Case("ars", acts="box", steps=80),
    "ars-unbiased": Case("ars", acts="box", policy={"with_bias": False, "squash_output": False}, steps=80),
    "ars-discrete": Case("ars", steps=80),
    "qrdqn": Case("qrdqn", policy={"n_quantiles": 5}),
    "qrdqn-cnn": Case("qrdqn", "picture", name="CnnPolicy", policy={**CNN, "n_quantiles": 5}),
    "tqc": Case("tqc", acts="box", policy={"n_quantiles": 5, "n_critics": 2}),
    "tqc-gsde": Case("tqc", acts="box", options=SDE, policy={"n_quantiles": 5}),
    "crossq": Case("crossq", acts="box", policy=QF),
    "crossq-plain": Case("crossq", acts="box", policy={"batch_norm": False}),
    "crossq-gsde": Case("crossq", acts="box", options=SDE),
    "ppo_mask": Case("ppo_mask", env="Choosy-v0"),
    "ppo_mask-cnn": Case("ppo_mask", "picture", env="Choosy-v0", name="CnnPolicy", policy=CNN),
    "ppo_lstm": Case("ppo_lstm", name="MlpLstmPolicy"),
    "ppo_lstm-gsde": Case("ppo_lstm", acts="box", options=SDE, name="MlpLstmPolicy"),
    "ppo_lstm-two": Case("ppo_lstm", name="MlpLstmPolicy", policy={"n_lstm_layers": 2}),
    "ppo_lstm-shared": Case(
        "ppo_lstm", name="MlpLstmPolicy", policy={"shared_lstm": True, "enable_critic_lstm": False}
    ),
    "ppo_lstm-linear-critic": Case("ppo_lstm", name="MlpLstmPolicy", policy={"enable_critic_lstm": False}),
    "ppo_lstm-cnn": Case("ppo_lstm", "picture", name="CnnLstmPolicy", policy=CNN),
    "ppo_lstm-dict": Case("ppo_lstm", "dict", name="MultiInputLstmPolicy", policy=DICT),
}

ON_POLICY = {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
OFF_POLICY = {"learning_starts": 8, "buffer_size": 100, "batch_size": 8, "train_freq": 1}
TARGETS = {**OFF_POLICY, "tau": 0.5}
SMALLEST: dict[str, dict[str, Any]] = {
    "ppo": ON_POLICY,
    "ppo_mask": ON_POLICY,
    "ppo_lstm": ON_POLICY,
    "a2c": {"n_steps": 8},
    "trpo": {"n_steps": 16, "batch_size": 16, "n_critic_updates": 2},
    "ars": {"n_delta": 2},
    "dqn": {**TARGETS, "target_update_interval": 4},
    "qrdqn": {**TARGETS, "target_update_interval": 4},
    "sac": TARGETS,
    "tqc": TARGETS,
    "td3": TARGETS,
    "ddpg": TARGETS,
    "crossq": OFF_POLICY,
}


@functools.cache
def trained(name: str) -> Any:
    """Train an agent of a case for a moment."""
    case = CASES[name]
    policy = {"net_arch": [8, 6], "activation_fn": nn.Tanh, **case.policy}
    if case.algorithm == "ppo_lstm":
        policy["lstm_hidden_size"] = 8
    env = gym.make(case.env, observes=case.observes, acts=case.acts)
    cls = algorithm_class(case.algorithm)
    options = {**SMALLEST[case.algorithm], **case.options}
    with torch.random.fork_rng():
        model = cls(case.name, env, policy_kwargs=policy, device="cpu", seed=0, **options)
        return model.learn(case.steps)


@functools.cache
def taken(name: str) -> SB3Agent:
    agent = prunerl.load(trained(name))
    assert isinstance(agent, SB3Agent)
    return agent


def observed(agent: SB3Agent, count: int = 9) -> list[Any]:
    """Return observations as the environment gives them."""
    agent.spaces[0].seed(0)
    return [agent.spaces[0].sample() for _ in range(count)]


def packed(agent: SB3Agent, seen: list[Any]) -> np.ndarray:
    return np.stack([environments.pack(agent.spaces[0], one) for one in seen])


def batch(seen: list[Any]) -> Any:
    return {k: np.stack([one[k] for one in seen]) for k in seen[0]} if isinstance(seen[0], dict) else np.stack(seen)


def assert_acts_like(agent: SB3Agent, model: Any) -> None:
    """Compare the actions with the library's, bit by bit; a recurrent one's with a memory."""
    seen = observed(agent)
    state, memory = None, heads.empty_memory(agent.policy, len(seen))
    for turn in range(3 if agent.policy.memory else 1):
        wanted, state = model.predict(batch(seen), state=state, deterministic=True)
        got, memory = heads.step(agent.policy, packed(agent, seen), memory)
        assert np.array_equal(got, wanted), turn
        seen = seen[1:] + seen[:1]


def inputs_of(agent: SB3Agent) -> Tensor:
    prepared = heads.prepare(agent.policy, packed(agent, observed(agent, 12)))
    return prepared.reshape(3, 4, *prepared.shape[1:]) if agent.policy.memory else prepared


def some(groups: Any) -> Decision:
    """Keep half of the units of each group, others in each."""
    result = {}
    for place, group in enumerate(groups):
        generator = torch.Generator().manual_seed(len(group.name) + place)
        order = torch.randperm(group.units, generator=generator)
        result[group.name] = order < max(1, (group.units + 1) // 2)
    return result


def cut_actor(agent: SB3Agent) -> SB3Agent:
    inputs = inputs_of(agent)
    recurrent = bool(agent.policy.memory)
    traced = trace(agent.policy.network, inputs[:2, :3] if recurrent else inputs[:2], recurrent=recurrent)
    groups = unit_groups(traced, agent.state.tensors)
    assert groups
    return agent.with_state(remove(traced, agent.state, groups, some(groups), ties=agent.ties, observations=inputs))


def cut_critics(agent: SB3Agent) -> SB3Agent:
    """Cut all critics; twins keep as many units, each its own."""
    state, cut = agent.state, agent
    for critic in agent.critics:
        inputs = critic.inputs(inputs_of(agent))
        traced = trace(critic.network, inputs[:2])
        groups = unit_groups(traced, state.tensors)
        if not groups:
            continue  # no hidden layer
        state = remove(traced, state, groups, some(groups), ties=agent.ties, observations=inputs)
        cut = agent.with_state(state)
    return cut


@pytest.mark.parametrize("name", CASES)
def test_taken_over_as_it_is(name: str) -> None:
    model, agent = trained(name), taken(name)
    assert agent.algorithm == CASES[name].algorithm
    live = model.policy.state_dict()
    rebuilt = agent.model()
    assert all(torch.equal(t, live[n]) for n, t in rebuilt.policy.state_dict().items())
    assert rebuilt.policy.state_dict().keys() == live.keys()
    assert_acts_like(agent, model)


PLAIN = """
import importlib, json, sys
sys.modules["prunerl"] = None  # from here on its import fails
import gymnasium as gym, numpy as np, torch, toy_env
torch.set_num_threads(1)
tracked, originals = 0, {}

def watch(package, policy):  # target networks must be the mean of what they were and the online ones, by name
    module = importlib.import_module(package)
    if not hasattr(module, "polyak_update"):
        return
    original = originals.setdefault(package, module.polyak_update)
    def checked(params, target_params, tau):
        global tracked
        params, target_params = list(params), list(target_params)
        before = [t.detach().clone() for t in target_params]
        original(params, target_params, tau)
        online = policy.state_dict(keep_vars=True)
        names = {p.data_ptr(): n for n, p in online.items()}
        for old, target in zip(before, target_params):
            source = online[names[target.data_ptr()].replace("_target.", ".", 1)]
            assert source.shape == target.shape
            assert torch.allclose(target, tau * source + (1 - tau) * old, atol=1e-6), names[target.data_ptr()]
            tracked += 1
    module.polyak_update = checked

for case in json.loads(sys.argv[1]):
    cls = getattr(importlib.import_module(case["package"]), case["title"])
    env = gym.make(case["env"], observes=case["observes"], acts=case["acts"])
    model = cls.load(case["zip"], env=env, device="cpu")
    seen = np.load(case["seen"], allow_pickle=True).item()
    actions, state = [], None
    for turn in range(case["turns"]):
        made, state = model.predict(seen.get("", seen), state=state, deterministic=True)
        actions.append(made)
    np.save(case["actions"], np.stack(actions))
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    optimizers = [getattr(p, "optimizer", None) for p in (model.policy, getattr(model.policy, "actor", None))]
    assert all(o.state for o in optimizers if o is not None), "the optimizer starts anew"
    tracked = 0
    watch(cls.train.__module__, model.policy) if hasattr(cls, "train") else None
    model.learn(case["steps"], reset_num_timesteps=False)
    after = dict(model.policy.named_parameters())
    assert after.keys() == before.keys() and all(p.shape == before[n].shape for n, p in after.items())
    still = [n for n, p in after.items() if p.equal(before[n])]
    assert not still, (case["name"], still)
    assert (tracked > 0) == any("_target." in n for n in before), case["name"]
    print("ok", case["name"])
"""


def case_of(name: str, small: SB3Agent, folder: Path) -> dict[str, Any]:
    """Save a cut agent and what it is to be compared with."""
    case = CASES[name]
    small.save(folder / f"{name}.zip")
    seen = batch(observed(small))
    np.save(folder / f"{name}-seen.npy", seen if isinstance(seen, dict) else {"": seen}, allow_pickle=True)
    algorithm = ALGORITHMS[case.algorithm]
    return {
        "name": name,
        "zip": str(folder / f"{name}.zip"),
        "package": algorithm.package,
        "title": algorithm.title,
        "env": case.env,
        "observes": case.observes,
        "acts": case.acts,
        "seen": str(folder / f"{name}-seen.npy"),
        "actions": str(folder / f"{name}-actions.npy"),
        "turns": 3 if small.policy.memory else 1,
        "steps": case.steps,
    }


@functools.cache
def cut(name: str) -> SB3Agent:
    return cut_critics(cut_actor(taken(name)))


@pytest.mark.parametrize("name", CASES)
def test_cut_actor_and_critics(name: str) -> None:
    small = cut(name)
    dense = taken(name)
    assert sum(t.numel() for t in small.state.tensors.values()) < sum(t.numel() for t in dense.state.tensors.values())
    model: Any = small.model()
    assert_acts_like(small, model)
    assert model.num_timesteps == trained(name).num_timesteps
    for parameter, moments in small.state.moments.items():
        assert all(m.shape in ((), small.state.tensors[parameter].shape) for m in moments.values())


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["policy", "learner"])
def test_cut_agents_are_plain_zips(tmp_path: Path, scope: str) -> None:
    """They load, act alike bit by bit and train where this package is not installed, and load here again."""
    one_each = ("ppo", "ppo-cnn", "dqn", "sac", "sac-cnn", "td3", "tqc", "crossq", "ppo_lstm")
    agents = {name: cut(name) for name in CASES} if scope == "learner" else {n: cut_actor(taken(n)) for n in one_each}
    cases = [case_of(name, small, tmp_path) for name, small in agents.items()]
    script = [sys.executable, "-W", "ignore", "-c", PLAIN, json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": str(Path(toy_env.__file__).parent)}
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert done.stdout.split() == [word for name in agents for word in ("ok", name)]
    for case in cases:
        small = agents[case["name"]]
        memory = heads.empty_memory(small.policy, 9)
        for wanted in np.load(case["actions"]):
            got, memory = heads.step(small.policy, packed(small, observed(small)), memory)
            assert np.array_equal(got, wanted), case["name"]
        own = any(isinstance(v, type) for v in CASES[case["name"]].policy.values())
        if own:
            with pytest.raises(TrustError, match=r"--trust"):
                prunerl.load(case["zip"], env=small.env)
        again = prunerl.load(case["zip"], env=small.env, trust=own)
        assert isinstance(again, SB3Agent)
        assert again.state.tensors.keys() == small.state.tensors.keys()
        assert all(torch.equal(t, again.state.tensors[n]) for n, t in small.state.tensors.items())
        assert again.state.moments.keys() == small.state.moments.keys()
        assert_acts_like(again, small.model())


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.algorithm in ("ppo_lstm", "ppo")])
def test_values_are_those_of_the_library(name: str) -> None:
    """From the policy's inputs to the value network's, through the critic's own extractor and memory."""
    agent = taken(name)
    inputs, policy = inputs_of(agent), agent.model().policy
    policy.set_training_mode(False)
    (critic,) = agent.critics
    with torch.no_grad():
        got = critic.network(critic.inputs(inputs))
        seen = [observed(agent, 12)[i] for i in range(12)]
        tensors = policy.obs_to_tensor(batch(seen))[0]
        if not agent.policy.memory:
            wanted = policy.predict_values(tensors)
        else:  # three sequences of four steps, each from an empty memory
            memory = tuple(torch.zeros(policy.lstm_actor.num_layers, 3, policy.lstm_actor.hidden_size) for _ in "hc")
            wanted = policy.predict_values(tensors, memory, torch.zeros(12))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
