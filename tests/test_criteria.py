"""Each criterion against numbers worked out by hand, and what all of them have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from prunerl import criteria
from prunerl.errors import NameUnknownError
from prunerl.evidence import VisitedEvidence
from prunerl.trace import groups as find_groups
from prunerl.trace import layer_groups, trace, unit_groups, weight_groups
from prunerl.types import Head, State

GAUSSIAN = Head("gaussian")


@dataclass(frozen=True, eq=False)
class KnownEvidence(VisitedEvidence):
    """Evidence whose gradients are given, one mapping a minibatch."""

    known: Sequence[Mapping[str, Tensor]] = ()

    def gradients(self, batch: int) -> Iterator[Mapping[str, Tensor]]:
        yield from self.known


def evidence_of(
    network: nn.Module, observations: Tensor, *, known: Sequence[Mapping[str, Tensor]] = (), seed: int = 0
) -> VisitedEvidence:
    traced = trace(network, observations.expand(max(2, len(observations)), -1))
    state = State({name: tensor.detach() for name, tensor in network.named_parameters()})
    parts = (traced, state, GAUSSIAN, lambda: observations, torch.Generator().manual_seed(seed))
    return KnownEvidence(*parts, known=known) if known else VisitedEvidence(*parts)


def fill(network: nn.Module, values: Mapping[str, object]) -> nn.Module:
    network.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    return network


@pytest.fixture(scope="module")
def small() -> VisitedEvidence:
    """A 2-2-1 network in two states.

    Its activations are [2, 0] in the first state and [3, 1] in the second, its outputs 4.5 and 3.5.
    """
    network = fill(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)),
        {"0.weight": [[1.0, 2.0], [-1.0, 1.0]], "0.bias": [1.0, 0.0], "2.weight": [[2.0, -3.0]], "2.bias": [0.5]},
    )
    first = {"0.weight": [[1.0, 0.0], [0.0, -1.0]], "0.bias": [0.0, 1.0], "2.weight": [[1.0, 2.0]], "2.bias": [7.0]}
    second = {"0.weight": [[-1.0, 0.0], [2.0, 1.0]], "0.bias": [0.0, -1.0], "2.weight": [[-1.0, 0.0]], "2.bias": [7.0]}
    known = [{name: torch.tensor(value) for name, value in batch.items()} for batch in (first, second)]
    return evidence_of(network, torch.eye(2), known=known)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


SOFT_INPUT = (softplus(1) + softplus(0)) / 2
SOFT = ((softplus(2) + softplus(3)) / 2, (softplus(0) + softplus(1)) / 2)

UNITS = {
    "magnitude": [1 + 2 + 1 + 2, 1 + 1 + 0 + 3],
    "magnitude_l2": [math.sqrt(1 + 4 + 1 + 4), math.sqrt(1 + 1 + 0 + 9)],
    "gradient": [(1 + 0) + 0 + 1, (1 + 1) + 1 + 1],
    "gradient_squared": [(1 + 0) + 0 + 1, (2 + 1) + 1 + 2],
    # By minibatch: |1 + 0 + 0 + 2| and |−1 + 0 + 0 − 2|; |0 − 1 + 0 − 6| and |−2 + 1 + 0 + 0|.
    "taylor": [(3 + 3) / 2, (7 + 1) / 2],
    "fisher": [(1 * 1 + 4 * 0 + 1 * 0 + 4 * 1) / 2, (1 * 2 + 1 * 1 + 0 * 1 + 9 * 2) / 2],
    "activation": [(2 + 3) / 2, (0 + 1) / 2],
    "activation_squared": [(4 + 9) / 2, (0 + 1) / 2],
    "activation_softplus": list(SOFT),
    "wanda": [1 + 2 + math.sqrt(2) + 2 * math.sqrt(4 + 9), 1 + 1 + 0 + 3],
    # Without the first unit the output falls by 4 and 6, without the second it changes by 0 and 3.
    "sensitivity": [(16 + 36) / 2 / 2, (0 + 9) / 2 / 2],
    "variance": [0.5 * 2, 0.5 * 3],
}

WEIGHTS = {
    "magnitude": ([1, 2, 1, 1], [2, 3]),
    "magnitude_l2": ([1, 2, 1, 1], [2, 3]),
    "gradient": ([1, 0, 1, 1], [1, 1]),
    "gradient_squared": ([1, 0, 2, 1], [1, 2]),
    "taylor": ([1, 0, 1, 1], [2, 3]),
    "fisher": ([0.5, 0, 1, 0.5], [2, 9]),
    "activation": ([0.5, 1, 0.5, 0.5], [2 * 2.5, 3 * 0.5]),
    "activation_squared": ([0.5, 1, 0.5, 0.5], [2 * 6.5, 3 * 0.5]),
    "activation_softplus": ([w * SOFT_INPUT for w in (1, 2, 1, 1)], [2 * SOFT[0], 3 * SOFT[1]]),
    "wanda": ([1, 2, 1, 1], [2 * math.sqrt(13), 3]),
    "sensitivity": ([0.5, 0, 1, 0.5], [2, 9]),
    "variance": ([0.5, 1, 0.5, 0.5], [2 * 0.5, 3 * 0.5]),
}


def test_every_criterion_has_numbers_worked_out_by_hand() -> None:
    assert set(UNITS) == set(WEIGHTS) == set(criteria.__all__) - {"random"}


@pytest.mark.parametrize("name", UNITS)
def test_units_score_what_was_worked_out(small: VisitedEvidence, name: str) -> None:
    scores = criteria.find(name)(small, unit_groups(small.traced, small.state.tensors))
    assert scores["0"].tolist() == pytest.approx(UNITS[name])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_score_what_was_worked_out(small: VisitedEvidence, name: str) -> None:
    scores = criteria.find(name)(small, weight_groups(small.traced, small.state))
    assert scores["0.weight"].tolist() == pytest.approx(WEIGHTS[name][0])
    assert scores["2.weight"].tolist() == pytest.approx(WEIGHTS[name][1])


@pytest.mark.parametrize("name", UNITS)
def test_a_layer_scores_the_mean_of_its_units(small: VisitedEvidence, name: str) -> None:
    scores = criteria.find(name)(small, layer_groups(small.traced))
    assert scores["0"].tolist() == pytest.approx([sum(UNITS[name]) / 2])


def test_the_worked_example_of_the_founding_article() -> None:
    """A 2-3-1 network with hidden activations A = [0.2, 0.3, 0.4].

    The article prints log(1 + eᵃ) = [0.1823, 0.2039, 0.2308], which is wrong, and a weight gradient without the
    factor of the layer's input: ∂L/∂W⁽ˡ⁾ = δ⁽ˡ⁾ A⁽ˡ⁻¹⁾ᵀ. The bias gradient is δ⁽ˡ⁾ itself, so the ratio of the two
    shows that factor, whatever the loss is.
    """
    network = fill(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        {
            "0.weight": [[0.1, 0.05], [0.2, 0.05], [0.3, 0.05]],
            "0.bias": [0.0, 0.0, 0.0],
            "2.weight": [[0.5, -0.6, 0.7]],
            "2.bias": [0.1],
        },
    )
    evidence = evidence_of(network, torch.tensor([[1.0, 2.0]]))
    scores = criteria.activation_softplus(evidence, unit_groups(evidence.traced, evidence.state.tensors))
    assert scores["0"].tolist() == pytest.approx([0.7981, 0.8544, 0.9130], abs=5e-5)

    (gradients,) = evidence.gradients(1)
    delta = gradients["2.bias"]
    torch.testing.assert_close(gradients["2.weight"], delta.outer(torch.tensor([0.2, 0.3, 0.4])))
    hidden = network[2].weight.detach().T @ delta  # the ReLU is open for all three
    torch.testing.assert_close(gradients["0.bias"], hidden)
    torch.testing.assert_close(gradients["0.weight"], hidden.outer(torch.tensor([1.0, 2.0])))


class Kernel(nn.Module):
    """The network of ``small`` as a framework stores it that multiplies by an (inputs, outputs) kernel."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.first = nn.Parameter(tensors["0.weight"].T.contiguous())
        self.offset = nn.Parameter(tensors["0.bias"].clone())
        self.second = nn.Parameter(tensors["2.weight"].T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.first + self.offset) @ self.second


