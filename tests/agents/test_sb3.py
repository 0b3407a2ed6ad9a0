"""Agents of Stable-Baselines3 come in, act, train and go out again as that library has them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_env
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

import prunerl
from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import EnvironmentFailure, LoadError, SpaceError
from prunerl.remove import remove
from prunerl.trace import layer_groups, trace, unit_groups
from prunerl.types import EnvSpec


def tiny(algorithm: type[BaseAlgorithm], env: Any, *, net_arch: Any = (8, 6), **kwargs: Any) -> Any:
    """Make an agent and train it for a moment, so that its optimizer has moments."""
    few: dict[str, Any] = {
        PPO: {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
        A2C: {"n_steps": 8},
        DQN: {
            "learning_starts": 8,
            "buffer_size": 100,
            "batch_size": 8,
            "gradient_steps": 2,
            "target_update_interval": 8,
        },
    }[algorithm]  # type: ignore[index]
    arch = list(net_arch) if isinstance(net_arch, tuple) else net_arch
    policy = {"net_arch": arch, **kwargs.pop("policy_kwargs", {})}
    model: Any = algorithm("MlpPolicy", env, device="cpu", seed=0, policy_kwargs=policy, **{**few, **kwargs})
    return model.learn(32)


def sample(space: gym.Space[Any], count: int = 40) -> np.ndarray:
    space.seed(0)
    return np.stack([np.asarray(space.sample()) for _ in range(count)])


def assert_takes_over(agent: prunerl.Agent, model: Any) -> None:
    """Check tensors, moments and actions against the live model."""
    assert isinstance(agent, SB3Agent)
    live = model.policy.state_dict()
    assert list(agent.state.tensors) == list(live)
    assert all(torch.equal(agent.state.tensors[n], t) for n, t in live.items())
    names = {id(p): n for n, p in model.policy.named_parameters()}
    for parameter, entries in model.policy.optimizer.state.items():
        for key, value in entries.items():
            assert torch.equal(agent.state.moments[names[id(parameter)]][key], torch.as_tensor(value))
    observations = sample(agent.spaces[0])  # as the environment gives them: images with their channels last
    assert np.array_equal(heads.act(agent.policy, observations), model.predict(observations, deterministic=True)[0])


def test_every_real_agent_loads_without_trust(real: SB3Agent) -> None:
    assert real.algorithm in ("ppo", "a2c", "dqn", "sac", "ddpg", "qrdqn")
    model = real.model()
    assert all(torch.equal(real.state.tensors[n], t) for n, t in model.policy.state_dict().items())
    assert model.num_timesteps > 0


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
@pytest.mark.parametrize("live", [True, False])
def test_agents_of_today_load_from_file_and_live(tmp_path: Path, algorithm: type[BaseAlgorithm], live: bool) -> None:
    model = tiny(algorithm, "CartPole-v1")
    model.save(tmp_path / "agent.zip")
    agent = prunerl.load(model) if live else prunerl.load(tmp_path / "agent.zip", env="CartPole-v1")
    assert_takes_over(agent, model)
    assert agent.env.id == "CartPole-v1"
    assert agent.notes == ()  # everything that training needs was plain data


def test_a_live_model_shares_nothing_with_its_agent() -> None:
    model = tiny(PPO, "CartPole-v1")
    agent = prunerl.load(model)
    before = {n: t.clone() for n, t in agent.state.tensors.items()}
    model.learn(32)
    assert all(torch.equal(agent.state.tensors[n], t) for n, t in before.items())
    with pytest.raises(LoadError, match="Cannot load an agent from a dict"):
        prunerl.load({})


@pytest.mark.parametrize("acts", ["discrete", "shifted", "multi_discrete", "multi_binary", "box", "matrix"])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_every_action_space(acts: str, algorithm: type[BaseAlgorithm]) -> None:
    model = tiny(algorithm, gym.make("Toy-v0", acts=acts))
    agent = prunerl.load(model)
    assert agent.env == EnvSpec("Toy-v0", {"acts": acts})
    assert_takes_over(agent, model)
    assert prunerl.evaluate(agent, episodes=3).steps == 30


@pytest.mark.parametrize("observes", ["box", "matrix", "image", "discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_every_observation_space(observes: str, algorithm: type[BaseAlgorithm]) -> None:
    model = tiny(algorithm, gym.make("Toy-v0", observes=observes))
    agent = prunerl.load(model)
    assert isinstance(agent, SB3Agent)
    assert_takes_over(agent, model)
    observations = heads.prepare(agent.policy, sample(agent.spaces[0], 12))
    traced = trace(agent.policy.network, observations[:3])
    groups = unit_groups(traced, agent.state.tensors)
    halves = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    smaller = agent.with_state(remove(traced, agent.state, groups, halves, ties=agent.ties, observations=observations))
    assert smaller.policy.network(observations).shape == (12, 4)
    assert prunerl.evaluate(smaller, episodes=2).steps == 20


def test_an_environment_with_counted_states() -> None:
    model = tiny(DQN, "FrozenLake-v1")
    agent = prunerl.load(model)
    assert_takes_over(agent, model)
    assert agent.policy.observation_shape == ()


@pytest.mark.parametrize("frequency", [7, (3, "step"), (1, "episode")])
def test_the_training_frequency_is_read_without_running_its_pickle(frequency: Any) -> None:
    model = tiny(DQN, "CartPole-v1", train_freq=frequency)
    agent = prunerl.load(model)
    assert isinstance(agent, SB3Agent)
    assert agent.model().train_freq == model.train_freq


@pytest.mark.parametrize(
    ("options", "use_sde"),
    [
        ({"activation_fn": nn.ReLU, "ortho_init": False, "log_std_init": -1.0}, False),
        ({"activation_fn": nn.LeakyReLU, "optimizer_class": torch.optim.AdamW}, False),
        ({"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}, False),
        ({"squash_output": True, "full_std": False}, True),
        ({"use_expln": True}, True),
    ],
    ids=str,
)
def test_options_of_the_policy(options: dict[str, Any], use_sde: bool) -> None:
    model = tiny(PPO, "Pendulum-v1", use_sde=use_sde, policy_kwargs=options)
    agent = prunerl.load(model)
    assert_takes_over(agent, model)
    assert isinstance(agent, SB3Agent)
    rebuilt = agent.model()
    assert type(rebuilt.policy.optimizer) is type(model.policy.optimizer)
    assert rebuilt.policy.activation_fn is model.policy.activation_fn


def test_an_activation_with_a_weight_of_its_own() -> None:
    """Its layers can be narrowed; left out they cannot be, since its weight would stay behind."""
    model = tiny(PPO, "CartPole-v1", policy_kwargs={"activation_fn": nn.PReLU})
    agent = prunerl.load(model)
    assert_takes_over(agent, model)
    assert isinstance(agent, SB3Agent)
    assert agent.stacks == ()
    seen = torch.zeros(6, 4)
    small = narrowed(agent, seen)
    assert small.state.tensors["mlp_extractor.policy_net.1.weight"].shape == (1,)
    assert_takes_over(small, small.model())


@pytest.mark.parametrize("net_arch", [(), (8,), {"pi": [4], "vf": [16, 8]}, {"pi": [], "vf": [4]}], ids=str)
def test_any_widths(net_arch: Any) -> None:
    model = tiny(PPO, "CartPole-v1", net_arch=net_arch)
    assert_takes_over(prunerl.load(model), model)


def test_what_an_mlp_policy_cannot_do_is_refused() -> None:
    model = tiny(PPO, gym.make("Toy-v0", acts="box"))
    with pytest.raises(SpaceError, match=r"takes 3 inputs, but 'Toy-v0' observes 1303"):
        prunerl.load(model, env=EnvSpec("Toy-v0", {"observes": "dict"}))
    with pytest.raises(SpaceError, match="has 3 outputs, but 'Toy-v0' takes Discrete"):
        prunerl.load(model, env="Toy-v0")
    with pytest.raises(SpaceError, match="DQN cannot act in 'Toy-v0': its actions are Box"):
        prunerl.load(tiny(DQN, "Toy-v0"), env=EnvSpec("Toy-v0", {"acts": "box"}))


def test_training_goes_on_equally_from_equal_seeds_and_leaves_other_streams_alone() -> None:
    agent = prunerl.load(tiny(DQN, "CartPole-v1"))
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()
    first, second, other = agent.learn(40, seed=1), agent.learn(40, seed=1), agent.learn(40, seed=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert all(torch.equal(t, second.state.tensors[n]) for n, t in first.state.tensors.items())
    assert not torch.equal(first.state.tensors["q_net.q_net.0.weight"], other.state.tensors["q_net.q_net.0.weight"])


def test_an_environment_that_fails_in_training_is_named() -> None:
    assert "Toy-v0" in gym.registry, toy_env
    agent = prunerl.load(tiny(PPO, "Toy-v0"), env=EnvSpec("Toy-v0", {"fails": 7}))
    with pytest.raises(EnvironmentFailure, match=r"Training in 'Toy-v0' failed: .*the motor is stuck"):
        agent.learn(32, seed=0)


def test_rewards_alone_may_be_normalised() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]), norm_obs=False)
    model = tiny(PPO, env)
    agent = prunerl.load(model)
    assert agent.policy.normalizer is None
    assert_takes_over(agent, model)
    assert agent.learn(32, seed=0).policy.normalizer is None


def test_statistics_travel_through_a_file(tmp_path: Path, load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/Hopper-v3")
    agent.save(tmp_path / "small.zip")
    again = prunerl.load(tmp_path / "small.zip", env="Hopper-v5")
    first, second = agent.policy.normalizer, again.policy.normalizer
    assert first is not None
    assert second is not None
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.var, second.var)
    assert (first.clip, first.epsilon) == (second.clip, second.epsilon)
    assert all(torch.equal(t, again.state.tensors[n]) for n, t in agent.state.tensors.items())


def test_statistics_of_another_environment_or_none_are_refused(tmp_path: Path, zip_of: Callable[[str], Path]) -> None:
    other = zip_of("ppo/Hopper-v3").with_suffix("") / "vecnormalize.pkl"
    with pytest.raises(SpaceError, match=r"vecnormalize\.pkl holds statistics .* shape \(11,\).* have \(4,\)"):
        prunerl.load(zip_of("ppo/CartPole-v1"), env="CartPole-v1", vec_normalize=other)
    with pytest.raises(LoadError, match=r"missing\.pkl cannot be read"):
        prunerl.load(zip_of("ppo/CartPole-v1"), env="CartPole-v1", vec_normalize=tmp_path / "missing.pkl")


def zoo_folder(tmp_path: Path, *, args: str = "", config: str = "") -> Path:
    """Write an agent in the RL Zoo's layout."""
    path = tmp_path / "CartPole-v1.zip"
    tiny(PPO, "CartPole-v1").save(path)
    path.with_suffix("").mkdir()
    for name, content in (("args", args), ("config", config)):
        if content:
            (path.with_suffix("") / f"{name}.yml").write_text(content)
    return path


