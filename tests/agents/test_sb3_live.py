"""What training and live models keep: masks, buffers, generators, statistics, schedules, stacked frames."""

from __future__ import annotations

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
from stable_baselines3 import A2C, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from test_sb3_table import (
    CASES,
    ON_POLICY,
    assert_acts_like,
    batch,
    cut_actor,
    observed,
    packed,
    taken,
    trained,
)
from torch import Tensor

import prunerl
from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.deploy.export import program_of
from prunerl.errors import LoadError, RemovalError, SpaceError, TrustError
from prunerl.types import EnvSpec, State

TINY: dict[str, Any] = {"device": "cpu", "seed": 0}


def loaded(source: Any, **options: Any) -> SB3Agent:
    agent = prunerl.load(source, **options)
    assert isinstance(agent, SB3Agent)
    return agent


@pytest.mark.parametrize(
    "name",
    ["ppo", "a2c", "dqn", "qrdqn", "sac", "td3", "tqc", "crossq", "trpo", "ars", "ppo_mask", "ppo_lstm", "td3-cnn"],
)
def test_masks_hold_and_all_else_moves(name: str) -> None:
    agent = taken(name)
    generator = torch.Generator().manual_seed(0)
    weights = [n for n, t in agent.state.tensors.items() if n.endswith("weight") and t.dim() > 1]
    masks = {n: torch.rand(agent.state.tensors[n].shape, generator=generator) < 0.4 for n in weights}
    masks = {n: masks.get(n.replace("_target.", "."), m) for n, m in masks.items()}
    tensors = {n: t * masks[n] if n in masks else t for n, t in agent.state.tensors.items()}
    after = agent.with_state(State(tensors, agent.state.moments, masks)).learn(CASES[name].steps, seed=1)
    for n, mask in masks.items():
        assert not after.state.tensors[n][~mask].any(), n
        moments = after.state.moments.get(n, {}).values()
        assert not any(m[~mask].any() for m in moments if m.shape == mask.shape), n
        assert not torch.equal(after.state.tensors[n], tensors[n]), n
    assert after.state.masks.keys() == masks.keys()


def test_a_live_models_buffer_and_generators_survive() -> None:
    model = trained("sac")
    agent = taken("sac")
    rebuilt: Any = agent.model()
    assert rebuilt.replay_buffer is model.replay_buffer
    size = model.replay_buffer.size()
    assert size > 0
    small: Any = cut_actor(agent)
    assert small.model().replay_buffer is model.replay_buffer
    first, second = agent.learn(8, seed=3), agent.learn(8, seed=3)
    assert model.replay_buffer.size() == size  # training goes on with a copy
    assert first.settings.live.replay_buffer.size() == size + 8
    assert all(torch.equal(t, second.state.tensors[n]) for n, t in first.state.tensors.items())
    wanted, got = (m.action_space.np_random.bit_generator.state for m in (model, rebuilt))
    assert wanted == got


@pytest.mark.parametrize("name", ["sac", "sac-fixed", "crossq", "tqc"])
def test_the_entropy_coefficient_and_its_optimizer_go_on(name: str) -> None:
    model, rebuilt = trained(name), cut_actor(taken(name)).model()
    assert rebuilt.target_entropy == model.target_entropy
    if name == "sac-fixed":
        assert torch.equal(rebuilt.ent_coef_tensor, model.ent_coef_tensor)
        return
    assert torch.equal(rebuilt.log_ent_coef, model.log_ent_coef)
    wanted, got = (m.ent_coef_optimizer.state_dict()["state"][0] for m in (model, rebuilt))
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(got[k])) for k, v in wanted.items())


def test_schedules_and_noise_are_read_without_pickles(tmp_path: Path) -> None:
    from stable_baselines3.common.utils import LinearSchedule

    policy = {"net_arch": [4]}
    model = PPO("MlpPolicy", "CartPole-v1", learning_rate=LinearSchedule(1e-3, 1e-5, 0.5), policy_kwargs=policy, **TINY)
    model.save(tmp_path / "agent.zip")
    agent = loaded(tmp_path / "agent.zip", env="CartPole-v1")
    assert agent.notes == ()
    assert [agent.model().lr_schedule(x) for x in (1.0, 0.7, 0.0)] == [model.lr_schedule(x) for x in (1.0, 0.7, 0.0)]
    for noise in (
        NormalActionNoise(np.zeros(1), 0.3 * np.ones(1)),
        OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)),
    ):
        SAC("MlpPolicy", "Pendulum-v1", action_noise=noise, policy_kwargs=policy, **TINY).save(tmp_path / "noisy.zip")
        rebuilt = loaded(tmp_path / "noisy.zip", env="Pendulum-v1").model()
        assert repr(rebuilt.action_noise) == repr(noise)


