"""The callback: when it shrinks, what it refuses, what it logs, and that agents learn with it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_contrib import ARS, CrossQ
from shrinking import STEPS, WIDE, again, made, optimized
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from prunerl import masks
from prunerl.errors import BudgetError, LearnError, LearnWarning
from prunerl.train import AdaptiveShrink, Checkpoint, Reached, Static, resume
from prunerl.train.shrink import Shrink, time_ratio


def arch(model: Any) -> Any:
    return model.policy_kwargs["net_arch"]


def test_the_bound_is_what_it_says() -> None:
    assert time_ratio(0.4, 0.32) == pytest.approx(0.592)
    assert time_ratio(0.0, 0.41) == 0.41
    assert time_ratio(1.0, 0.41) == 1.0


def test_units_go_at_the_points_of_the_schedule() -> None:
    model = made("ppo")
    callback = Shrink(at=(0.25, 0.5), width=(12, (6, 5)), critic_width=(16, 8))
    model.learn(256, callback=callback)
    assert [change.step for change in callback.changes] == [64, 128]
    assert [change.widths["pi"] for change in callback.changes] == [(12, 12), (6, 5)]
    assert arch(model) == {"pi": [6, 5], "vf": [8, 8]}
    assert callback.changes[1].parameters == sum(p.numel() for p in model.policy.parameters())


def test_an_off_policy_change_waits_for_learning_to_start() -> None:
    model = made("dqn")
    callback = Shrink(at=0.1, width=8)
    model.learn(STEPS, callback=callback)
    assert [change.step for change in callback.changes] == [44]  # the first rollout of four steps after step 40


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("ppo", 64, {"at": 0.9}, "at step 58, but the last rollout of 32 steps begins at step 32"),
        ("ppo", 32, {"at": 0.2}, "the first has to end before"),
        ("dqn", 40, {"at": 0.2}, "ends at step 40, before learning starts at step 40"),
    ],
)
def test_a_point_that_no_rollout_follows_is_refused(name: str, steps: int, options: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        made(name).learn(steps, callback=Shrink(width=8, **options))


def test_a_point_that_was_not_reached_in_time_is_told_of() -> None:
    model = made("td3")
    model.train_freq = TrainFreq(1, TrainFrequencyUnit.EPISODE)  # 200 steps
    with pytest.warns(LearnWarning, match=r"Nothing was removed at 0\.5 of training"):
        model.learn(190, callback=Shrink(at=0.5, width=8))


def test_a_first_point_that_changes_nothing_is_passed_over() -> None:
    model = made("ppo", [8, 8])
    callback = Shrink(at=(0.25, 0.5), width=(8, 4))
    model.learn(256, callback=callback)
    assert [change.step for change in callback.changes] == [128]


def test_a_condition_that_never_held_is_told_of() -> None:
    with pytest.warns(LearnWarning, match=r"Nothing was removed: .*Reached\(returned=1000"):
        made("ppo").learn(64, callback=Shrink(at=Reached(1000.0), width=8))


def test_a_masked_model_is_left_as_it_is() -> None:
    model = made("dqn")
    model.learn(STEPS, callback=Static(sparsity=0.5))
    before = arch(model)
    with pytest.raises(LearnError, match=r"by callback\.course\.end\(\), or by saving it"):
        model.learn(STEPS, callback=Shrink(at=0.6, width=8))
    for shrinking, order in itertools.product((AdaptiveShrink(), Shrink(width=8)), (1, -1)):
        model, shrinking.live = made("dqn"), None
        with pytest.raises(LearnError, match="Weights of this model are masked"):
            model.learn(STEPS, callback=[shrinking, Static(sparsity=0.5)][::order])
        assert model.num_timesteps == 0
        assert arch(model) == before == WIDE
    model = made("dqn")
    first = "q_net.q_net.0.weight"
    masks.attach(model.policy, {first: torch.ones_like(model.policy.get_parameter(first), dtype=torch.bool)})
    with pytest.raises(LearnError, match="Weights of this model are masked"):
        model.learn(STEPS, callback=Shrink(width=8))


def test_points_of_equal_widths_go_on_in_another_process(tmp_path: Path) -> None:
    model = made("ppo")
    model.learn(320, callback=Checkpoint(tmp_path, Shrink(at=(0.2, 0.8), width=(8, 8)), every=200))
    resumed = resume(tmp_path)
    assert resumed.callback.callback.done == 1
    resumed.learn()
    assert resumed.callback.callback.done == 2


def test_equal_seeds_give_equal_results() -> None:
    found = []
    for _ in range(2):
        model = made("sac")
        model.learn(STEPS, callback=Shrink(at=0.5, width=8, distill=3))
        found.append(model.policy.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_second_learn_goes_on_and_a_reset_starts_anew() -> None:
    model = made("ppo")
    callback = Shrink(at=0.5, width=8)
    model.learn(128, callback=callback)
    model.learn(128, callback=callback, reset_num_timesteps=False)
    assert len(callback.changes) == 1
    callback = Shrink(at=0.5, width=4)
    model.learn(128, callback=callback)
    model.learn(128, callback=callback)
    assert len(callback.changes) == 1
    assert arch(model) == {"pi": [4, 4], "vf": [4, 4]}


def test_a_saved_model_trains_on_with_a_new_callback(tmp_path: Path) -> None:
    model = made("ppo")
    model.learn(128, callback=Shrink(at=(0.25, 0.5), width=(12, 6)))
    model.save(tmp_path / "model.zip")
    loaded = again("ppo", tmp_path / "model.zip")
    callback = Shrink(at=(0.25, 0.5), width=(12, 6))
    loaded.learn(64, callback=callback, reset_num_timesteps=False)
    assert callback.changes == []
    assert arch(loaded) == {"pi": [6, 6], "vf": [6, 6]}


def test_widths_parameters_and_time_are_logged(tmp_path: Path) -> None:
    model = made("ppo")
    model.set_logger(Logger(None, [CSVOutputFormat(str(tmp_path / "log.csv"))]))
    model.learn(128, callback=Shrink(at=0.5, width=8))
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    columns = {key: [row[i] for row in rows[1:]] for i, key in enumerate(rows[0])}
    assert columns["shrink/pi_0"] == [str(WIDE[0])] * 2 + ["8"] * 2
    assert columns["shrink/vf_1"] == [str(WIDE[1])] * 2 + ["8"] * 2
    assert int(columns["shrink/parameters"][-1]) == sum(p.numel() for p in model.policy.parameters())
    assert [float(value) > 0.0 for value in columns["shrink/time_share"]] == [False, False, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": (0.5, 0.2), "width": (8, 4)}, "ends before it starts"),
        ({"at": 1.5}, "ends before it starts, or lies outside"),
        ({"at": (0.2, 0.5), "width": (8,)}, "one width for each point"),
        ({"at": (0.2, 0.5), "width": 8}, "one width for each point"),
        ({"at": (0.2, 0.5), "width": (16, 32)}, "cannot grow at a later point"),
        ({"at": (0.2, 0.5), "width": ((16, 8), (8, 9))}, "cannot grow at a later point"),
        ({"at": (0.2, 0.5), "width": (8, (8, 9))}, "cannot grow at a later point"),
        ({"width": 0}, "cannot be without units"),
        ({"states": 1}, "states=1"),
        ({"distill": -1}, "distill=-1"),
    ],
)
def test_amounts_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Shrink(**options)


@pytest.mark.parametrize(
    ("width", "message"),
    [(64, "cannot shrink to"), ((8, 8, 8), "hidden layers of"), (tuple(WIDE), "nothing to shrink")],
)
def test_widths_that_do_not_fit_are_refused_before_the_first_step(width: Any, message: str) -> None:
    model = made("ppo")
    with pytest.raises(BudgetError, match=message):
        model.learn(64, callback=Shrink(width=width))
    assert model.num_timesteps == 0


def test_a_callback_serves_one_model() -> None:
    callback = Shrink(width=8)
    made("ppo").learn(64, callback=callback)
    with pytest.raises(LearnError, match="another model"):
        made("ppo").learn(64, callback=callback)


def test_what_cannot_shrink_says_why() -> None:
    with pytest.raises(LearnError, match="ARS has no optimizer"):
        ARS("MlpPolicy", "CartPole-v1", n_delta=2, device="cpu").learn(16, callback=Shrink(width=8))
    with pytest.raises(LearnError, match="BatchRenorm"):
        CrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, device="cpu").learn(
            8, callback=Shrink(width=8)
        )
    with pytest.raises(LearnError, match="no hidden layer"):
        made("ppo", []).learn(64, callback=Shrink(width=8))


@pytest.mark.slow
def test_an_agent_learns_while_it_shrinks() -> None:
    env = make_vec_env("CartPole-v1", 8, seed=0)
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 10}
    model = PPO("MlpPolicy", env, learning_rate=1e-3, policy_kwargs={"net_arch": [64, 64]}, seed=0, **options)
    model.learn(30_000, callback=Shrink(at=(0.3, 0.5), width=(32, 16)))
    assert arch(model) == {"pi": [16, 16], "vf": [16, 16]}
    returned, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=1), n_eval_episodes=10)
    assert returned >= 195.0
    owned = {id(p) for o in optimized(model) for group in o.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.policy.parameters()}
