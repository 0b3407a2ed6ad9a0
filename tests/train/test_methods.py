"""Every method against masks computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prunerl.errors import BudgetError, NameUnknownError
from prunerl.train.method import Method, Sight, cubic
from prunerl.train.methods.evolve import SET, RigL
from prunerl.train.methods.gradual import Gradual
from prunerl.train.methods.lottery import Lottery
from prunerl.train.methods.movement import Movement
from prunerl.train.methods.redo import ReDo
from prunerl.train.methods.rlx2 import RLx2
from prunerl.train.methods.static import Static
from prunerl.train.methods.surgery import KEYS, Surgery, adam, remember
from prunerl.train.networks import Hidden

EVERY = (Gradual, Lottery, Movement, ReDo, RigL, RLx2, SET, Static, Surgery)
WEIGHT = torch.tensor([[0.1, -0.5, 0.3, 0.7], [-0.2, 0.4, -0.6, 0.8]])
SOME = torch.tensor([[False, True, True, True], [False, True, True, True]])


def sight(
    weight: Tensor = WEIGHT, mask: Tensor | None = None, *, kept: int = 2, done: int = 10, span: int = 10, **more: Any
) -> Sight:
    """Return what a method sees of one matrix ``w`` of the actor."""
    masks = {"w": torch.ones_like(weight, dtype=torch.bool) if mask is None else mask}
    generator = torch.Generator().manual_seed(0)
    return Sight(
        {"w": weight, "b": torch.ones(2)}, masks, {"actor": ("w",)}, {"w": kept}, done, span, generator, **more
    )


def test_gradual_keeps_the_largest_along_a_cubic_curve() -> None:
    assert [cubic(sight(done=done)) for done in (-5, 0, 10, 99)] == [0.0, 0.0, 1.0, 1.0]
    assert cubic(sight(done=5)) == pytest.approx(0.875)
    assert Gradual().change(sight()).masks["w"].tolist() == [[False] * 3 + [True], [False] * 3 + [True]]
    # Half way 7/8 of the six that go have gone: 5.25, so 3 of 8 are left.
    halfway = Gradual().change(sight(done=5)).masks["w"]
    assert halfway.tolist() == [[False, False, False, True], [False, False, True, True]]
    assert bool(Gradual().change(sight(done=0)).masks["w"].all())


def test_gradual_over_all_matrices_takes_the_smallest_wherever_they_are() -> None:
    weights = {"a": torch.tensor([[0.1, 0.2]]), "b": torch.tensor([[3.0, 4.0, 0.3, 5.0]])}
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    seen = Sight(weights, masks, {"actor": ("a", "b")}, {"a": 1, "b": 3}, 1, 1, torch.Generator())
    found = Gradual(distribution="erk").change(seen).masks
    assert {n: m.tolist() for n, m in found.items()} == {"a": [[False, True]], "b": [[True, True, False, True]]}
    with pytest.raises(BudgetError, match="'a' would keep 0 of 2 weights"):
        Gradual(distribution="global").change(seen)
    seen = Sight({**weights, "a": weights["a"] * 15}, masks, seen.parts, {"a": 1, "b": 3}, 1, 1, torch.Generator())
    found = Gradual(distribution="global").change(seen).masks
    assert {n: m.tolist() for n, m in found.items()} == {"a": [[False, True]], "b": [[True, True, False, True]]}
    parts = {"actor": ("a",), "critic": ("b",)}
    found = Gradual(distribution="global").change(
        Sight(weights, masks, parts, {"a": 1, "b": 1}, 1, 1, torch.Generator())
    )
    assert {n: m.tolist() for n, m in found.masks.items()} == {"a": [[False, True]], "b": [[False, False, False, True]]}


def test_probability_drops_for_sure_what_is_far_smaller_than_the_rest() -> None:
    weight = torch.full((10, 10), 1.0)
    weight[0] = 0.0
    # The ten small ones are 3 deviations below the mean, the others 1/3 above: p ∝ e³ and e^(−1/3), a ratio of 28. For
    # 15 of 100 on average, ten times 1, which 15·e³ / (10·e³ + 90·e^(−1/3)) exceeds, and ninety times 5/90.
    found = Gradual(rule="probability").change(sight(weight, kept=85)).masks["w"]
    assert not bool(found[0].any())
    assert int((~found).sum()) == pytest.approx(15, abs=6.5)  # within three deviations


def test_probability_lets_small_weights_go_more_often_and_never_brings_one_back() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.linspace(0.0, 1.0, 4000).view(40, 100)
    mask = torch.rand(weight.shape, generator=generator) > 0.25
    change = Gradual(rule="probability").change(sight(weight, mask, kept=1000))
    found = change.masks["w"]
    assert not bool((found & ~mask).any())
    assert int(found.sum()) == pytest.approx(1000, abs=90)  # three deviations
    assert int(found[20:].sum()) > 1.5 * int(found[:20].sum())
    with pytest.raises(NameUnknownError, match="Choose from: best, probability"):
        Gradual(rule="worst")


def test_static_draws_once_and_stays() -> None:
    method = Static()
    first = method.first(sight(kept=3))["w"]
    assert int(first.sum()) == 3
    assert torch.equal(first, method.first(sight(kept=3))["w"])  # equal seeds
    seen = sight(mask=first)
    assert method.change(seen).masks is seen.masks


def test_rigl_drops_the_smallest_and_grows_by_gradient() -> None:
    gradient = torch.tensor([[0.5, 9.0, 0.0, 9.0], [-0.7, 0.0, 9.0, 9.0]])
    # Six are kept; at the start f = 0.5, so three go: 0.3, 0.4, -0.5. Gradients grow 9.0, -0.7, 0.5.
    found = RigL().change(sight(mask=SOME, done=0, gradients={"w": gradient})).masks["w"]
    assert found.tolist() == [[True, True, False, True], [True, False, True, True]]
    # Half way f = 0.25: one goes (0.3), and the largest gradient elsewhere grows.
    found = RigL().change(sight(mask=SOME, done=5, gradients={"w": gradient})).masks["w"]
    assert found.tolist() == [[False, True, False, True], [True, True, True, True]]
    found = RigL().change(sight(mask=SOME, done=10, gradients={"w": gradient})).masks["w"]
    assert torch.equal(found, SOME)


def test_set_drops_the_smallest_and_grows_anywhere() -> None:
    weight = torch.arange(1.0, 401.0).view(20, 20)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[10:] = True
    found = SET().change(sight(weight, mask, done=0)).masks["w"]
    assert int(found.sum()) == 200
    assert bool(found[15:].all())  # the larger half of 200 stays
    grown = found[:15]
    assert int(grown.sum()) == 100
    assert 15 < int(grown[:5].sum()) < 52  # a third of the places, at random


def test_rlx2_evolves_as_rigl_does() -> None:
    gradient = {"w": torch.rand(2, 4, generator=torch.Generator().manual_seed(1))}
    seen = sight(mask=SOME, done=3, gradients=gradient)
    assert torch.equal(RLx2().change(seen).masks["w"], RigL().change(seen).masks["w"])


def test_movement_masks_what_training_moves_towards_zero() -> None:
    method, seen = Movement(), sight(kept=4)
    gradient = torch.tensor([[-1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]])
    method.watch(seen, {"w": gradient}, 1e-3)
    method.watch(seen, {"w": 2 * gradient}, 1e-3)
    masks = method.change(sight(kept=4)).masks["w"]
    assert bool(masks.all())  # nothing was trained so far: scores of zero say nothing
    # −3·w·g: 0.3, 1.5, -0.9, -2.1; -0.6, -1.2, 1.8, 2.4
    assert seen.memory["w"].tolist()[0] == pytest.approx([0.3, 1.5, -0.9, -2.1])
    assert method.change(seen).masks["w"].tolist() == [[True, True, False, False], [False, False, True, True]]


def test_surgery_prunes_below_one_threshold_and_splices_above_a_higher_one() -> None:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    weight = torch.tensor([[0.1, 1.0, 2.0, 3.0], [4.0, 5.0, 0.0, 0.0]])
    method = Surgery()
    seen = sight(weight, mask, kept=4, memory={"w/w": torch.tensor([[0, 0, 0, 0], [0, 0, -2.3, 3.5]])})
    seen.memory.update({"m/w": torch.ones(2, 4), "v/w": torch.ones(2, 4)})
    # t at which each goes: .11, 1.11, 2.22, 3.33; 4.44, 5.56, and 2.09, 3.18 for the masked ones.
    change = method.change(seen)
    assert change.masks["w"].tolist() == [[False, False, False, True], [True, True, False, True]]
    assert change.values["w"].tolist() == [[0, 0, 0, 3], [4, 5, 0, 3.5]]
    assert seen.memory["w/w"].tolist()[0] == pytest.approx([0.1, 1.0, 2.0, 0.0])  # what goes is remembered
    assert seen.memory["m/w"][0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_unseen_weights_learn_as_pytorch_s_adam_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(3, 3, generator=generator)
    live = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([live], lr=0.01)
    first, second, count = (torch.zeros(3, 3) for _ in range(3))
    for _ in range(5):
        live.grad = torch.rand(3, 3, generator=generator)
        optimizer.step()
        adam(weight, first, second, count.add_(1.0), live.grad, 0.01)
    assert torch.allclose(weight, live, atol=1e-6)


def test_a_weight_that_is_masked_late_moves_as_one_that_is_masked_early() -> None:
    gradients = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    old = {key: torch.zeros(20) for key in KEYS}
    for gradient in gradients[:900]:
        adam(old["w"], old["m"], old["v"], old["t"].add_(1.0), gradient, 1e-3)
    memory = {f"{key}/w": value for key, value in old.items()}
    going = torch.arange(20) < 10
    remember(memory, "w", torch.zeros(20), going)
    new = {key: torch.zeros(20) for key in KEYS}
    for gradient in gradients[900:]:
        for found in (old, new):
            adam(found["w"], found["m"], found["v"], found["t"].add_(1.0), gradient, 1e-3)
    assert torch.equal(old["w"][going], new["w"][going])
    assert not torch.equal(old["w"][~going], new["w"][~going])


def test_redo_recycles_dormant_units() -> None:
    parameters = {"a": torch.ones(3, 4), "b": torch.full((3,), 5.0), "c": torch.ones(2, 3)}
    masks = {"a": torch.ones(3, 4, dtype=torch.bool)}
    seen = Sight(
        parameters, masks, {"actor": ("a",)}, {"a": 12}, 1, 1, torch.Generator().manual_seed(0),
        activity={"relu": torch.tensor([0.0, 1.0, 0.05])}, hidden=(Hidden("a", "b", "relu", ("c",)),),
    )  # fmt: skip
    change = ReDo().change(seen)  # the mean is 0.35, a tenth of it 0.035: the first only
    assert change.masks is masks
    assert change.values["a"][1:].tolist() == [[1.0] * 4] * 2
    fresh = change.values["a"][0]
    assert bool((fresh.abs() <= 0.5).all())  # 1/√4
    assert len(set(fresh.tolist())) == 4
    assert change.values["b"].tolist() == [0.0, 5.0, 5.0]
    assert change.values["c"].tolist() == [[0.0, 1.0, 1.0]] * 2
    assert change.forget["a"].tolist() == [[True] * 4, [False] * 4, [False] * 4]
    assert change.forget["c"].tolist() == [[True, False, False]] * 2
    assert parameters["b"].tolist() == [5.0] * 3
    assert len(ReDo(tau=0.15).change(seen).values["b"].nonzero()) == 1  # the third as well


def test_lottery_masks_and_rewinds_in_rounds() -> None:
    method, memory = Lottery(sparsity=0.75, round_share=0.5), {}
    assert method.rounds == 2
    start = sight(done=0, memory=memory)
    assert method.change(start).masks is start.masks
    trained = WEIGHT.flip(0) * 2
    assert method.change(sight(trained, done=4, memory=memory)).values == {}
    first = method.change(sight(trained, done=5, memory=memory))
    # The first of two rounds reaches (1 − ½)/(1 − ¼) = ⅔ of six: four go.
    assert first.masks["w"].tolist() == [[False, False, True, True], [False, True, False, True]]
    assert torch.equal(first.values["w"], WEIGHT)
    assert bool(first.forget["w"].all())
    assert method.change(sight(trained, done=9, memory=memory)).values == {}
    second = method.change(sight(trained, first.masks["w"], done=10, memory=memory))
    assert second.masks["w"].tolist() == [[False, False, False, True], [False, False, False, True]]


@pytest.mark.parametrize("method", EVERY)
def test_settings_that_cannot_be_are_refused(method: type[Method]) -> None:
    bad: list[tuple[Mapping[str, Any], str]] = [
        ({"start": 0.8, "end": 0.2}, "starts at 0.8 and ends at 0.2"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"critic_sparsity": -0.1}, "critic_sparsity=-0.1"),
        ({"every": 0}, "every=0"),
    ]
    for settings, message in bad:
        with pytest.raises(BudgetError, match=message):
            method(**settings)
    with pytest.raises(NameUnknownError, match="Choose from: er, erk, global, uniform"):
        method(distribution="ekr")
    if not method.by_score:
        with pytest.raises(BudgetError, match="no scores compete"):
            method(distribution="global")