@pytest.mark.parametrize("name", ["magnitude", "activation", "wanda", "sensitivity", "variance"])
def test_a_transposed_kernel_scores_the_same(small: VisitedEvidence, name: str) -> None:
    evidence = evidence_of(Kernel(small.state.tensors), torch.eye(2))
    units = criteria.find(name)(evidence, unit_groups(evidence.traced, evidence.state.tensors))
    weights = criteria.find(name)(evidence, weight_groups(evidence.traced, evidence.state))
    assert units["first"].tolist() == pytest.approx(UNITS[name])
    if name != "sensitivity":  # whose gradients are given for ``small`` only
        as_stored = torch.tensor(WEIGHTS[name][0]).reshape(2, 2).T.flatten()
        assert weights["first"].tolist() == pytest.approx(as_stored.tolist())


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.left = nn.Linear(2, 1)
        self.right = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(x))
        return self.left(hidden) + self.right(torch.tanh(hidden))


def test_all_layers_that_read_a_unit_count() -> None:
    network = fill(
        TwoReaders(),
        {
            "hidden.weight": [[1.0, 0.0], [0.0, 1.0]],
            "hidden.bias": [0.0, 0.0],
            "left.weight": [[3.0, 1.0]],
            "left.bias": [0.0],
            "right.weight": [[4.0, 1.0]],
            "right.bias": [0.0],
        },
    )
    evidence = evidence_of(network, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    groups = unit_groups(evidence.traced, evidence.state.tensors)
    # The left layer sees a deviation of 1, the right one of tanh(2)/2; the norm is over both.
    expected = math.sqrt((1 * 3) ** 2 + (math.tanh(2) / 2 * 4) ** 2)
    assert criteria.variance(evidence, groups)["hidden"].tolist() == pytest.approx([expected, 0])
    assert criteria.activation(evidence, groups)["hidden"].tolist() == pytest.approx([(1 + math.tanh(2) / 2) / 2, 0])


@pytest.fixture(scope="module")
def dead() -> VisitedEvidence:
    """A 3-6-5-2 network; all that unit 1 of the first and unit 2 of the second layer own is zero."""
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for layer, reader, unit in ((0, 2, 1), (2, 4, 2)):
            network[layer].weight[unit] = network[layer].bias[unit] = 0
            network[reader].weight[:, unit] = 0
    return evidence_of(network, torch.randn(200, 3, generator=torch.Generator().manual_seed(1)))


def seeded(evidence: VisitedEvidence, seed: int) -> VisitedEvidence:
    parts = (evidence.traced, evidence.state, evidence.head, evidence.collect)
    return VisitedEvidence(*parts, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("structure", ["units", "weights", "layers"])
@pytest.mark.parametrize("name", criteria.__all__)
def test_scores_are_finite_numbers_that_equal_seeds_repeat(dead: VisitedEvidence, name: str, structure: str) -> None:
    groups = find_groups(dead.traced, dead.state, structure)
    scores = criteria.find(name)(seeded(dead, 5), groups)
    again = criteria.find(name)(seeded(dead, 5), groups)
    assert list(scores) == [group.name for group in groups]
    for group in groups:
        assert scores[group.name].shape == (group.units,)
        assert scores[group.name].isfinite().all()
        assert not scores[group.name].requires_grad
        assert torch.equal(scores[group.name], again[group.name])


@pytest.mark.parametrize("name", sorted(set(criteria.__all__) - {"random"}))
def test_a_unit_of_zeros_scores_lowest(dead: VisitedEvidence, name: str) -> None:
    scores = criteria.find(name)(seeded(dead, 5), unit_groups(dead.traced, dead.state.tensors))
    for group, unit in (("0", 1), ("2", 2)):
        others = torch.cat([scores[group][:unit], scores[group][unit + 1 :]])
        assert scores[group][unit] <= others.min()
        assert scores[group][unit] < others.max()


@pytest.mark.parametrize("name", ["magnitude", "magnitude_l2", "random"])
def test_criteria_of_weights_alone_collect_no_states(dead: VisitedEvidence, name: str) -> None:
    def collect() -> Tensor:
        raise AssertionError("no state is needed")

    evidence = VisitedEvidence(dead.traced, dead.state, dead.head, collect, torch.Generator())
    for structure in ("units", "weights", "layers"):
        criteria.find(name)(evidence, find_groups(dead.traced, dead.state, structure))


def test_sensitivity_ablates_on_states_spread_over_all(dead: VisitedEvidence) -> None:
    groups = unit_groups(dead.traced, dead.state.tensors)
    few = dead.observations[:100]
    repeated = few.repeat_interleave(6, dim=0)  # 600 states, of which every second one is taken

    def scores(states: Tensor) -> Tensor:
        parts = (dead.traced, dead.state, dead.head, lambda: states, torch.Generator())
        return criteria.sensitivity(VisitedEvidence(*parts), groups)["0"]

    torch.testing.assert_close(scores(repeated), scores(few))


def test_find_takes_dashes_and_names_the_nearest() -> None:
    assert criteria.find("activation-softplus") is criteria.activation_softplus
    with pytest.raises(NameUnknownError, match=r"Unknown criterion 'magnitud'\. Did you mean 'magnitude'"):
        criteria.find("magnitud")
    with pytest.raises(NameUnknownError):
        criteria.find("find")
