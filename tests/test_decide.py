"""Decisions keep what they say, to the unit, and never empty a group in silence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from prunerl import decide
from prunerl.errors import BudgetError, NameUnknownError
from prunerl.trace import Trace, layer_groups, trace, unit_groups, weight_groups
from prunerl.types import Group, Scores, Slice, State


def group(name: str, units: int, structure: str = "units") -> Group:
    return Group(name, units, (), structure)


def scores_of(**scores: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(score) for name, score in scores.items()}


def kept(decision: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in decision.items()}


@pytest.fixture(scope="module")
def network() -> tuple[Trace, dict[str, Tensor]]:
    """A 4-9-7-2 network with 131 parameters and 113 MACs."""
    module = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 2))
    return trace(module, torch.ones(2, 4)), {name: tensor.detach() for name, tensor in module.named_parameters()}


@pytest.fixture(scope="module")
def units(network: tuple[Trace, dict[str, Tensor]]) -> tuple[tuple[Group, ...], Scores]:
    groups = unit_groups(*network)
    generator = torch.Generator().manual_seed(0)
    return groups, {g.name: torch.rand(g.units, generator=generator) for g in groups}


def parameters(first: int, second: int) -> int:
    return 4 * first + first + first * second + second + second * 2 + 2


def macs(first: int, second: int) -> int:
    return 4 * first + first * second + second * 2


def test_threshold_keeps_what_scores_more() -> None:
    decision = decide.threshold(scores_of(a=[0.0, 0.1, 0.2], b=[0.3]), 0.1)
    assert {name: mask.tolist() for name, mask in decision.items()} == {"a": [False, False, True], "b": [True]}


def test_global_ranks_all_units_and_local_those_of_a_group() -> None:
    groups = [group("a", 4), group("b", 2)]
    scores = scores_of(a=[4.0, 1.0, 3.0, 2.0], b=[30.0, 20.0])
    by_all = decide.by_sparsity(groups, scores, 0.5)
    by_group = decide.by_sparsity(groups, scores, 0.5, scope="local")
    uniform = decide.by_sparsity(groups, scores, 0.5, distribution="uniform")
    assert {name: mask.tolist() for name, mask in by_all.items()} == {
        "a": [True, False, False, False],
        "b": [True, True],
    }
    assert {name: mask.tolist() for name, mask in by_group.items()} == {
        "a": [True, False, True, False],
        "b": [True, False],
    }
    assert all(torch.equal(uniform[name], by_group[name]) for name in uniform)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.55, 0.9])
def test_at_most_the_share_is_left_and_no_unit_less(sparsity: float, scope: str) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [group("a", 60), group("b", 40)]
    scores = {g.name: torch.rand(g.units, generator=generator) for g in groups}
    decision = decide.by_sparsity(groups, scores, sparsity, scope=scope)
    assert sum(kept(decision).values()) == round(100 * (1 - sparsity))
    if scope == "local":
        assert kept(decision) == {"a": round(60 * (1 - sparsity)), "b": round(40 * (1 - sparsity))}


def test_of_equal_scores_the_first_is_kept() -> None:
    decision = decide.by_sparsity([group("a", 4)], scores_of(a=[1.0, 1.0, 1.0, 1.0]), 0.5)
    assert decision["a"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.8])
@pytest.mark.parametrize(("count", "cost"), [("parameters", parameters), ("macs", macs)])
def test_a_share_of_the_network_counts_rows_and_the_columns_that_read_them(
    network: tuple[Trace, dict[str, Tensor]], units: tuple[tuple[Group, ...], Scores], sparsity: float, count: str, cost
) -> None:
    groups, scores = units
    traced, tensors = network
    decision = decide.by_sparsity(groups, scores, sparsity, count=count, traced=traced, tensors=tensors)
    budget = (1 - sparsity) * cost(9, 7)
    assert cost(*kept(decision).values()) <= budget
    assert all(cost(*widths) > budget for widths in with_one_more(decision, scores))


def with_one_more(decision: dict[str, Tensor], scores: Scores) -> list[tuple[int, ...]]:
    """Return the widths with the best removed unit back, or nothing when all are kept."""
    removed = {name: scores[name][~mask].max() for name, mask in decision.items() if not mask.all()}
    if not removed:
        return []
    best = max(removed, key=lambda name: float(removed[name]))
    return [tuple(int(mask.sum()) + (name == best) for name, mask in decision.items())]


@pytest.mark.parametrize("target", [131, 130, 100, 60, 20, 11])
def test_parameters_are_met_as_closely_as_whole_units_can(
    network: tuple[Trace, dict[str, Tensor]], units: tuple[tuple[Group, ...], Scores], target: int
) -> None:
    groups, scores = units
    decision = decide.by_parameters(groups, scores, *network, target)
    assert parameters(9, 7) == 131
    assert parameters(1, 1) == 11
    assert min(kept(decision).values()) >= 1
    assert parameters(*kept(decision).values()) <= target
    if target > 20:  # below, the floor has a say
        assert all(parameters(*w) > target for w in with_one_more(decision, decide.normalized(scores)))


def test_parameters_of_single_weights_are_those_that_are_not_held_at_zero(
    network: tuple[Trace, dict[str, Tensor]],
) -> None:
    traced, tensors = network
    groups = weight_groups(traced, State(tensors))
    scores = {g.name: tensors[g.name].abs().flatten() for g in groups}
    decision = decide.by_parameters(groups, scores, traced, tensors, 50)
    assert sum(kept(decision).values()) + 9 + 7 + 2 == 50


def test_parameters_do_not_depend_on_the_scale_of_a_group(
    network: tuple[Trace, dict[str, Tensor]], units: tuple[tuple[Group, ...], Scores]
) -> None:
    groups, scores = units
    scaled = {name: score * (1000.0 if name == "0" else 1.0) for name, score in scores.items()}
    assert kept(decide.by_parameters(groups, scores, *network, 60)) == kept(
        decide.by_parameters(groups, scaled, *network, 60)
    )


def test_a_target_below_the_floor_names_the_least_that_is_possible(
    network: tuple[Trace, dict[str, Tensor]], units: tuple[tuple[Group, ...], Scores]
) -> None:
    with pytest.raises(BudgetError, match=r"has 11 parameters, more than the target of 10\. Set the target to 11"):
        decide.by_parameters(*units, *network, 10)
    with pytest.raises(BudgetError, match="would keep 0 of"):
        decide.by_parameters(*units, *network, 10, min_units=0)


def test_an_emptied_group_is_an_error_and_the_floor_mends_it() -> None:
    groups = [group("q_net.2", 64)]
    scores = {"q_net.2": torch.arange(64.0)}
    message = r"^Group 'q_net\.2' would keep 0 of 64 units at sparsity 0\.99\. Lower the sparsity or set min_units=1\.$"
    with pytest.raises(BudgetError, match=message):
        decide.by_sparsity(groups, scores, 0.99, min_units=0)
    assert kept(decide.by_sparsity(groups, scores, 0.99)) == {"q_net.2": 1}


def test_the_floor_keeps_the_best_units_of_each_group() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = scores_of(a=[0.1, 0.4, 0.3, 0.2], b=[5.0, 6.0, 7.0, 8.0])
    decision = decide.by_sparsity(groups, scores, 0.5, min_units=2)
    assert decision["a"].tolist() == [False, True, True, False]
    assert decision["b"].tolist() == [False, False, True, True]
    assert kept(decide.by_sparsity(groups, scores, 0.9, min_units=9)) == {"a": 4, "b": 4}


def test_layers_may_be_dropped(network: tuple[Trace, dict[str, Tensor]]) -> None:
    groups = layer_groups(network[0])
    decision = decide.by_sparsity(groups, scores_of(**{"0": [2.0], "2": [1.0]}), 0.5)
    assert kept(decision) == {"0": 1, "2": 0}
    with pytest.raises(BudgetError, match="Layers own no tensors"):
        decide.by_parameters(groups, scores_of(**{"0": [2.0], "2": [1.0]}), *network, 20)


def test_a_unit_of_several_columns_counts_all_of_them(network: tuple[Trace, dict[str, Tensor]]) -> None:
    """Three units of the first layer's nine, as channels of which each owns three rows and columns."""
    traced, tensors = network
    index = torch.arange(9).reshape(3, 3)
    channels = Group("0", 3, (Slice("0.weight", 0, index), Slice("0.bias", 0, index), Slice("2.weight", 1, index)))
    scores = scores_of(**{"0": [1.0, 3.0, 2.0]})
    one_removed = decide.by_parameters([channels], scores, traced, tensors, parameters(6, 7))
    assert one_removed["0"].tolist() == [False, True, True]
    assert kept(decide.by_parameters([channels], scores, traced, tensors, parameters(6, 7) - 1)) == {"0": 1}


