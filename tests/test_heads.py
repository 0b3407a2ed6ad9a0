"""Heads act as the agent's own library does, and their divergences are those worked out by hand."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from prunerl import environments, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.types import Head, Normalizer

CATEGORICAL = Head("categorical", sizes=(2, 3))
BERNOULLI = Head("bernoulli", shape=(2,))
Q_VALUES = Head("q_values", sizes=(3,))
GAUSSIAN = Head("gaussian", low=np.array([-1.0, -2.0]), high=np.array([1.0, 2.0]), std=np.array([0.5, 2.0]), shape=(2,))


def test_actions_are_those_of_stable_baselines3(real: SB3Agent, visit: Callable[..., np.ndarray]) -> None:
    model = real.model()
    visited = visit(real, 200)
    spread = np.random.default_rng(0).normal(size=(200, *visited.shape[1:])) * 2.0
    for raw in (visited, spread.astype(visited.dtype)):
        # The model sees what VecNormalize would hand it; without statistics that is the observation itself.
        seen = heads.normalize(real.policy.normalizer, raw)
        wanted = model.predict(seen, deterministic=True)[0]
        got = heads.act(real.policy, raw)
        assert got.shape == wanted.shape
        assert np.array_equal(got, wanted)


class Unpickler(pickle.Unpickler):
    """The library's own way of reading statistics, but for the spaces of the ``gym`` era, which is not installed."""

    def find_class(self, module: str, name: str) -> Any:
        return SimpleNamespace if module.split(".", maxsplit=1)[0] == "gym" else super().find_class(module, name)


def test_raw_observations_pass_the_statistics_as_in_vec_normalize(
    load_agent: Callable[[str], SB3Agent], zip_of: Callable[[str], Path], visit: Callable[..., np.ndarray]
) -> None:
    agent = load_agent("ppo/Hopper-v3")
    statistics = zip_of("ppo/Hopper-v3").with_suffix("") / "vecnormalize.pkl"
    with statistics.open("rb") as file:
        theirs = Unpickler(file).load()
    raw = visit(agent, 300)
    made = VecNormalize(DummyVecEnv([lambda: environments.make(agent.env)]), training=False)
    made.obs_rms, made.clip_obs, made.epsilon = theirs.obs_rms, theirs.clip_obs, theirs.epsilon
    wanted = made.normalize_obs(raw)
    got = heads.normalize(agent.policy.normalizer, raw)
    assert got.dtype == wanted.dtype
    assert np.array_equal(got, wanted)
    assert np.array_equal(heads.act(agent.policy, raw), agent.model().predict(wanted, deterministic=True)[0])
    made.close()


def test_normalisation_worked_out() -> None:
    statistics = Normalizer(np.array([1.0, 0.0]), np.array([4.0, 1e-4]), epsilon=0.0, clip=5.0)
    assert heads.normalize(statistics, np.array([[2.0, 3.0], [-1.0, -0.01]])).tolist() == [[0.5, 5.0], [-1.0, -1.0]]
    assert heads.normalize(None, np.array([[2, 3]])).tolist() == [[2, 3]]


def test_actions_worked_out() -> None:
    output = torch.tensor([[0.0, 1.0, 5.0, 3.0, 4.0], [2.0, 1.0, 0.0, 0.0, 1.0]])
    assert heads.actions(Head("categorical", sizes=(2, 3), shape=(2,)), output).tolist() == [[1, 0], [0, 2]]
    assert heads.actions(BERNOULLI, torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 1]]
    assert heads.actions(GAUSSIAN, torch.tensor([[-3.0, 1.5]])).tolist() == [[-1.0, 1.5]]
    squashed = Head("gaussian", low=np.array([0.0]), high=np.array([4.0]), squashed=True, shape=(1,))
    assert heads.actions(squashed, torch.tensor([[0.0], [50.0], [-50.0]])).tolist() == [[2.0], [4.0], [0.0]]
    matrix = Head("gaussian", low=np.full((2, 2), -1.0), high=np.full((2, 2), 1.0), shape=(2, 2))
    assert heads.actions(matrix, torch.tensor([[0.0, 2.0, -2.0, 0.5]])).tolist() == [[[0.0, 1.0], [-1.0, 0.5]]]