def test_a_zoo_folder_gives_arguments_and_wrappers(tmp_path: Path) -> None:
    ordered = "!!python/object/apply:collections.OrderedDict\n- - - {key}\n    - {value}\n"
    path = zoo_folder(
        tmp_path,
        args=ordered.format(key="env_kwargs", value="{sutton_barto_reward: true}"),
        config=ordered.format(key="env_wrapper", value="[{gymnasium.wrappers.TimeLimit: {max_episode_steps: 5}}]"),
    )
    agent = prunerl.load(path, env="CartPole-v1")
    assert agent.env.kwargs == {"sutton_barto_reward": True}
    assert agent.env.wrappers == (("gymnasium.wrappers.TimeLimit", {"max_episode_steps": 5}),)
    assert prunerl.evaluate(agent, episodes=4).steps == 20
    other = prunerl.load(path, env="CartPole-v1", env_kwargs={"sutton_barto_reward": False})
    assert other.env.kwargs == {"sutton_barto_reward": False}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("env_wrapper: utils.wrappers.Gone", r"Wrapper 'rl_zoo3\.wrappers\.Gone' cannot be imported"),
        ("env_wrapper: gymnasium.wrappers.Gone", r"Wrapper 'gymnasium\.wrappers\.Gone' cannot be imported"),
        (
            "env_wrapper: [{gymnasium.wrappers.TimeLimit: {no_such: 5}}]",
            r"Wrapper 'gymnasium\.wrappers\.TimeLimit'.*no_such",
        ),
    ],
)
def test_wrappers_that_are_not_there_are_named(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(EnvironmentFailure, match=message):
        prunerl.load(zoo_folder(tmp_path, config=config), env="CartPole-v1")


def test_a_zoo_folder_runs_no_code(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = zoo_folder(tmp_path, args=f"env_kwargs: !!python/object/apply:os.mkdir ['{witness}']")
    with pytest.raises(LoadError, match=r"args\.yml is not a Zoo configuration.*Mend or remove it"):
        prunerl.load(path, env="CartPole-v1")
    assert not witness.exists()


PLAIN = """
import json, sys
sys.modules["prunerl"] = None  # from here on its import fails
import gymnasium as gym, numpy as np, stable_baselines3 as sb3, torch
torch.set_num_threads(1)
if "qrdqn" in sys.argv[1]:
    import sb3_contrib
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
for case in json.loads(sys.argv[1]):
    print("CASE", case["zip"], file=sys.stderr)
    env = DummyVecEnv([lambda: gym.make(case["env"])])
    observations = np.load(case["observations"])
    if case["statistics"]:
        env = VecNormalize.load(case["statistics"], env)
        observations = env.normalize_obs(observations)
    package = sb3 if hasattr(sb3, case["algorithm"]) else sb3_contrib
    model = getattr(package, case["algorithm"]).load(case["zip"], env=env, device="cpu")
    np.save(case["actions"], model.predict(observations, deterministic=True)[0])
    before = {n: t.clone() for n, t in model.policy.state_dict().items()}
    if hasattr(model, "learning_starts"):
        model.learning_starts = 16
        model.train_freq = type(model.train_freq)(4, type(model.train_freq.unit)("step"))
    model.learn(64, reset_num_timesteps=False)
    assert all(t.shape == before[n].shape for n, t in model.policy.state_dict().items())
    assert not model.policy.state_dict().keys() ^ before.keys()
    still = [n for n, t in model.policy.state_dict().items() if t.equal(before[n]) and "target" not in n]
    assert not still, still
"""


def narrowed(agent: SB3Agent, observations: Tensor) -> SB3Agent:
    traced = trace(agent.policy.network, observations[:3])
    groups = unit_groups(traced, agent.state.tensors)
    generator = torch.Generator().manual_seed(0)
    keep = {g.name: torch.randperm(g.units, generator=generator) < 5 + i for i, g in enumerate(groups)}
    return agent.with_state(remove(traced, agent.state, groups, keep, ties=agent.ties, observations=observations))


def flattened(agent: SB3Agent, observations: Tensor) -> SB3Agent:
    """Drop the last hidden layer that is left."""
    traced = trace(agent.policy.network, observations[:3])
    groups = layer_groups(traced)
    drop = {groups[-1].name: torch.tensor([False])}
    return agent.with_state(remove(traced, agent.state, groups, drop, ties=agent.ties, observations=observations))


PLAINLY = (
    "ppo/CartPole-v1 a2c/CartPole-v1 dqn/CartPole-v1 ppo/Pendulum-v1 ppo/Hopper-v3 dqn/MountainCar-v0 sac/Pendulum-v1 "
    "sac/HalfCheetah-v3 ddpg/Pendulum-v1 qrdqn/CartPole-v1"
).split()
"""Real agents of every algorithm that there are any of."""


@pytest.mark.slow
def test_smaller_agents_are_plain_zips(
    tmp_path: Path,
    load_agent: Callable[[str], SB3Agent],
    visit: Callable[..., np.ndarray],
    quick: Callable[[SB3Agent], SB3Agent],
) -> None:
    """Narrowed, and with hidden layers dropped, they load, act and train where this package is not installed."""
    cases = []
    for name in PLAINLY:
        dense = quick(load_agent(name))
        raw = visit(dense, 64)
        observations = heads.prepare(dense.policy, raw)
        narrow = narrowed(dense, observations)
        shallow = flattened(narrow, observations)
        for kind, small in (("narrow", narrow), ("shallow", shallow), ("linear", flattened(shallow, observations))):
            stem = f"{name.replace('/', '-')}-{kind}"
            path = tmp_path / f"{stem}.zip"
            small.save(path)
            statistics = path.with_name(f"{stem}_vecnormalize.pkl")
            assert statistics.exists() == (small.policy.normalizer is not None)
            np.save(tmp_path / f"{stem}.npy", raw)
            case = {
                "zip": str(path),
                "env": small.env.id,
                "algorithm": small.algorithm.upper(),
                "statistics": str(statistics) if statistics.exists() else "",
                "observations": str(tmp_path / f"{stem}.npy"),
                "actions": str(tmp_path / f"{stem}-actions.npy"),
            }
            cases.append((case, small, raw))
    script = [sys.executable, "-W", "ignore", "-c", PLAIN, json.dumps([case for case, _, _ in cases])]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for case, small, raw in cases:
        assert np.array_equal(np.load(case["actions"]), heads.act(small.policy, raw)), case["zip"]
        again = prunerl.load(case["zip"], env=small.env)
        assert all(torch.equal(t, again.state.tensors[n]) for n, t in small.state.tensors.items())
        assert again.state.tensors.keys() == small.state.tensors.keys()


def test_saving_leaves_the_agent_and_the_environment_specification_as_they_were(
    tmp_path: Path, load_agent: Callable[[str], SB3Agent]
) -> None:
    agent = load_agent("ppo/CartPole-v1")
    spec, before = agent.env, {n: t.clone() for n, t in agent.state.tensors.items()}
    agent.save(tmp_path / "agent.zip")
    again = prunerl.load(tmp_path / "agent.zip", env=spec)
    assert all(torch.equal(agent.state.tensors[n], t) for n, t in before.items())
    assert replace(again.env, id=spec.id) == spec  # type: ignore[type-var]
    assert environments.make(again.env).observation_space == agent.spaces[0]