def test_erk_prunes_the_middle_matrix() -> None:
    """4-512-512-2 at 95 %: 13 260.8 of 265 216 weights stay, of which the first and last matrix take 3 072."""
    densities = decide.erk([(512, 4), (512, 512), (2, 512)], 0.05)
    assert densities[0] == densities[2] == 1.0
    assert densities[1] == pytest.approx((13_260.8 - 3_072) / 262_144)
    assert 1 - densities[1] == pytest.approx(0.961, abs=5e-4)


def test_erk_with_nothing_dense_follows_the_formula() -> None:
    """Σ/Π of (10, 10) is 0.2 and of (20, 20) 0.1, so ε = 50/(100·0.2 + 400·0.1) = 5/6."""
    assert decide.erk([(10, 10), (20, 20)], 0.1) == pytest.approx((0.2 * 5 / 6, 0.1 * 5 / 6))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_erk_meets_the_density(density: float) -> None:
    shapes = [(64, 8), (64, 64), (32, 64), (4, 32)]
    sizes = [math.prod(shape) for shape in shapes]
    densities = decide.erk(shapes, density)
    assert sum(d * n for d, n in zip(densities, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    assert all(0 < d <= 1 + 1e-12 for d in densities)


def test_a_decision_by_erk(network: tuple[Trace, dict[str, Tensor]]) -> None:
    traced, tensors = network
    groups = weight_groups(traced, State(tensors))
    scores = {g.name: torch.arange(float(g.units)) for g in groups}
    decision = decide.by_sparsity(groups, scores, 0.5, distribution="erk", tensors=tensors)
    shapes = [tuple(tensors[g.name].shape) for g in groups]
    for (name, mask), shape, density in zip(decision.items(), shapes, decide.erk(shapes, 0.5), strict=True):
        expected = math.floor(density * math.prod(shape) + 1e-9)
        assert torch.equal(mask, scores[name] >= len(mask) - expected)


def test_erk_is_for_weights(units: tuple[tuple[Group, ...], Scores], network: tuple[Trace, dict[str, Tensor]]) -> None:
    with pytest.raises(BudgetError, match="shares out single weights"):
        decide.by_sparsity(*units, 0.5, distribution="erk", tensors=network[1])


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.95, 0.999])
def test_the_expected_sparsity_is_the_target(sparsity: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(300, generator=generator), "b": torch.randn(200, generator=generator)}
    dropped = torch.cat(list(decide.drop_probabilities(scores, sparsity, temperature=temperature).values()))
    assert float(dropped.sum()) == pytest.approx(sparsity * 500)
    assert dropped.min() >= 0
    assert dropped.max() <= 1 + 1e-9
    in_order = dropped[torch.cat(list(scores.values())).argsort()]
    assert (in_order.diff() <= 1e-12).all()  # the higher the score, the less likely the drop
    if sparsity == 0.5 and temperature == 1.0:
        assert in_order[0] > in_order[-1]


