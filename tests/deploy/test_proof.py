from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toy_env  # noqa: F401  registers its environments
from small_programs import X, Y, inputs, one, program, quantized
from torch import nn

from prunerl.deploy import interpret
from prunerl.deploy.agreement import Agreement, agreement
from prunerl.deploy.play import Player, Visit, agent_player, play, program_player
from prunerl.deploy.program import Affine, Choose, Clip, Program
from prunerl.deploy.proof import prove
from prunerl.errors import EnvironmentFailure
from prunerl.types import EnvSpec, Head, Policy

TOY = EnvSpec("Toy-v0")


def constant(outputs: list[float]) -> nn.Module:
    """Return a network whose outputs do not depend on the observation."""
    network = nn.Linear(3, len(outputs))
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor(outputs)
    return network


def discrete(outputs: list[float], sizes: tuple[int, ...]) -> Policy:
    return Policy(constant(outputs), Head("categorical", sizes, shape=(len(sizes),)), (3,))


def seen(policy: Policy, count: int = 6, allowed: list[bool] | None = None) -> list[Visit]:
    player = agent_player(policy)
    draw = np.random.default_rng(0)
    visits = []
    for i in range(count):
        observation = draw.standard_normal((1, 3)).astype(np.float32)
        mask = None if allowed is None else np.array([allowed])
        visits.append(
            Visit(observation, player.start(), mask, player.act(observation, player.start(), mask)[0], i == 0)
        )
    return visits


def always(action: Any) -> Player:
    return Player(lambda observations, memory, allowed: (np.array([action] * len(observations)), memory))


NOTHING = one(Choose(X, Y, (3,)), (3,), (1,))


def test_equal_actions_agree() -> None:
    policy = discrete([0.0, 2.0, 1.0], (3,))
    assert agreement(always([1]), NOTHING, policy, seen(policy)) == Agreement(6, 6, 0, 0.0)


def test_another_action_does_not_agree() -> None:
    policy = discrete([0.0, 2.0, 1.0], (3,))
    found = agreement(always([2]), NOTHING, policy, seen(policy))
    assert found == Agreement(6, 0, 0, 0.0)
    assert not found.holds


@pytest.mark.parametrize(("gap", "ties"), [(5e-5, 6), (5e-4, 0)])
def test_a_tie_is_counted_as_one_within_the_tolerance(gap: float, ties: int) -> None:
    policy = discrete([0.0, 1.0, 1.0 - gap], (3,))
    found = agreement(always([2]), NOTHING, policy, seen(policy))
    assert (found.equal, found.ties, found.holds) == (0, ties, ties == 6)


def test_each_part_that_differs_must_be_a_tie() -> None:
    policy = discrete([1.0, 1.0 - 1e-5, 5.0, 0.0], (2, 2))
    visits = seen(policy)
    assert agreement(always([1, 0]), NOTHING, policy, visits).ties == 6
    assert agreement(always([1, 1]), NOTHING, policy, visits).ties == 0


def test_an_action_that_is_not_allowed_is_no_tie() -> None:
    policy = discrete([1.0, 1.0, 0.0], (3,))
    found = agreement(always([0]), NOTHING, policy, seen(policy, allowed=[False, True, True]))
    assert (found.equal, found.ties) == (0, 0)


def test_a_bernoulli_tie_is_an_output_near_zero() -> None:
    policy = Policy(constant([5e-5, 1.0]), Head("bernoulli", shape=(2,)), (3,))
    assert agreement(always([0, 1]), NOTHING, policy, seen(policy)).ties == 6
    assert agreement(always([1, 0]), NOTHING, policy, seen(policy)).ties == 0


@pytest.mark.parametrize(("action", "equal"), [(0.50004, 6), (0.5002, 0), (np.nan, 0)])
def test_continuous_actions_are_equal_within_the_tolerance(action: float, equal: int) -> None:
    policy = Policy(constant([0.5]), Head("gaussian", shape=(1,)), (3,))
    found = agreement(always([action]), NOTHING, policy, seen(policy))
    assert found.equal == equal
    assert np.isnan(found.largest) or found.largest == pytest.approx(abs(action - 0.5), abs=1e-6)


