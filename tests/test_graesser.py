"""The replication harness: what is fast does what is plain, and runs are kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("graesser", "graesser_dqn", "graesser_update", "graesser_baselines"):
        sys.modules.pop(name, None)


class Stop(BaseCallback):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return bool(self.num_timesteps < self.steps)


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCar-v0"])
def test_episodes_in_lockstep_are_those_played_one_by_one(env: str) -> None:
    import graesser_dqn as own

    model = own.dqn(env, [32, 32], rate=1e-3, steps=100, seed=4)
    torch.nn.init.uniform_(own.linear(model.q_net)[-1].weight, -1.0, 1.0)
    plain = own.make(env)
    expected = []
    for seed in range(70, 76):
        observation, _ = plain.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = plain.step(int(action))
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
    assert own.play(model.q_net, [own.make(env) for _ in range(6)], 70).tolist() == expected
    assert env != "CartPole-v1" or len(set(expected)) > 1


def test_actions_are_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    import graesser_dqn as own

    trained = []
    for sampler in (own.TheirDQN._sample_action, DQN._sample_action):
        monkeypatch.setattr(own.TheirDQN, "_sample_action", sampler)
        model = own.dqn("CartPole-v1", [8, 8], rate=1e-2, steps=1300, seed=1)
        model.exploration_rate = model.exploration_initial_eps
        model.learn(1300)
        trained.append([p.detach().clone() for p in model.q_net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_minibatches_are_those_of_stable_baselines3() -> None:
    import graesser_dqn as own

    model = own.dqn("CartPole-v1", [6, 5], rate=1e-3, steps=1300, seed=2)
    model.learn(500)
    np.random.seed(7)
    expected = model.replay_buffer.sample(128)
    drawn = np.random.randint(1 << 30)
    np.random.seed(7)
    observations, actions, rewards, following, going = own.sample(model.replay_buffer, 128)
    assert np.random.randint(1 << 30) == drawn
    assert torch.equal(observations, expected.observations)
    assert torch.equal(actions, expected.actions[:, 0])
    assert torch.equal(rewards, expected.rewards[:, 0])
    assert torch.equal(following, expected.next_observations)
    assert torch.equal(going, 1 - expected.dones[:, 0])


def test_an_update_descends_the_squared_error_with_the_penalty_on_hidden_kernels() -> None:
    import graesser_dqn as own

    model = own.dqn("CartPole-v1", [6, 5], rate=1e-3, steps=1300, seed=2)
    model.learn(1000)
    state = np.random.get_state()
    batch = model.replay_buffer.sample(128)
    np.random.set_state(state)
    following = model.q_net_target(batch.next_observations).max(1, keepdim=True).values.detach()
    target = batch.rewards + (1 - batch.dones) * 0.99 * following
    values = model.q_net(batch.observations).gather(1, batch.actions)
    layers = own.linear(model.q_net)
    loss = functional.mse_loss(values, target) + 1e-6 * sum(m.weight.square().sum() for m in layers[:2])
    expected = torch.autograd.grad(loss, list(model.q_net.parameters()))
    model.train(1, 128)
    for parameter, gradient in zip(model.q_net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


@pytest.mark.parametrize("name", ["static-erk", "rigl-uniform"])
def test_sparse_networks_start_masked_and_scaled_by_what_is_left(name: str) -> None:
    import graesser
    import graesser_dqn as own

    model = own.dqn("MountainCar-v0", [64, 64], rate=1e-3, steps=2000, seed=0)
    callbacks = graesser.pruning(graesser.Cell("MountainCar-v0", name, 0.5, 1e-3, 0, 2000))
    model.learn(2000, callback=[*callbacks, Stop(50)])
    parameters = dict(model.policy.named_parameters())
    assert len(callbacks[0].masks) == 3
    for key, mask in callbacks[0].masks.items():
        weight = parameters[key].detach()
        assert torch.equal(weight != 0, mask)
        # Uniform within the limits: the variance is a third of their square.
        assert float((weight / own.limits(mask))[mask].abs().max()) <= 1.0
        assert float((weight / own.limits(mask))[mask].square().mean()) == pytest.approx(1 / 3, rel=0.3)
        assert torch.equal(parameters[key.replace("q_net.", "q_net_target.", 1)], weight)


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_the_narrow_network_has_as_many_parameters_at_most(sparsity: float) -> None:
    import graesser

    width = graesser.narrow(6, 3, sparsity)
    sparse = round((1 - sparsity) * 266_752) + 1027  # 6·512 + 512² + 512·3 weights and 1,027 biases
    assert graesser.parameters(6, width, 3) <= sparse < graesser.parameters(6, width + 1, 3)


@pytest.mark.slow
def test_runs_are_kept_and_baselines_come_from_the_dense_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import graesser
    import graesser_baselines

    monkeypatch.setattr(graesser, "WIDTH", 16)
    monkeypatch.setattr(graesser, "EVALUATIONS", 10)
    monkeypatch.setattr(graesser, "EPISODES", 3)
    monkeypatch.setattr(graesser_baselines, "UPDATES", 100)
    data = tmp_path / "runs.jsonl"
    arguments = ["graesser", "--envs", "CartPole-v1", "--sparsities", "0.5", "--seeds", "0", "--steps", "1500"]
    arguments += ["--rates", "0.001", "0.01", "--data", str(data), "--kept", str(tmp_path)]
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--methods", "linear", "stop-early", "gradual-erk", "narrow-tuned", "dense"]
    )
    graesser.main()
    runs: list[dict[str, Any]] = list(graesser.done(data).values())
    assert [r["method"] for r in runs].count("narrow-tuning") == 2
    assert {r["method"] for r in runs if r["seed"] == 0} == {
        *("linear", "stop-early", "gradual-erk", "narrow", "narrow-tuned", "dense")
    }
    by_name = {r["method"]: r for r in runs}
    assert by_name["linear"]["nonzero"] <= 10
    assert by_name["stop-early"]["nonzero"] <= 0.5 * (16 * 16 + 6 * 16) + 34
    assert by_name["stop-early"]["taken"] <= 750
    capsys.readouterr()
    monkeypatch.setattr(graesser, "run", None)  # nothing is run again
    graesser.main()
    printed = capsys.readouterr().out
    assert "| CartPole-v1 | 0.5 | gradual-erk | 0.001 | 1,500 | 1 |" in printed
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "100"])
    with pytest.raises(SystemExit):
        graesser.main()
