"""Timing runtimes side by side: they take turns, agree with PyTorch, and what is absent is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from prunerl import heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.deploy.bench import OBSERVATIONS, bench, difference, visited
from prunerl.deploy.runtimes import RUNTIMES, Decide, Scene, Unavailable
from prunerl.errors import BudgetError, ExportError

Load = Callable[[str], SB3Agent]


def slow(name: str, calls: list[str], *, wrong: bool = False) -> Callable[[Scene], tuple[Decide, Sequence[Any]]]:
    """A runtime that acts as PyTorch does, writes down that it was called, and is slow enough for blocks of one."""

    def make(scene: Scene) -> tuple[Decide, Sequence[Any]]:
        decide, observations = RUNTIMES["PyTorch, eager"](scene)

        def recorded(observation: Any) -> Any:
            calls.append(name)
            action = decide(observation)
            sum(range(20_000))
            return 1 - action if wrong else action

        return recorded, observations

    return make


def test_the_runtimes_take_turns(load_agent: Load) -> None:
    calls: list[str] = []
    result = bench(load_agent("ppo/CartPole-v1"), blocks=20, runtimes={n: slow(n, calls) for n in ("a", "b")})
    assert (
        calls[-88:] == ["a", "a", "b", "b"] * 22
    )  # 20 blocks that count and 2 to warm up, of a decision after another
    assert [each.name for each in result.timings] == ["a", "b"]
    assert all(
        each.latency is not None and 0 < each.latency[0] <= each.latency[1] <= each.latency[2]
        for each in result.timings
    )
    assert (result.blocks, result.observations, result.discrete) == (20, OBSERVATIONS, True)


def test_a_runtime_that_acts_otherwise_shows(load_agent: Load) -> None:
    runtimes = {"right": slow("right", []), "wrong": slow("wrong", [], wrong=True)}
    right, wrong = bench(load_agent("ppo/CartPole-v1"), blocks=20, runtimes=runtimes).timings
    assert (right.differs, wrong.differs) == (0.0, 1.0)


def test_what_cannot_be_timed_says_why(load_agent: Load) -> None:
    def absent(scene: Scene) -> Any:
        raise ModuleNotFoundError("No module named 'fast'", name="fast")

    def refusing(scene: Scene) -> Any:
        raise ExportError("No such operator.")

    def unfit(scene: Scene) -> Any:
        raise Unavailable("another library")

    runtimes = {"absent": absent, "refusing": refusing, "unfit": unfit}
    timings = bench(load_agent("ppo/CartPole-v1"), blocks=20, runtimes=runtimes).timings
    assert [each.why for each in timings] == ["not installed (fast)", "No such operator.", "another library"]
    assert all(each.latency is None for each in timings)


@pytest.mark.parametrize("name", ["ppo/CartPole-v1", "ppo/Pendulum-v1", "sac/Pendulum-v1", "dqn/MountainCar-v0"])
def test_every_runtime_here_acts_as_pytorch_does(name: str, load_agent: Load) -> None:
    threads = torch.get_num_threads()
    result = bench(load_agent(name), blocks=20)
    timed = [each for each in result.timings if each.latency is not None]
    assert {"Stable-Baselines3 predict", "PyTorch, eager", "NumPy interpreter"} <= {each.name for each in timed}
    assert all(each.why for each in result.timings if each.latency is None)
    assert all(each.differs == 0.0 if result.discrete else each.differs < 1e-4 for each in timed)
    assert torch.get_num_threads() == threads


def test_an_agent_of_no_library_is_timed_without_it(load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")

    class Bare:
        policy, env = agent.policy, agent.env

    chosen = {name: RUNTIMES[name] for name in ("Stable-Baselines3 predict", "NumPy interpreter")}
    first, second = bench(Bare(), blocks=20, runtimes=chosen).timings
    assert "not an agent of Stable-Baselines3" in first.why
    assert second.latency is not None


def test_visited_states_are_the_agents_own(load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")
    raw, packed = visited(agent, 10, seed=3)
    again, _ = visited(agent, 10, seed=3)
    np.testing.assert_array_equal(raw, again)
    np.testing.assert_array_equal(raw, packed)
    assert not np.array_equal(raw[0], raw[1])
    assert heads.act(agent.policy, np.stack(packed)).shape == (10,)


def test_too_few_blocks_are_refused(load_agent: Load) -> None:
    with pytest.raises(BudgetError, match=r"at least 20 .* got 5"):
        bench(load_agent("ppo/CartPole-v1"), blocks=5)


def test_differences() -> None:
    assert difference([np.array([1, 2])], [np.array([1, 3])]) == 1.0
    assert difference([np.float32([0.5, 1.0])] * 2, [np.float32([0.5, 1.0]), np.float32([0.25, 1.0])]) == 0.25