def test_drop_probabilities_worked_out() -> None:
    """Scores ±1 are their own z: at T = 2 the drops are as e^(½) to e^(−½), and sum to 2 · 0.25."""
    dropped = decide.drop_probabilities({"a": torch.tensor([-1.0, 1.0])}, 0.25, temperature=2.0)["a"]
    total = math.exp(0.5) + math.exp(-0.5)
    assert dropped.tolist() == pytest.approx([0.5 * math.exp(0.5) / total, 0.5 * math.exp(-0.5) / total])


def test_drop_probabilities_that_reach_one_leave_the_rest_to_the_others() -> None:
    """At 0.75 the lower one would have 1.5 e/(e + 1/e) > 1, so it has 1 and the higher one 0.5."""
    dropped = decide.drop_probabilities({"a": torch.tensor([-1.0, 1.0])}, 0.75, temperature=1.0)["a"]
    assert dropped.tolist() == pytest.approx([1.0, 0.5])


def test_draws_repeat_with_the_seed_and_meet_the_probabilities() -> None:
    scores = {"a": torch.arange(10_000.0)}

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return decide.by_probability(scores, 0.4, temperature=1.0, generator=generator)["a"]

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert float((~draw(0)).float().mean()) == pytest.approx(0.4, abs=0.02)
    low, high = draw(0).split(5_000)
    assert low.sum() < high.sum()


