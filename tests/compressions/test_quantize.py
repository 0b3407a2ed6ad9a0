"""Grids against numbers computed by hand; what is stored, and what gradients pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunerl.compressions.codes import codes_of, stored_bytes
from prunerl.compressions.network import rounded
from prunerl.compressions.quantize import best_input_scale, best_scale, held, largest_code, quantized
from prunerl.deploy.program import Coding
from prunerl.trace import activity, trace


def coding(scale: list[float], bits: int = 8) -> Coding:
    return Coding("quantized", bits, scale=np.array(scale, dtype=np.float32))


def test_values_are_rounded_to_the_grid_of_their_output() -> None:
    weight = torch.tensor([[1.0, -0.26, 0.24, 9.0], [4.0, -1.0, 0.9, -9.0]])
    found = held(weight, coding([0.5, 2.0], bits=4))
    # Codes ±7: 1/.5 = 2, −.26/.5 → −1, .24/.5 → 0, 9/.5 → 7; 4/2 = 2, −1/2 → 0 (ties to even), .9/2 → 0, −9/2 → −4.
    assert found.tolist() == [[1.0, -0.5, 0.0, 3.5], [4.0, 0.0, 0.0, -8.0]]
    assert codes_of(found, coding([0.5, 2.0], bits=4)).tolist() == [[2, -1, 0, 7], [2, 0, 0, -4]]


def test_the_outputs_of_a_weight_that_is_stored_the_other_way_round_are_its_columns() -> None:
    weight = torch.tensor([[1.1, 4.1], [2.9, 7.9]])
    assert held(weight, coding([1.0, 4.0]), axis=1).tolist() == [[1.0, 4.0], [3.0, 8.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_best_scale_keeps_a_grid_as_it_is(bits: int) -> None:
    codes = torch.tensor([[largest_code(bits), -3, 0, 1], [-largest_code(bits), 2, 5, 0]])
    scale = torch.tensor([0.25, 2.0])
    torch.testing.assert_close(best_scale(codes * scale.unsqueeze(1), bits), scale)


def test_a_range_is_cut_off_where_that_makes_the_error_smaller() -> None:
    rows = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([2.5])]).unsqueeze(0)
    whole = torch.tensor([2.5 / 7])
    best = best_scale(rows, 4)

    def error(scale: torch.Tensor) -> float:
        return float((held(rows, coding(scale.tolist(), bits=4)) - rows).square().sum())

    assert best < whole
    assert error(best) < error(whole)
    # Where what is cut off is multiplied with the largest inputs, it is not.
    importance = torch.ones(401).index_fill(0, torch.tensor([400]), 1e6)
    torch.testing.assert_close(best_scale(rows, 4, importance), whole)


def test_zeros_stay_zeros_and_a_row_of_zeros_has_a_scale() -> None:
    weight = torch.tensor([[0.0, 0.3, 0.0, -0.7], [0.0, 0.0, 0.0, 0.0]])
    scale = best_scale(weight, 4)
    found = held(weight, Coding("quantized", 4, scale=scale.numpy()))
    assert scale[1] == 1.0
    assert bool((found[weight == 0] == 0).all())
    assert not torch.signbit(found[weight == 0]).any()


def test_values_are_bit_for_bit_codes_times_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 100, generator=generator) * torch.rand(64, 1, generator=generator)
    for bits in (4, 8):
        scale = best_scale(weight, bits)
        made = Coding("quantized", bits, scale=scale.numpy())
        values = held(weight, made)
        codes = codes_of(values, made)
        assert np.abs(codes).max() <= largest_code(bits)
        product = codes.astype(np.float32) * scale.numpy()[:, None]
        assert np.array_equal(product, values.numpy())
        assert torch.equal(held(values, made), values)


def test_gradients_pass_through_the_rounding_of_weights() -> None:
    weight = torch.tensor([[0.3, -0.8]], requires_grad=True)
    factor = torch.tensor([[2.0, -5.0]])
    (held(weight, coding([0.5])) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


def test_inputs_are_rounded_within_127_and_have_no_gradient_beyond() -> None:
    x = torch.tensor([0.26, -0.24, 100.0, -63.5], requires_grad=True)
    found = rounded(x, 0.5)
    assert found.tolist() == [0.5, 0.0, 63.5, -63.5]
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist()[:3] == [1.0, 1.0, 0.0]


def test_the_scale_of_inputs_is_a_32_bit_number_with_the_smallest_error() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    scale = best_input_scale(values)
    assert scale == float(np.float32(scale))
    whole = float(values.abs().max()) / 127
    assert (rounded(values, scale) - values).square().mean() <= (rounded(values, whole) - values).square().mean()
    assert best_input_scale(torch.zeros(3)) == 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # for the layers' initial weights, which take no generator
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def test_biases_make_up_for_the_mean_of_what_was_rounded() -> None:
    net = Net()
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) + 1.0
    traced = trace(net, x)
    tensors = {n: t.detach() for n, t in net.state_dict().items()}
    made = quantized(traced, tensors, {}, x, bits=4, inputs=False)
    before, after = (activity(traced, t, x).outputs["first"].mean(dim=0) for t in (tensors, made.tensors))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    assert not torch.equal(tensors["first.bias"], made.tensors["first.bias"])


def test_hidden_layers_round_their_inputs_and_coded_layers_stay_as_they_are() -> None:
    net = Net()
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    traced = trace(net, x)
    tensors = {n: t.detach() for n, t in net.state_dict().items()}
    known = {"second.weight": coding([0.1] * 16)}
    made = quantized(traced, tensors, known, x, bits=8, inputs=True)
    assert set(made.codings) == {"first.weight", "third.weight"}
    assert made.codings["first.weight"].input_scale is None
    assert made.codings["third.weight"].input_scale is not None
    assert torch.equal(made.tensors["second.weight"], tensors["second.weight"])


def test_a_weight_is_left_alone_where_codes_and_scales_take_no_less() -> None:
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    tensors = {n: t.detach() for n, t in net.state_dict().items()}
    made = quantized(trace(net, x), tensors, {}, x, bits=8, inputs=False)
    assert made.left == ("0.weight",)  # 8 codes and 8 scales: 40 bytes instead of 32
    assert set(made.codings) == {"2.weight"}


def test_stored_bytes_are_packed_bits_and_tables() -> None:
    weight = torch.zeros(3, 5)
    assert stored_bytes(weight, None) == 60
    assert stored_bytes(weight, coding([1.0] * 3)) == 15 + 12
    assert stored_bytes(weight, coding([1.0] * 3, bits=4)) == 8 + 12
    assert stored_bytes(weight, Coding("shared", 3, codebook=np.zeros(8, dtype=np.float32))) == 6 + 32
    with_inputs = Coding("quantized", 8, scale=np.ones(3, dtype=np.float32), input_scale=0.1)
    assert stored_bytes(weight, with_inputs) == 15 + 12 + 4
