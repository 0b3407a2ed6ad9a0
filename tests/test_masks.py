"""Masked weights stay at exactly zero whatever their owner's training does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunerl import masks, remove
from prunerl.agents.sb3 import SB3Agent
from prunerl.trace import trace, weight_groups

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def update(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_does_not_revive(name: str) -> None:
    network = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](network.parameters())
    for _ in range(3):
        update(network, optimizer)  # builds up momentum for what is masked now
    mask = torch.tensor([[True, False, True], [False, True, True]])
    handle = masks.hold(optimizer, dict(network.named_parameters()), {"weight": mask})
    assert bool((network.weight[~mask] == 0).all())  # at once, not only after the first step
    for _ in range(5):
        before = network.weight.detach().clone()
        update(network, optimizer)
        assert bool((network.weight[~mask] == 0).all())
        assert bool((network.weight[mask] != before[mask]).all())
        moments = [m for m in optimizer.state[network.weight].values() if isinstance(m, Tensor) and m.dim()]
        assert moments
        assert all(bool((m[~mask] == 0).all()) for m in moments)
    handle.remove()
    update(network, optimizer)
    assert bool((network.weight[~mask] != 0).any())


def test_apply_zeroes_only_what_is_masked() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    result = masks.apply(tensors, {"a": torch.tensor([True, False])})
    assert result["a"].tolist() == [1.0, 0.0]
    assert result["b"] is tensors["b"]
    assert tensors["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["ppo/CartPole-v1", "a2c/CartPole-v1", "dqn/CartPole-v1"])
def test_sparsity_after_training_is_what_was_set(
    load_agent: Callable[[str], SB3Agent],
    inputs: Callable[..., Tensor],
    quick: Callable[[SB3Agent], SB3Agent],
    name: str,
) -> None:
    agent = quick(load_agent(name))
    observations = inputs(agent)
    traced = trace(agent.policy.network, observations[:3])
    groups = weight_groups(traced, agent.state)
    generator = torch.Generator().manual_seed(0)
    decision = {g.name: torch.rand(g.units, generator=generator) > 0.8 for g in groups}
    state = remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=observations)
    pruned = agent.with_state(state)
    trained = pruned.learn(16, seed=0)
    assert set(trained.state.masks) == set(state.masks)
    for held, mask in state.masks.items():
        assert torch.equal(trained.state.masks[held], mask)
        after = trained.state.tensors[held]
        assert int((after == 0).sum()) == int((~mask).sum())
        assert bool((after[~mask] == 0).all())
        for moment in trained.state.moments.get(held, {}).values():
            assert moment.dim() == 0 or bool((moment[~mask] == 0).all())
    learning = [n for n in traced.parameters if not torch.equal(trained.state.tensors[n], state.tensors[n])]
    assert learning == list(traced.parameters)