def test_equal_scores_choose_the_first_action() -> None:
    assert heads.actions(Head("q_values", sizes=(3,)), torch.zeros(1, 3)).tolist() == [0]


def test_divergence_of_categorical_actions_worked_out() -> None:
    dense = torch.tensor([[0.0, math.log(3.0), 0.0, 0.0, 0.0]])  # 1/4 and 3/4; thirds
    pruned = torch.tensor([[0.0, 0.0, 0.0, 0.0, math.log(2.0)]])  # halves; 1/4, 1/4, 1/2
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    second = 2 / 3 * math.log((1 / 3) / 0.25) + 1 / 3 * math.log((1 / 3) / 0.5)
    found = heads.divergence(CATEGORICAL, dense, pruned)
    assert found.tolist() == pytest.approx([first + second], rel=1e-5)


def test_divergence_of_binary_actions_worked_out() -> None:
    dense, pruned = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert heads.divergence(BERNOULLI, dense, pruned).tolist() == pytest.approx([wanted], rel=1e-5)


def test_divergence_of_q_values_worked_out() -> None:
    """At temperature 0.1 times a scale of 10, a gap of log 3 means odds of 3 to 1."""
    dense = torch.tensor([[math.log(3.0), 0.0, -1e9]])
    pruned = torch.tensor([[0.0, 0.0, -1e9]])
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert heads.divergence(Q_VALUES, dense, pruned, scale=10.0).tolist() == pytest.approx([wanted], rel=1e-5)
    shifted = heads.divergence(Q_VALUES, dense, pruned + 100.0, scale=10.0)  # a shift of all actions chooses the same
    assert shifted.tolist() == pytest.approx([wanted], rel=1e-4)


def test_divergence_of_continuous_actions_worked_out() -> None:
    dense, pruned = torch.tensor([[0.5, 5.0]]), torch.tensor([[0.0, 1.0]])
    # The second mean is clipped to 2: ½((0.5/0.5)² + (1/2)²).
    assert heads.divergence(GAUSSIAN, dense, pruned).tolist() == pytest.approx([0.5 * (1.0 + 0.25)])
    assert heads.divergence(GAUSSIAN, torch.tensor([[9.0, 9.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [0.0]


@pytest.mark.parametrize("head", [CATEGORICAL, BERNOULLI, Q_VALUES, GAUSSIAN, Head("gaussian")], ids=lambda h: h.kind)
def test_divergence_is_zero_for_equal_outputs_and_never_negative(head: Head) -> None:
    width = sum(head.sizes) or 2
    generator = torch.Generator().manual_seed(0)
    dense, pruned = torch.randn(2, 100, width, generator=generator) * 3
    assert heads.divergence(head, dense, dense).abs().max() < 1e-6
    assert heads.divergence(head, dense, pruned).min() > -1e-6


def test_the_scale_of_q_values() -> None:
    output = torch.tensor([[0.0, 2.0], [0.0, 4.0]])  # deviations √2 and 2√2
    assert heads.q_scale(Head("q_values", sizes=(2,)), output) == pytest.approx(1.5 * math.sqrt(2.0))
    assert heads.q_scale(Head("q_values", sizes=(1,)), output[:, :1]) == 1.0
    assert heads.q_scale(CATEGORICAL, output) == 1.0
    assert heads.q_scale(Head("q_values", sizes=(2,)), torch.zeros(3, 2)) > 0.0


def test_probabilities_sum_to_one_in_each_part() -> None:
    output = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    logs = heads.log_probabilities(CATEGORICAL, output)
    assert logs[:, :2].exp().sum(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert logs[:, 2:].exp().sum(dim=1).tolist() == pytest.approx([1.0] * 5)