def test_rounding_excuses_only_inputs_on_the_edge() -> None:
    made = program(
        Affine(X, "o", quantized(1, 3), None, 0.5),
        Clip("o", Y, np.full(1, -9, np.float32), np.full(1, 9, np.float32)),
        shapes={X: (3,), "o": (1,), Y: (1,)},
    )
    policy = Policy(constant([0.5]), Head("gaussian", shape=(1,)), (3,))
    visit = seen(policy, 1)[0]
    edge = replace(visit, observation=np.array([[0.25, 1.0, 0.0]], np.float32))  # half a step of 0.5
    clear = replace(visit, observation=np.array([[0.3, 1.0, 0.0]], np.float32))
    assert agreement(always([0.6]), made, policy, [edge]).ties == 1
    assert agreement(always([0.6]), made, policy, [clear]).ties == 0


def _recurrent() -> tuple[Program, Player]:
    from small_programs import PROGRAMS

    made = PROGRAMS["lstm"]
    return made, program_player(made, lambda o, m, a: interpret.run(made, o, m, a))


def test_memory_is_kept_within_an_episode_and_emptied_between() -> None:
    made, player = _recurrent()
    observations = inputs(made, 6)[0][:, None]
    memory, visits = player.start(), []
    for i, observation in enumerate(observations):
        memory = player.start() if i == 3 else memory
        action, following = player.act(observation, memory, None)
        visits.append(Visit(observation, memory, None, action, i in (0, 3)))
        memory = following
    policy = Policy(constant([0.0, 0.0]), Head("gaussian", shape=(2,)), (3,))
    assert agreement(player, made, policy, visits) == Agreement(6, 6, 0, 0.0)
    forgetful = Player(lambda o, m, a: (player.act(o, player.start(), a)[0], m), player.start)
    assert agreement(forgetful, made, policy, visits).equal == 2


def test_play_keeps_what_was_decided() -> None:
    played = play(always(2), TOY, [3, 4], keep=15)
    assert played.returns == (20.0, 20.0)  # Toy pays the sum of the action, ten times
    assert played.lengths == (10, 10)
    assert [visit.first for visit in played.visits] == [True] + [False] * 9 + [True] + [False] * 4


def test_masks_come_from_the_environment() -> None:
    played = play(always(1), EnvSpec("Choosy-v0"), [0], masked=True, keep=1)
    assert played.visits[0].allowed is not None
    assert played.visits[0].allowed.tolist() == [[True, True, False, False]]


def test_a_failing_environment_is_named() -> None:
    with pytest.raises(EnvironmentFailure, match=r"Toy-v0.*the motor is stuck"):
        play(always(1), EnvSpec("Toy-v0", {"fails": 3}), [0])


def proof_of(player: Player, policy: Policy) -> Any:
    return prove(player, NOTHING, policy, TOY, episodes=2, seed=0, tolerance=0.05)


@pytest.fixture
def best() -> Policy:
    """Always takes action 3, which pays most."""
    return Policy(constant([0.0, 1.0, 2.0, 3.0]), Head("categorical", (4,)), (3,))


def test_a_proof_holds_for_the_same_actions(best: Policy) -> None:
    found = proof_of(always(3), best)
    assert found.holds
    assert found.agreement.observations >= 1000
    assert (found.returns, found.agent_returns) == (30.0, 30.0)
    assert found.verdict.interval == (0.0, 0.0)


def test_a_proof_fails_for_other_actions(best: Policy) -> None:
    found = proof_of(always(2), best)
    assert not found.holds
    assert not found.verdict.satisfied
    assert found.returns == 20.0


def test_equal_actions_with_a_worse_return_are_no_proof(best: Policy) -> None:
    """A player that acts well in a batch, as it is compared, and badly alone, as it is deployed."""
    found = proof_of(Player(lambda o, m, a: (np.full(len(o), 3 if len(o) > 1 else 0), m)), best)
    assert found.agreement.holds
    assert not found.holds


def test_an_agent_no_better_than_random_has_no_verdict() -> None:
    policy = Policy(constant([3.0, 1.0, 2.0, 0.0]), Head("categorical", (4,)), (3,))
    found = proof_of(always(0), policy)
    assert found.holds
    assert found.verdict is None
    assert "no verdict" in str(found)


def test_both_play_the_same_seeds(load_agent: Callable[[str], Any]) -> None:
    agent = load_agent("sac/Pendulum-v1")
    one_, other = (play(agent_player(agent.policy), agent.env, range(2)) for _ in range(2))
    assert one_.returns == other.returns
