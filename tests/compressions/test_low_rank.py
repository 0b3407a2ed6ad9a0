"""Ranks and energies against numbers known beforehand; what replaces a layer computes what its factors say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from prunerl.compressions.low_rank import factorized, fewest, ranks, spectra
from prunerl.compressions.network import GraphNetwork
from prunerl.errors import BudgetError
from prunerl.trace import forward, trace


def states(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in net.state_dict().items()}


def net_of(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def test_squared_values_are_what_is_lost_of_the_output() -> None:
    """Without a bias and with white inputs, they are the weight's own singular values."""
    net = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    x = 2.0 * torch.eye(4)  # second moment 1 in every direction
    [found] = spectra(trace(net, x), tensors_of(net), {}, x)
    torch.testing.assert_close(found.values.float(), torch.tensor([4.0, 3.0, 2.0, 1.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.lost.float(), torch.tensor([30, 14, 5, 1, 0.0]) / 30, rtol=1e-3, atol=1e-6)
    assert found.row == 8
    assert found.stored == 16
    # 8 numbers a rank: at 8 rank 1, at 15 still rank 1, at 16 the layer is no smaller as two.
    assert ranks([found], 8) == {"weight": 1}
    assert ranks([found], 15) == {"weight": 1}
    assert ranks([found], 16) == {}
    assert fewest([found]) == 8
    with pytest.raises(BudgetError, match="at least 8"):
        ranks([found], 7)


def test_what_the_inputs_never_are_is_cut_first() -> None:
    """The weight's largest direction is one in which inputs hardly vary: by the weight alone it would be kept."""
    net = nn.Linear(8, 8)
    with torch.no_grad():
        net.weight.copy_(torch.diag(torch.tensor([10.0, *[1.0] * 7])))
    x = states(500, 8)
    x[:, 0] = 3.0
    traced, tensors = trace(net, x), tensors_of(net)
    found = spectra(traced, tensors, {}, x)
    changed, factors = factorized(traced, tensors, found, {"weight": 7})
    torch.testing.assert_close(forward(changed, factors, x), forward(traced, tensors, x), rtol=1e-3, atol=1e-3)


def test_the_loss_at_a_rank_is_the_mean_squared_error_of_the_output() -> None:
    net = net_of(12, 20)
    x = states(400, 12) @ torch.diag(torch.linspace(0.1, 3.0, 12)) + 2.0
    traced, tensors = trace(net, x), tensors_of(net)
    [found] = spectra(traced, tensors, {}, x)
    changed, factors = factorized(traced, tensors, [found], {"0.weight": 4})
    gap = (forward(changed, factors, x) - forward(traced, tensors, x)).square().sum(dim=1).mean()
    assert float(gap) == pytest.approx(float(found.values[4:].square().sum()), rel=0.01)
    # No other rank-4 matrix does better; the plain SVD does worse on inputs of unequal spread.
    u, s, v = torch.linalg.svd(tensors["0.weight"])
    plain = (u[:, :4] * s[:4]) @ v[:4]
    worse = ((x - x.mean(dim=0)) @ (plain - tensors["0.weight"]).T).square().sum(dim=1).mean()
    assert float(gap) < float(worse)


def test_the_budget_is_spread_by_energy_and_never_exceeded() -> None:
    net = net_of(10, 64, 64, 3)
    x = states(600, 10)
    traced, tensors = trace(net, x), tensors_of(net)
    found = spectra(traced, tensors, {}, x)
    stored = sum(s.stored for s in found)
    for numbers in (600, 1500, 3000, stored):
        rank = ranks(found, numbers)
        cost = sum(rank[s.layer.weight] * s.row if s.layer.weight in rank else s.stored for s in found)
        assert cost <= numbers
        assert all(rank[s.layer.weight] * s.row < s.stored for s in found if s.layer.weight in rank)
    assert ranks(found, stored) == {}
    # One number fewer of rank anywhere would lose more than any layer loses now.
    rank = ranks(found, 1500)
    worst = max(float(s.lost[rank[s.layer.weight]]) for s in found if s.layer.weight in rank)
    assert all(float(s.lost[rank[s.layer.weight] - 1]) > worst for s in found if s.layer.weight in rank)


def test_masked_weights_count_as_not_stored() -> None:
    net = net_of(20, 20)
    x = states(100, 20)
    mask = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.05
    assert spectra(trace(net, x), tensors_of(net), {"0.weight": mask}, x) == ()
    half = torch.arange(400).reshape(20, 20) % 2 == 0
    [found] = spectra(trace(net, x), tensors_of(net), {"0.weight": half}, x)
    assert found.stored == 200


class Twice(nn.Module):
    """Uses one weight twice, another in a product of its own, and one stored as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # for the layers' initial weights, which take no generator
        self.again, self.seen = nn.Linear(16, 16), nn.Linear(16, 16)
        self.kernel = nn.Parameter(0.1 * torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.again(torch.tanh(self.again(x))))
        return torch.tanh(self.seen(x) + self.seen.weight.sum()) @ self.kernel


def test_only_weights_that_layers_alone_read_are_replaced_at_every_use() -> None:
    net = Twice()
    x = states(200, 16)
    traced, tensors = trace(net, x), tensors_of(net)
    found = spectra(traced, tensors, {}, x)
    assert {s.layer.weight for s in found} == {"again.weight", "kernel"}
    changed, factors = factorized(traced, tensors, found, {"again.weight": 16, "kernel": 16})
    assert factors["again.left.weight"].shape == factors["again.right.weight"].shape == (16, 16)
    assert {"kernel.left.weight", "kernel.right.weight"} < set(factors)
    assert not {"kernel", "again.weight"} & set(factors)
    torch.testing.assert_close(forward(changed, factors, x), forward(traced, tensors, x), rtol=1e-3, atol=1e-4)


def test_the_network_of_factors_can_be_traced_saved_and_run_alone() -> None:
    net = net_of(8, 32, 4)
    x = states(100, 8)
    traced, tensors = trace(net, x), tensors_of(net)
    changed, factors = factorized(traced, tensors, spectra(traced, tensors, {}, x), {"0.weight": 3})
    assert [(e.name, e.kind) for e in changed.layers] == [("0.right", "linear"), ("0.left", "linear"), ("2", "linear")]
    assert changed.layers[0].makes == changed.layers[1].reads != ()
    alone = GraphNetwork(changed, factors)
    assert set(alone.state_dict()) == set(factors) == set(changed.parameters)
    with torch.no_grad():
        assert torch.equal(alone(x), forward(changed, factors, x))


def test_names_that_are_taken_are_not_used_again() -> None:
    net = nn.ModuleDict({"left": nn.Linear(9, 9), "right": nn.Linear(9, 9)})
    net.register_parameter("weight", nn.Parameter(torch.eye(9)))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.weight = net["left"], net.weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.left(x)) @ self.weight

    x = states(50, 9)
    made = Named()
    traced, tensors = trace(made, x), tensors_of(made)
    _, factors = factorized(traced, tensors, spectra(traced, tensors, {}, x), {"weight": 2})
    assert set(factors) == {"left.weight", "left.bias", "left_.weight", "right_.weight"}
