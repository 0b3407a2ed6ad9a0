"""Codebooks against the best there is, and training of what is shared."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from prunerl.compressions.codes import nearest
from prunerl.compressions.sharing import assignments, codebook_of, held, recoded, shared
from prunerl.deploy.program import Coding
from prunerl.trace import trace


def random(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def error(values: np.ndarray, codebook: np.ndarray) -> float:
    return float(np.square(values - codebook[nearest(values, codebook)]).sum())


def test_clusters_that_lie_apart_are_found_with_their_means() -> None:
    values = np.array([[-5.1, -4.9, 0.0], [1.0, 1.2, 1.4], [8.0, 9.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(codebook_of(values, 2), [-5.0, 0.0, 1.2, 8.5], rtol=1e-6)


def test_a_codebook_is_near_the_best_of_all_partitions() -> None:
    """In one dimension clusters are intervals, so all can be tried; zero is an entry of its own."""
    values = np.sort(random(14))
    best = np.inf
    for cuts in combinations(range(1, len(values)), 2):
        means = [part.mean() for part in np.split(values, cuts)]
        best = min(best, error(values, np.union1d(np.float32(means), np.float32([0.0]))))
    assert error(values, codebook_of(values, 2)) <= 1.5 * best


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_there_are_at_most_two_to_the_bits_values_sorted_with_zero(bits: int) -> None:
    values = random(3000, seed=bits)
    values[::3] = 0.0
    codebook = codebook_of(values, bits)
    assert len(codebook) <= 2**bits
    assert bool((np.diff(codebook) > 0).all())
    assert 0.0 in codebook
    assert bool((codebook[nearest(values, codebook)][values == 0] == 0.0).all())
    spread = float(np.square(values).sum())
    assert error(values, codebook) < spread * {2: 0.25, 3: 0.06, 4: 0.02, 8: 1e-4}[bits]


def test_few_distinct_values_are_kept_exactly() -> None:
    values = np.array([0.1, 0.2, 0.1, -3.0], dtype=np.float32)
    codebook = codebook_of(values, 2)
    assert np.array_equal(codebook[nearest(values, codebook)], values)


def test_a_shared_value_learns_from_the_sum_of_gradients_and_zero_does_not_learn() -> None:
    coding = Coding("shared", 2, codebook=np.array([-1.0, 0.0, 2.0], dtype=np.float32))
    weight = torch.tensor([[-1.0, 0.0, 2.0], [-1.0, -1.0, 0.0]], requires_grad=True)
    codes = assignments(weight, coding)
    assert codes.tolist() == [[0, 1, 2], [0, 0, 1]]
    gradient = torch.tensor([[1.0, 10.0, 100.0], [2.0, 6.0, 1000.0]])
    (held(weight, coding, codes) * gradient).sum().backward()
    assert weight.grad is not None
    # −1 is shared by three, whose gradients 1, 2 and 6 make 9; each gets a third of it.
    assert weight.grad.tolist() == [[3.0, 0.0, 100.0], [3.0, 3.0, 0.0]]


def test_held_values_are_equal_to_the_last_bit_and_recoded_exactly() -> None:
    values = random(4000).reshape(40, 100)
    values[values > 1] = 0.0
    coding = Coding("shared", 4, codebook=codebook_of(values, 4))
    assert coding.codebook is not None
    weight = torch.from_numpy(coding.codebook[nearest(values, coding.codebook)])
    codes = assignments(weight, coding)
    moved = held(weight + 0.01 * torch.from_numpy(random(4000, 1).reshape(40, 100)), coding, codes)
    again = recoded(moved, coding)
    assert again.codebook is not None
    assert len(again.codebook) <= 16
    assert np.array_equal(again.codebook[assignments(moved, again).numpy()], moved.numpy())
    assert bool((moved[weight == 0] == 0).all())


def test_each_layer_has_its_own_codebook_and_one_that_saves_nothing_is_left() -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2))
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    tensors = {n: t.detach() for n, t in net.state_dict().items()}
    made = shared(trace(net, x), tensors, {}, x, bits=6)
    assert made.left == ("2.weight",)  # 60 places of 6 bits and up to 64 values: 301 bytes instead of 240
    assert set(made.codings) == {"0.weight"}
    codebook = made.codings["0.weight"].codebook
    assert codebook is not None
    assert set(np.unique(made.tensors["0.weight"].numpy())) <= set(codebook)
    assert torch.equal(made.tensors["2.weight"], tensors["2.weight"])
