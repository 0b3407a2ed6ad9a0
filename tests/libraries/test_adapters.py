"""Each section of ``docs/adapters.md`` gives an agent that acts as its library does, also when it is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl import check_agent, environments, heads
from prunerl.agents.module import ModuleAgent, load_module
from prunerl.remove import remove
from prunerl.trace import trace, unit_groups

Section = Callable[..., dict[str, Any]]


def seen(agent: ModuleAgent, count: int = 32) -> np.ndarray:
    env = environments.make(agent.env)
    env.reset(seed=0)
    env.action_space.seed(0)
    found = np.stack([env.step(env.action_space.sample())[0] for _ in range(count)])
    env.close()
    return found


def check(agent: ModuleAgent, losses: Sequence[Callable[[Any, Tensor], Tensor]], folder: Path, model: Any) -> Any:
    """Check an agent; return the small module. ``losses`` are those of its optimizers, in order."""
    (note,) = check_agent(agent, episodes=1)
    assert "cannot be trained on" in note
    inputs = heads.prepare(agent.policy, seen(agent))
    traced = trace(agent.policy.network, inputs)
    groups = unit_groups(traced, agent.state.tensors)
    decision = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    smaller = agent.with_state(remove(traced, agent.state, groups, decision, ties=agent.ties, observations=inputs))
    live = smaller.module()
    assert type(live) is type(model)
    smaller.save(folder / "small.safetensors")
    again = load_module(folder / "small.safetensors", model, forward=agent.adapter.forward)
    assert np.array_equal(heads.act(again.policy, seen(agent)), heads.act(smaller.policy, seen(agent)))
    for index, loss in enumerate(losses):
        optimizer = smaller.optimizer(live, index)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in trained]
        loss(live, inputs).square().mean().backward()
        optimizer.step()
        assert trained
        assert not any(torch.equal(p, was) for p, was in zip(trained, before, strict=True))
    return live


def test_cleanrl_ppo(section: Section, tmp_path: Path) -> None:
    def trained(names: dict[str, Any]) -> None:
        names["env"].action_space.seed(0)
        names["env"].reset(seed=0)
        for _ in range(150):
            names["env"].step(names["env"].action_space.sample())

    names = section("CleanRL, PPO with continuous actions", trained)
    agent, model, env = names["agent"], names["model"], names["env"]
    env.get_wrapper_attr("set_wrapper_attr")("update_running_mean", False)
    observation, _ = env.reset(seed=1)
    raw = environments.make(agent.env)
    own, _ = raw.reset(seed=1)
    for _ in range(50):
        with torch.no_grad():
            action = model.actor_mean(torch.as_tensor(observation)[None].float())
        (ours,) = heads.act(agent.policy, own[None])
        assert np.allclose(ours, np.clip(action[0].numpy(), -2, 2), atol=1e-5)
        observation, *_ = env.step(action[0].numpy())
        own, *_ = raw.step(ours)
    live = check(agent, [lambda m, x: m.actor_mean(x) + m.critic(x) + m.actor_logstd + 1.0], tmp_path, model)
    assert live.actor_mean[2].in_features == 32
    assert live.critic[2].in_features == 64


def test_cleanrl_dqn(section: Section, tmp_path: Path) -> None:
    names = section("CleanRL, DQN")
    agent = names["agent"]
    x = torch.as_tensor(seen(agent))
    assert np.array_equal(heads.act(agent.policy, seen(agent)), names["q_network"](x).argmax(1).numpy())
    model = nn.ModuleDict({"q_network": names["QNetwork"](), "target_network": names["QNetwork"]()})
    check(agent, [lambda m, x: m["q_network"](x)], tmp_path, model)


def test_cleanrl_sac(section: Section, tmp_path: Path) -> None:
    names = section("CleanRL, SAC")
    agent, actor = names["agent"], names["actor"]
    with torch.no_grad():
        mean, _ = actor(torch.as_tensor(seen(agent)))
    wanted = torch.tanh(mean) * actor.action_scale + actor.action_bias
    assert np.allclose(heads.act(agent.policy, seen(agent)), wanted.numpy(), atol=1e-6)
    parts = {"actor": names["Actor"]()}
    parts |= {name: names["SoftQNetwork"]() for name in ("qf1", "qf2", "qf1_target", "qf2_target")}

    def values(module: Any, x: Tensor) -> Tensor:
        action = module["actor"](x)[0].detach()
        result: Tensor = module["qf1"](x, action) + module["qf2"](x, action)
        return result

    live = check(agent, [lambda m, x: sum(m["actor"](x)), values], tmp_path, nn.ModuleDict(parts))
    assert live["actor"].fc_logstd.in_features == 128


def test_torchrl(section: Section, tmp_path: Path) -> None:
    pytest.importorskip("torchrl")
    from tensordict import TensorDict
    from torchrl.envs.utils import ExplorationType, set_exploration_type

    names = section("TorchRL")
    agent, actor = names["agent"], names["actor"]
    data = TensorDict({"observation": torch.as_tensor(seen(agent))}, batch_size=[32])
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        wanted = actor(data)["action"]
    assert np.allclose(heads.act(agent.policy, seen(agent)), wanted.numpy(), atol=1e-4)
    check(agent, [lambda m, x: sum(m[0](observation=x))], tmp_path, actor)


def test_skrl(section: Section, tmp_path: Path) -> None:
    pytest.importorskip("skrl")

    def trained(names: dict[str, Any]) -> None:
        torch.manual_seed(0)
        names["preprocessor"](torch.randn(500, 3) * torch.tensor([0.5, 1.0, 4.0]) + 1.0, train=True)

    names = section("skrl", trained)
    agent, policy = names["agent"], names["policy"]
    with torch.no_grad():
        inputs = names["preprocessor"](torch.as_tensor(seen(agent)))
        wanted = policy.act({"observations": inputs}, role="policy")[1]["mean_actions"]
    assert np.allclose(heads.act(agent.policy, seen(agent)), wanted.clamp(-2, 2).numpy(), atol=1e-5)
    live = check(agent, [lambda m, x: m.compute({"observations": x}, "")[0] + m.log_std + 1.0], tmp_path, policy)
    assert live.act({"observations": inputs}, role="policy")[0].shape == (32, 1)


def test_tianshou(section: Section, tmp_path: Path) -> None:
    pytest.importorskip("tianshou")
    from tianshou.data import Batch

    names = section("Tianshou")
    agent, policy = names["agent"], names["policy"]
    wanted = policy(Batch(obs=seen(agent), info=Batch())).act
    assert np.array_equal(heads.act(agent.policy, seen(agent)), np.asarray(wanted))
    live = check(agent, [lambda m, x: m(x)[0]], tmp_path, policy.model)
    smaller = names["DiscreteQLearningPolicy"](model=live, action_space=gym.spaces.Discrete(2))
    assert np.asarray(smaller(Batch(obs=seen(agent), info=Batch())).act).shape == (32,)


def test_rllib(section: Section, tmp_path: Path) -> None:
    pytest.importorskip("ray.rllib")
    names = section("RLlib")
    agent, module = names["agent"], names["rl_module"]
    batch = {"obs": torch.as_tensor(seen(agent))}
    with torch.no_grad():
        wanted = module.forward_inference(batch)["action_dist_inputs"].argmax(1)
    assert np.array_equal(heads.act(agent.policy, seen(agent)), wanted.numpy())

    def loss(live: Any, x: Tensor) -> Tensor:
        value: Tensor = live.compute_values({"obs": x})[:, None]
        return live.forward_train({"obs": x})["action_dist_inputs"] + value

    live = check(agent, [loss], tmp_path, module)
    assert live.forward_inference(batch)["action_dist_inputs"].shape == (32, 2)