def test_a_function_as_learning_rate_survives_in_a_live_model(tmp_path: Path) -> None:
    def falling(left: float) -> float:
        return 0.01 * left

    model = PPO("MlpPolicy", "CartPole-v1", learning_rate=falling, policy_kwargs={"net_arch": [4]}, **TINY)
    assert loaded(model).model().lr_schedule(0.5) == 0.005
    model.save(tmp_path / "agent.zip")
    noted = loaded(tmp_path / "agent.zip", env="CartPole-v1")
    assert "learning rate is a pickled function" in noted.notes[0]
    assert loaded(tmp_path / "agent.zip", env="CartPole-v1", trust=True).model().lr_schedule(0.5) == 0.005


@pytest.mark.parametrize("keys", [None, ["vector"]])
def test_statistics_over_a_dict(tmp_path: Path, keys: Any) -> None:
    made = DummyVecEnv([lambda: gym.make("Toy-v0", observes="flat_dict", acts="box")])
    env = VecNormalize(made, norm_obs_keys=keys)
    model = PPO("MultiInputPolicy", env, policy_kwargs={"net_arch": [4]}, **TINY, **ON_POLICY).learn(32)
    agent = loaded(model)
    normalizer = agent.policy.normalizer
    assert normalizer is not None
    assert normalizer.where is not None
    assert normalizer.where.sum() == (7 if keys is None else 3)
    seen = observed(agent)
    wanted = model.predict(env.normalize_obs(batch(seen)), deterministic=True)[0]
    assert np.array_equal(heads.act(agent.policy, packed(agent, seen)), wanted)
    agent.save(tmp_path / "agent.zip")
    again = loaded(tmp_path / "agent.zip", env=agent.env)
    assert np.array_equal(heads.act(again.policy, packed(agent, seen)), wanted)
    assert again.learn(16, seed=0).policy.normalizer is not None


@pytest.mark.parametrize("observes", ["box", "picture", "flat_dict"])
def test_stacked_frames_are_recognised(observes: str) -> None:
    made = VecFrameStack(DummyVecEnv([lambda: gym.make("Toy-v0", observes=observes)]), 3)
    name = {"box": "MlpPolicy", "picture": "CnnPolicy", "flat_dict": "MultiInputPolicy"}[observes]
    model = A2C(name, made, policy_kwargs={"net_arch": [4]}, **TINY).learn(10)
    agent = loaded(model)
    assert agent.env.frame_stack == 3
    env = environments.make(agent.env)
    current, _ = env.reset(seed=0)
    for _ in range(4):
        wanted = model.predict(current, deterministic=True)[0]
        got = heads.act(agent.policy, environments.pack(env.observation_space, current)[None])[0]
        assert np.array_equal(got, wanted)
        current = env.step(0)[0]
    assert agent.learn(10, seed=0).env.frame_stack == 3


