"""Hidden layers that go while a model learns, and conditions on when."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shrinking import STEPS, again, made, observations, optimized, outputs

from prunerl.errors import BudgetError, LearnError
from prunerl.train import AdaptiveShrink, Reached, Shrink


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn", "sac", "td3", "tqc"])
def test_a_shallower_model_is_one_of_plain_stable_baselines_and_learns_on(name: str, tmp_path: Path) -> None:
    model = made(name, [24, 20, 16])
    callback = Shrink(at=0.5, width=9, depth=1, distill=2)
    model.learn(STEPS, callback=callback)
    assert all(layers == (9,) for layers in callback.changes[0].widths.values())
    model.save(tmp_path / "model.zip")
    loaded = again(name, tmp_path / "model.zip")
    wanted, got = outputs(model), outputs(loaded)
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    seen = observations(model).numpy()
    assert np.array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    model.policy.set_training_mode(True)
    model.learn(STEPS, callback=callback, reset_num_timesteps=False)
    assert len(callback.changes) == 1
    assert all(not torch.equal(p, before[n]) for n, p in model.policy.named_parameters())
    live = {id(p) for p in model.policy.parameters()}
    assert all(id(p) in live for o in optimized(model) for group in o.param_groups for p in group["params"])
    assert all(id(p) in live for o in optimized(model) for p in o.state)


def test_a_layer_that_does_nothing_goes_without_a_trace() -> None:
    model = made("dqn", [6, 6])
    layers = model.policy.q_net.q_net
    with torch.no_grad():
        layers[2].weight.copy_(torch.eye(6))  # a second rectifier leaves what the first one let through
        layers[2].bias.zero_()
    model.policy.q_net_target.load_state_dict(model.policy.q_net.state_dict())
    model.lr_schedule = lambda _: 0.0
    model.learning_rate = 0.0
    seen = observations(model)
    wanted = model.policy.q_net(seen).detach()
    hidden = layers[0].weight.detach().clone()
    callback = Shrink(at=0.5, width=6, depth=1)
    model.learn(STEPS, callback=callback)
    assert len(layers) == 3
    assert torch.equal(layers[0].weight, hidden)
    visited = torch.from_numpy(model.replay_buffer.observations[:STEPS, 0])
    old = torch.relu(visited @ hidden.T + layers[0].bias)
    assert callback.changes[0].differences["q"] < 1e-3
    for network in (model.policy.q_net, model.policy.q_net_target):
        assert torch.allclose(network(visited), old @ network.q_net[2].weight.T + network.q_net[2].bias, atol=1e-5)
    assert wanted.shape == model.policy.q_net(seen).shape


@pytest.mark.parametrize("depth", [1, None])
def test_a_ridge_keeps_the_refitted_weights_small(depth: int | None) -> None:
    norms = []
    for ridge in (1e-6, 0.1):
        model = made("dqn", [24, 20, 16])
        model.lr_schedule = lambda _: 0.0
        model.learning_rate = 0.0
        model.learn(STEPS, callback=Shrink(at=0.5, width=12, depth=depth, ridge=ridge))
        networks = (model.policy.q_net, model.policy.q_net_target)
        norms.append([float(network.q_net[-1].weight.detach().norm()) for network in networks])
    assert all(small < large for large, small in zip(*norms, strict=True))


@pytest.mark.parametrize("callback", [Shrink, AdaptiveShrink])
def test_a_ridge_of_zero_is_refused(callback: type) -> None:
    with pytest.raises(BudgetError, match="ridge=0"):
        callback(ridge=0)


def test_layers_that_cannot_go_are_refused_and_the_model_stays() -> None:
    model = made("sac-gsde")
    before = {n: p.shape for n, p in model.policy.named_parameters()}
    with pytest.raises(LearnError, match="gSDE makes the noise"):
        model.learn(STEPS, callback=Shrink(at=0.6, width=8, depth=1))
    assert {n: p.shape for n, p in model.policy.named_parameters()} == before
    with pytest.raises(BudgetError, match="2 hidden layers or fewer, got depth=3"):
        made("ppo").learn(64, callback=Shrink(width=8, depth=3))
    with pytest.raises(BudgetError, match="depth=0"):
        Shrink(depth=0)


def test_units_go_once_when_the_condition_holds_first() -> None:
    asked: list[int] = []

    def late(model: Any) -> bool:
        asked.append(model.num_timesteps)
        return bool(model.num_timesteps >= 64)

    model = made("ppo")
    callback = Shrink(at=late, width=8)
    model.learn(128, callback=callback)
    assert [change.step for change in callback.changes] == [64]
    assert asked == [0, 32, 64]


def test_a_return_is_reached_by_the_mean_of_the_last_episodes() -> None:
    played = SimpleNamespace(ep_info_buffer=deque([{"r": 0.0}, {"r": 9.0}, {"r": 11.0}], maxlen=5))
    assert Reached(10.0, episodes=2)(played)
    assert not Reached(10.1, episodes=2)(played)
    assert not Reached(5.0, episodes=4)(played)  # so many did not end yet
    with pytest.raises(BudgetError, match="keeps its last 5 returns"):
        Reached(1.0, episodes=6)(played)
    with pytest.raises(BudgetError, match="episodes=0"):
        Reached(1.0, episodes=0)
