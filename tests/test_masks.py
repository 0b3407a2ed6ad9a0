"""Masked weights stay at exactly zero whatever their owner's training does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunerl import masks, remove
from prunerl.agents.sb3 import SB3Agent
from prunerl.trace import trace, weight_groups


class Drifting(torch.optim.SGD):
    """An optimizer that moves weights whose gradient and moments are zero, as Muon does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.01)
                for moment in self.state[parameter].values():
                    moment.add_(0.01)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam_loop": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "drifting": lambda p: Drifting(p, lr=0.1, momentum=0.9),
}
MASK = torch.tensor([[True, False, True], [False, True, True]])


@pytest.fixture(autouse=True)
def _small_moments_are_raised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "RAISED", 1)


def update(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state.get(parameter, {})
    return [m for k, m in state.items() if k != "step" and isinstance(m, Tensor) and m.shape == parameter.shape]


def multiply_after(optimizer: torch.optim.Optimizer, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """The plain way, which :func:`masks.hold` must equal by value: multiply all there is after every step."""

    @torch.no_grad()
    def enforce(*_: Any) -> None:
        for parameter, mask in pairs:
            for tensor in (parameter, *moments_of(optimizer, parameter)):
                tensor.mul_(mask)

    enforce()
    optimizer.register_step_post_hook(enforce)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_does_not_revive(name: str) -> None:
    network = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](network.parameters())
    for _ in range(3):
        update(network, optimizer)  # builds up momentum for what is masked now
    handle = masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})
    assert bool((network.weight[~MASK] == 0).all())  # at once, not only after the first step
    for _ in range(5):
        before = network.weight.detach().clone()
        update(network, optimizer)
        assert bool((network.weight[~MASK] == 0).all())
        assert bool((network.weight[MASK] != before[MASK]).all())
        moments = moments_of(optimizer, network.weight)
        assert moments
        assert all(bool((m[~MASK] == 0).all()) for m in moments)
    handle.remove()
    for _ in range(2):
        update(network, optimizer)
    assert bool((network.weight[~MASK] != 0).any())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3], ids=["fresh", "trained"])
def test_the_cheap_way_equals_multiplying_everything_after_each_step(name: str, before: int) -> None:
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [OPTIMIZERS[name](network.parameters()) for network in networks]
    for _ in range(before):
        for network, optimizer in zip(networks, optimizers, strict=True):
            update(network, optimizer)
    masks.hold(optimizers[0], dict(networks[0].named_parameters()), {"weight": MASK})
    multiply_after(optimizers[1], [(networks[1].weight, MASK)])
    for _ in range(5):
        for network, optimizer in zip(networks, optimizers, strict=True):
            update(network, optimizer)
        for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
            assert torch.equal(first, second)
            pairs = zip(moments_of(optimizers[0], first), moments_of(optimizers[1], second), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.skipif(not masks.MKL, reason="PyTorch was built without MKL")
@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "nadam", "radam", "rmsprop", "adagrad"])
def test_no_root_meets_a_masked_zero_and_none_but_the_step_sees_it(name: str) -> None:
    network = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](network.parameters())
    held = masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})
    update(network, optimizer)
    seen: dict[str, list[Tensor]] = {"within": [], "after": []}

    def look(when: str) -> None:
        state = optimizer.state[network.weight]
        seen[when] = [moment.clone() for key, moment in state.items() if key in masks.ROOTED]

    optimizer.register_step_pre_hook(lambda *_: look("within"))
    optimizer.register_step_post_hook(lambda *_: look("after"))
    for mask in (MASK, ~MASK):
        held.replace({"weight": mask})
        kept = optimizer.state[network.weight]
        start = [moment[mask].clone() for key, moment in kept.items() if key in masks.ROOTED]
        update(network, optimizer)
        assert len(seen["within"]) == len(seen["after"]) == 1
        assert torch.equal(seen["within"][0][~mask], torch.full((int((~mask).sum()),), masks.FLOOR))
        assert torch.equal(seen["within"][0][mask], start[0])
        assert bool((seen["after"][0][~mask] == 0).all())


def test_moments_that_were_put_aside_are_left_alone() -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})
    update(network, optimizer)
    aside = optimizer.state[network.weight]["exp_avg_sq"]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    aside.fill_(1.0)
    update(network, optimizer)
    assert bool((aside == 1.0).all())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_fails_leaves_nothing_that_is_masked(name: str) -> None:
    network = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](network.parameters())
    masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})
    update(network, optimizer)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        update(network, optimizer)
    hook.remove()
    update(network, optimizer)
    for tensor in (network.weight, *moments_of(optimizer, network.weight)):
        assert bool((tensor[~MASK] == 0).all())


def test_every_optimizer_that_is_called_elementwise_is_tried() -> None:
    network = nn.Linear(3, 2)
    tried = {type(make(network.parameters())) for make in OPTIMIZERS.values()}
    assert tried >= masks.ELEMENTWISE


def test_a_gradient_that_is_computed_within_the_step_revives_nothing() -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(torch.ones(4, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        for tensor in (network.weight, *moments_of(optimizer, network.weight)):
            assert bool((tensor[~MASK] == 0).all())


@pytest.mark.parametrize("what", ["weights", "moments", "both"])
def test_what_is_loaded_is_masked_after_the_next_update(what: str) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    update(network, optimizer)
    dense = {n: t.clone() for n, t in network.state_dict().items()}
    trained = optimizer.state_dict()
    trained = {"state": {k: {n: m.clone() for n, m in s.items()} for k, s in trained["state"].items()}} | {
        "param_groups": trained["param_groups"]
    }
    masks.hold(optimizer, dict(network.named_parameters()), {"weight": MASK})
    update(network, optimizer)
    if what != "moments":
        network.load_state_dict(dense)
    if what != "weights":
        optimizer.load_state_dict(trained)
    for _ in range(2):
        update(network, optimizer)
        for tensor in (network.weight, *moments_of(optimizer, network.weight)):
            assert bool((tensor[~MASK] == 0).all())
            assert bool((tensor[MASK] != 0).all())


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