def test_statistics_from_before_the_stacking(tmp_path: Path) -> None:
    """Frames that fill up a stack are zero after the normalisation: to the bit what the library's wrappers give."""
    toy = [lambda: gym.make("Toy-v0")]
    env: Any = VecFrameStack(VecNormalize(DummyVecEnv(toy), clip_obs=1.5), 3)
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **TINY, **ON_POLICY).learn(32)
    agent = loaded(model)
    assert agent.env.frame_stack == 3
    assert agent.policy.normalizer is None
    assert "normalised before they are stacked" in agent.notes[0]
    told = " ".join(program_of(agent).notes)
    assert "clip((frame - mean) / sqrt(variance + 1e-08), -1.5, 1.5)" in told
    assert "3 frames, the newest last" in told
    agent.save(tmp_path / "agent.zip")
    statistics = VecNormalize.load(str(tmp_path / "agent_vecnormalize.pkl"), DummyVecEnv(toy))
    statistics.training = False
    plain, saved = VecFrameStack(statistics, 3), PPO.load(tmp_path / "agent.zip", device="cpu")
    again = loaded(tmp_path / "agent.zip", env=EnvSpec("Toy-v0", frame_stack=3))
    assert again.env == agent.env == loaded(tmp_path / "agent.zip", env=agent.env).env
    again.save(tmp_path / "again.zip")
    twice = VecNormalize.load(str(tmp_path / "again_vecnormalize.pkl"), DummyVecEnv(toy))
    for name in ("obs_rms", "ret_rms"):
        first, second = (getattr(s, name) for s in (statistics, twice))
        assert all(np.array_equal(getattr(first, k), getattr(second, k)) for k in ("mean", "var", "count"))
    assert twice.clip_obs == 1.5
    assert loaded(tmp_path / "again.zip", env=EnvSpec("Toy-v0", frame_stack=3)).env == agent.env
    plain.seed(0)
    theirs = [plain.reset()]
    actions = [saved.predict(theirs[0], deterministic=True)[0]]
    for _ in range(5):
        theirs.append(plain.step(actions[-1])[0])
        actions.append(saved.predict(theirs[-1], deterministic=True)[0])
    own = environments.make(again.env)  # only now: the toys draw from one space
    ours, _ = own.reset(seed=0)
    for wanted, action in zip(theirs, actions, strict=True):
        assert np.array_equal(wanted[0], ours)
        assert np.array_equal(heads.act(again.policy, ours[None]), action)
        ours = own.step(action[0])[0]
    after = again.learn(16, seed=0)
    assert not torch.equal(after.state.tensors["action_net.weight"], agent.state.tensors["action_net.weight"])
    assert np.array_equal(after.settings.normalization["obs_rms"]["mean"], statistics.obs_rms.mean)  # type: ignore[index]
    images = VecFrameStack(VecNormalize(DummyVecEnv([lambda: gym.make("Toy-v0", observes="image")])), 2)
    with pytest.raises(SpaceError, match="images or dicts that were taken before frames were stacked"):
        prunerl.load(PPO("MlpPolicy", images, policy_kwargs={"net_arch": [4]}, **TINY))


class Own(ActorCriticPolicy):
    """Another name, and other defaults."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "net_arch": [7]})


class Louder(Own):
    """Says something else than its network."""

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return super()._predict(observation, deterministic) + 1


class Rebuilt(Own):
    """Other activations, which no tensor shows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mlp_extractor.policy_net[1] = torch.nn.Sigmoid()


class Optimized(Own):
    """Another optimizer, whose moments are others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "optimizer_class": torch.optim.RMSprop})


class Patched(Own):
    """Says something else than its network, by a function put in place of a method."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._predict = lambda observation, deterministic=False: torch.zeros(len(observation))  # type: ignore[method-assign]


class Frozen(Own):
    """Never trains its last layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.value_net.requires_grad_(False)


class Hooked(Own):
    """Says something else than its network, by a hook."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.action_net.register_forward_hook(lambda module, given, made: -made)


OTHERS = {
    Louder: "Louder overrides _predict.*",
    Rebuilt: "Rebuilt builds another 'mlp_extractor' than ActorCriticPolicy.*",
    Optimized: "Optimized has another 'optimizer' than ActorCriticPolicy.*",
    Patched: "Patched has another '_predict' than ActorCriticPolicy.*",
    Frozen: "Frozen trains other parameters, 'value_net.weight', than ActorCriticPolicy.*",
    Hooked: "Hooked acts otherwise than ActorCriticPolicy.*",
}


@pytest.mark.parametrize("cls", OTHERS)
def test_a_policy_class_of_ones_own_that_adds_something_is_refused(cls: type[ActorCriticPolicy]) -> None:
    model = PPO(cls, gym.make("Toy-v0"), **TINY, **ON_POLICY)
    with pytest.raises(LoadError, match=OTHERS[cls] + "from_module"):
        prunerl.load(model)


def test_a_policy_class_of_ones_own_that_adds_nothing(tmp_path: Path) -> None:
    def tiny(policy: Any) -> PPO:
        return PPO(policy, gym.make("Toy-v0"), **TINY, **ON_POLICY)

    model = tiny(Own)
    agent = loaded(model)
    assert agent.notes[-1] == "Its policy class Own is saved as ActorCriticPolicy, to which it adds nothing."
    assert_acts_like(agent, model)
    model.save(tmp_path / "own.zip")
    with pytest.raises(TrustError, match=r"a class of 'test_sb3_live'.*--trust"):
        prunerl.load(tmp_path / "own.zip", env="Toy-v0")
    assert_acts_like(loaded(tmp_path / "own.zip", env=EnvSpec("Toy-v0"), trust=True), model)
    cut_actor(agent).save(tmp_path / "small.zip")
    assert type(PPO.load(tmp_path / "small.zip", device="cpu").policy) is ActorCriticPolicy


