"""Critics lose their share, twins alike, targets with them, and the policy stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import BudgetError
from prunerl.learner import LearnerCut, prune_critics
from prunerl.trace import activity, trace

AGENTS = ("sac/Pendulum-v1", "ddpg/Pendulum-v1", "ppo/CartPole-v1")


def cut(agent: SB3Agent, observations: Tensor, sparsity: float, structure: str = "units") -> LearnerCut:
    generator = torch.Generator().manual_seed(0)
    return prune_critics(agent, observations, sparsity, structure=structure, generator=generator)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", AGENTS)
def test_critics_lose_their_share_and_the_policy_nothing(
    name: str, load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent(name)
    observations = inputs(agent, 200)
    made = cut(agent, observations, 0.6)
    small = agent.with_state(made.state)
    assert len(made.critics) == len(agent.critics) > 0
    for critic in made.critics:
        assert 0.2 * critic.before < critic.after <= 0.4 * critic.before
    assert torch.equal(small.policy.network(observations), agent.policy.network(observations))
    for tie in agent.ties:
        if tie.copies:
            assert made.state.tensors[tie.source].shape == made.state.tensors[tie.target].shape
    for parameter, moments in made.state.moments.items():
        assert all(m.dim() == 0 or m.shape == made.state.tensors[parameter].shape for m in moments.values())
    assert set(small.learn(64, seed=0).state.tensors) == set(made.state.tensors)


def test_twins_keep_as_many_units_each_its_own(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("sac/Pendulum-v1")
    made = cut(agent, inputs(agent, 200), 0.6)
    first, second = (
        {
            n.removeprefix(f"critic.qf{i}."): tuple(t.shape)
            for n, t in made.state.tensors.items()
            if f"critic.qf{i}." in n
        }
        for i in (0, 1)
    )
    assert first == second
    rows = [{tuple(row) for row in agent.state.tensors[f"critic.qf{i}.0.weight"].tolist()} for i in (0, 1)]
    kept = [made.state.tensors[f"critic.qf{i}.0.weight"].tolist() for i in (0, 1)]
    places = [[sorted(rows[i]).index(tuple(row)) for row in kept[i]] for i in (0, 1)]
    assert places[0] != places[1]  # the first layer is not refitted, so its rows tell which units were kept


def test_the_refit_brings_values_nearer_to_what_they_were(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("sac/Pendulum-v1")
    observations = inputs(agent, 400)
    made = cut(agent, observations, 0.6)
    critic = agent.critics[0]
    seen = critic.inputs(observations)
    traced = trace(critic.network, seen[:3])
    with torch.no_grad():
        dense = activity(traced, agent.state.tensors, seen).output
        small = activity(traced, made.state.tensors, seen).output
    assert float((small - dense).square().mean()) < 0.05 * float(dense.var())


def test_single_weights_of_critics_are_masked(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("sac/Pendulum-v1")
    made = cut(agent, inputs(agent, 100), 0.5, "weights")
    masked = {n for n in made.state.masks if n.startswith("critic.qf0.")}
    assert masked
    assert all(bool((made.state.tensors[n][~made.state.masks[n]] == 0).all()) for n in made.state.masks)
    trained = agent.with_state(made.state).learn(64, seed=0).state
    assert all(bool((trained.tensors[n][~m] == 0).all()) for n, m in made.state.masks.items())


def test_nothing_to_remove_changes_nothing_and_all_is_refused(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("sac/Pendulum-v1")
    observations = inputs(agent, 50)
    same = cut(agent, observations, 0.0)
    assert all(torch.equal(same.state.tensors[n], t) for n, t in agent.state.tensors.items())
    with pytest.raises(BudgetError, match=r"sparsity 1\.0"):
        cut(agent, observations, 1.0)