def test_equal_scores_drop_with_equal_probability() -> None:
    dropped = decide.drop_probabilities({"a": torch.full((3,), 0.1), "b": torch.full((2,), 0.1)}, 0.3)
    assert torch.cat(list(dropped.values())).tolist() == pytest.approx([0.3] * 5)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_is_in_its_range(sparsity: float) -> None:
    with pytest.raises(BudgetError, match="at least 0 and less than 1"):
        decide.by_sparsity([group("a", 2)], scores_of(a=[1.0, 2.0]), sparsity)
    with pytest.raises(BudgetError, match="at least 0 and less than 1"):
        decide.drop_probabilities(scores_of(a=[1.0, 2.0]), sparsity)
    if sparsity != 0.0:
        with pytest.raises(BudgetError, match="ERK got density"):
            decide.erk([(2, 2)], 1 - sparsity if sparsity > 0 else 1.1)


def test_what_has_no_meaning_is_refused() -> None:
    groups, scores = [group("a", 2)], scores_of(a=[1.0, 2.0])
    nan = scores_of(a=[1.0, math.nan])
    with pytest.raises(BudgetError, match="score that is NaN"):
        decide.by_sparsity(groups, nan, 0.5)
    with pytest.raises(BudgetError, match="score that is NaN"):
        decide.threshold(nan, 0.5)
    with pytest.raises(BudgetError, match="threshold is NaN"):
        decide.threshold(scores, math.nan)
    with pytest.raises(BudgetError, match=r"needs scores of shape \(2,\), got none"):
        decide.by_sparsity(groups, {}, 0.5)
    with pytest.raises(BudgetError, match=r"got \(3,\)"):
        decide.by_sparsity(groups, scores_of(a=[1.0, 2.0, 3.0]), 0.5)
    with pytest.raises(BudgetError, match="no groups"):
        decide.by_sparsity([], {}, 0.5)
    with pytest.raises(BudgetError, match="min_units=-1"):
        decide.by_sparsity(groups, scores, 0.5, min_units=-1)
    with pytest.raises(BudgetError, match="Pass traced and tensors"):
        decide.by_sparsity(groups, scores, 0.5, count="macs")
    with pytest.raises(BudgetError, match="temperature 0"):
        decide.drop_probabilities(scores, 0.5, temperature=0.0)
    with pytest.raises(BudgetError, match="infinite score"):
        decide.drop_probabilities(scores_of(a=[1.0, math.inf]), 0.5)
    with pytest.raises(NameUnknownError, match="Unknown scope 'globe'"):
        decide.by_sparsity(groups, scores, 0.5, scope="globe")


def test_an_infinite_score_forces_a_unit_out_or_in(
    network: tuple[Trace, dict[str, Tensor]], units: tuple[tuple[Group, ...], Scores]
) -> None:
    groups, scores = units
    first = scores["0"].clone()
    first[3], first[4] = -math.inf, math.inf
    decision = decide.by_parameters(groups, {**scores, "0": first}, *network, 60)
    assert not decision["0"][3]
    assert decision["0"][4]
