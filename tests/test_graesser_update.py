"""The replication harness's update: its gradients are autograd's, its minibatches Stable-Baselines3's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GAMMA, DECAY = 0.9, 0.05
MIDDLE = "q_net.2.weight"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    sys.modules.pop("graesser_update", None)


def network(seed: int, mask: Tensor | None = None) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 17), nn.ReLU(), nn.Linear(17, 2))
    if mask is not None:
        with torch.no_grad():
            layers[2].weight *= mask
    return layers


def minibatch(seed: int, size: int = 128) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    going = torch.bernoulli(torch.full((size,), 0.8))
    return torch.randn(size, 3), torch.randint(2, (size,)), torch.randn(size), torch.randn(size, 3), going


def callback(mask: Tensor, wanted: set[str]) -> Any:
    return SimpleNamespace(masks={MIDDLE: mask}, course=SimpleNamespace(meter=SimpleNamespace(wanted=wanted)))


def expected(online: nn.Module, target: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    observations, actions, rewards, following, going = batch
    wanted = rewards + GAMMA * going * target(following).amax(1).detach()
    values = online(observations).gather(1, actions[:, None])[:, 0]
    penalty = online[0].weight.square().sum() + online[2].weight.square().sum()
    loss = functional.mse_loss(values, wanted) + DECAY * penalty
    return list(torch.autograd.grad(loss, list(online.parameters())))


def alike(found: nn.Module, gradients: list[Tensor], mask: Tensor | None = None) -> bool:
    there = [g * mask if mask is not None and g.shape == mask.shape else g for g in gradients]
    return all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(found.parameters(), there, strict=True))


def test_gradients_are_those_of_autograd() -> None:
    from graesser_update import Update

    online, target = network(0), network(1)
    update = Update(online, target, GAMMA, DECAY)
    for seed in (2, 3):
        batch = minibatch(seed)
        update(batch)
        assert alike(online, expected(online, target, batch))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.4])
def test_sparse_products_give_them_at_the_weights_that_are_there(density: float) -> None:
    from graesser_update import Update

    mask = torch.zeros(17, 24, dtype=torch.bool)
    torch.manual_seed(5)
    mask.view(-1)[torch.randperm(mask.numel())[: int(density * mask.numel())]] = True
    online, target, batch = network(0, mask), network(1, mask), minibatch(2)
    update = Update(online, target, GAMMA, DECAY, callback(mask, set()))
    update(batch)
    assert update.forward is not None
    assert alike(online, expected(online, target, batch), mask)


def test_methods_that_grow_by_gradients_see_those_of_weights_that_are_not_there() -> None:
    from graesser_update import Update

    mask = torch.rand(17, 24) < 0.2
    online, target, batch = network(0, mask), network(1, mask), minibatch(2)
    Update(online, target, GAMMA, DECAY, callback(mask, {"gradients"}))(batch)
    assert alike(online, expected(online, target, batch))


def test_masks_that_change_take_the_gradients_of_dropped_weights_along() -> None:
    from graesser_update import Update

    masks = [torch.rand(17, 24) < 0.3 for _ in range(2)]
    own = callback(masks[0], set())
    online, target = network(0, masks[0]), network(1, masks[0])
    update = Update(online, target, GAMMA, DECAY, own)
    update(minibatch(2))
    with torch.no_grad():
        own.masks[MIDDLE] = masks[1]
        online[2].weight.uniform_(-1.0, 1.0).mul_(masks[1])
        target[2].weight.mul_(masks[1])
    batch = minibatch(3)
    update(batch)
    assert alike(online, expected(online, target, batch), masks[1])


def test_places_are_those_of_the_mask_by_rows_and_by_columns() -> None:
    from graesser_update import places

    rows, columns = places(torch.tensor([[True, False, True], [False, False, True]]))
    assert [t.tolist() for t in (rows.first, rows.at, rows.of)] == [[0, 2, 3], [0, 2, 5], [0, 2, 2]]
    assert [t.tolist() for t in (columns.first, columns.at, columns.of)] == [[0, 1, 1, 3], [0, 2, 5], [0, 0, 1]]


def test_minibatches_of_another_size_are_refused() -> None:
    from graesser_update import Update

    with pytest.raises(ValueError, match="128"):
        Update(network(0), network(1), GAMMA, DECAY)(minibatch(2, 64))