def test_hindsight_goes_on(tmp_path: Path) -> None:
    env = gym.make("Goal-v0")
    options: dict[str, Any] = {"learning_starts": 24, "buffer_size": 200, "batch_size": 8, "train_freq": 4}
    chosen = {"n_sampled_goal": 2, "goal_selection_strategy": "final"}
    model = SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs=chosen,
        policy_kwargs={"net_arch": [8]},
        **options,
        **TINY,
    ).learn(36)
    small = cut_actor(loaded(model))
    live: Any = small.model()
    assert live.replay_buffer is model.replay_buffer
    after = small.learn(12, seed=0)
    assert after.settings.live.replay_buffer.her_ratio == pytest.approx(2 / 3)
    assert after.settings.live.replay_buffer.size() >= 12
    assert model.replay_buffer.size() == 36
    assert model.replay_buffer.env is model.env
    small.save(tmp_path / "agent.zip")
    again = loaded(tmp_path / "agent.zip", env="Goal-v0")
    assert again.notes == ()
    assert again.settings.arguments["replay_buffer_class"] is HerReplayBuffer
    assert again.settings.arguments["replay_buffer_kwargs"] == chosen
    plain: Any = SAC.load(tmp_path / "agent.zip", env=env, device="cpu")
    assert type(plain.replay_buffer) is HerReplayBuffer
    plain.learn(35)
    assert again.learn(35, seed=0).state.tensors.keys() == small.state.tensors.keys()


def test_layers_of_an_lstm_keep_one_width() -> None:
    agent = taken("ppo_lstm-two")
    tensors = dict(agent.state.tensors)
    tensors["lstm_actor.weight_hh_l1"] = torch.zeros(4 * 5, 5)
    with pytest.raises(RemovalError, match="one width for all LSTM layers"):
        agent.with_state(replace(agent.state, tensors=tensors))


def test_a_narrowed_extractor_can_stay_importable(tmp_path: Path) -> None:
    small = cut_actor(taken("ppo-cnn"))
    for portable in (True, False):
        path = tmp_path / f"{portable}.zip"
        small.save(path, portable=portable)
        assert_acts_like(small, PPO.load(path, device="cpu"))
        assert_acts_like(loaded(path, env=small.env), small.model())
    assert (tmp_path / "True.zip").stat().st_size > (tmp_path / "False.zip").stat().st_size
    assert small.model().policy_kwargs["features_extractor_kwargs"]["base"] == "NatureCNN"


def test_other_convolutions_under_the_names_of_known_ones_are_refused(tmp_path: Path) -> None:
    wide = trained("ppo-cnn")
    wide.policy_kwargs, kept = {**wide.policy_kwargs, "features_extractor_class": toy_env.Custom}, wide.policy_kwargs
    try:
        wide.save(tmp_path / "agent.zip")
    finally:
        wide.policy_kwargs = kept
    with pytest.raises(LoadError, match=r"--trust"):
        prunerl.load(tmp_path / "agent.zip", env=EnvSpec("Toy-v0", {"observes": "picture"}))


def test_sb3_contrib_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("trpo").save(tmp_path / "agent.zip")
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(LoadError, match=r"TRPO belongs to sb3-contrib.*pip install sb3-contrib"):
        prunerl.load(tmp_path / "agent.zip", env=EnvSpec("Toy-v0", {"acts": "box"}))


def test_quantiles_merge_into_their_mean(load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]) -> None:
    """QR-DQN acts by the mean of its quantiles, so one row an action is enough, and it trains on with that."""
    agent = load_agent("qrdqn/CartPole-v1")
    merged = agent.simplified()
    seen = inputs(agent)
    torch.testing.assert_close(merged.policy.network(seen), agent.policy.network(seen), rtol=1e-5, atol=1e-4)
    assert merged.state.tensors["quantile_net.quantile_net.4.weight"].shape == (2, 256)
    assert merged.state.tensors["quantile_net_target.quantile_net.4.bias"].shape == (2,)
    assert any("10 quantiles" in note for note in merged.notes)
    assert merged.simplified() is merged
    assert merged.learn(40, seed=0).state.tensors.keys() == agent.state.tensors.keys()
    other = load_agent("dqn/CartPole-v1")
    assert other.simplified() is other
