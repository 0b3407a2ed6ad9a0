"""Least squares finds what can be represented, and keeps what is held at zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunerl.remove import cut
from prunerl.repair.least_squares import least_squares
from prunerl.trace import activity, forward, trace, unit_groups
from prunerl.types import State


def state_of(network: nn.Module) -> State:
    return State({n: t.detach().clone() for n, t in network.state_dict().items()})


def inputs(count: int = 200, width: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def network_with_twins() -> nn.Sequential:
    """In the first hidden layer, unit 3 is a copy of unit 0."""
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        network[0].weight[3] = network[0].weight[0]
        network[0].bias[3] = network[0].bias[0]
    return network


def test_a_unit_and_its_copy_are_merged() -> None:
    network, x = network_with_twins(), inputs()
    traced, state = trace(network, x[:2]), state_of(network)
    before = activity(traced, state.tensors, x)
    keep = torch.tensor([True, True, True, False])
    smaller = cut(state, unit_groups(traced, state.tensors)[:1], {"0": keep}, ())
    assert (forward(traced, smaller.tensors, x) - before.output).abs().max() > 0.01
    fitted = least_squares(traced, smaller.tensors, {}, x, [None, before.outputs["2"], before.output])
    assert set(fitted) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    torch.testing.assert_close(forward(traced, {**smaller.tensors, **fitted}, x), before.output, rtol=1e-3, atol=1e-3)
    wanted = state.tensors["2.weight"][:, 0] + state.tensors["2.weight"][:, 3]
    torch.testing.assert_close(fitted["2.weight"][:, 0], wanted, rtol=1e-3, atol=1e-3)


def test_one_dimension_worked_out() -> None:
    network = nn.Linear(1, 1)
    x, z = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    # Slope Σ(x − 1)(z − 3) / Σ(x − 1)² = 5/2, intercept 3 − 5/2.
    traced = trace(network, x)
    fitted = least_squares(traced, state_of(network).tensors, {}, x, [z])
    assert fitted["weight"].item() == pytest.approx(2.5, rel=1e-5)
    assert fitted["bias"].item() == pytest.approx(0.5, rel=1e-4)
    # A ridge of 1 doubles Σ(x − 1)²: slope 5/4, intercept 3 − 5/4.
    fitted = least_squares(traced, state_of(network).tensors, {}, x, [z], ridge=1.0)
    assert fitted["weight"].item() == pytest.approx(1.25)
    assert fitted["bias"].item() == pytest.approx(1.75)


def test_masked_rows_keep_their_zeros_and_are_fitted_on_the_rest() -> None:
    network, x = network_with_twins(), inputs()
    traced, state = trace(network, x[:2]), state_of(network)
    generator = torch.Generator().manual_seed(1)
    masks = {n: torch.rand(state.tensors[n].shape, generator=generator) > 0.5 for n in ("2.weight", "4.weight")}
    masks["2.weight"][1] = False  # a row that keeps nothing is left with its bias
    before = activity(traced, state.tensors, x)
    fitted = least_squares(traced, state.tensors, masks, x, [None, before.outputs["2"], None])
    assert bool((fitted["2.weight"][~masks["2.weight"]] == 0).all())
    assert "4.weight" not in fitted
    found = activity(traced, {**state.tensors, **fitted}, x).outputs["2"]
    for row, kept in enumerate(masks["2.weight"]):
        columns = torch.cat([before.inputs["2"][:, kept], torch.ones(len(x), 1)], dim=1)
        best = columns @ torch.linalg.lstsq(columns, before.outputs["2"][:, row : row + 1], driver="gelsd").solution
        torch.testing.assert_close(found[:, row], best[:, 0], rtol=1e-3, atol=1e-3)


def test_without_targets_or_biases_nothing_is_refitted() -> None:
    network, x = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)), inputs()
    traced, state = trace(network, x[:2]), state_of(network)
    before = activity(traced, state.tensors, x)
    assert least_squares(traced, state.tensors, {}, x, [None, None]) == {}
    assert set(least_squares(traced, state.tensors, {}, x, [before.outputs["0"], before.output])) == {
        "2.weight",
        "2.bias",
    }


def test_units_that_never_change_do_not_break_the_fit() -> None:
    network, x = network_with_twins(), inputs()
    with torch.no_grad():
        network[0].weight.zero_()
    traced, state = trace(network, x[:2]), state_of(network)
    target = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(2))
    fitted = least_squares(traced, state.tensors, {}, x, [None, target, None])
    found = activity(traced, {**state.tensors, **fitted}, x).outputs["2"]
    torch.testing.assert_close(found, target.mean(dim=0).expand_as(found), rtol=1e-3, atol=1e-3)
