"""Students come nearer to the dense agent, keep what is held at zero, and follow from their generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl import heads
from prunerl.repair.distill import Lessons, calibrate, distill, divergences
from prunerl.trace import Trace, forward, trace
from prunerl.types import Head, Masks

HEADS = [
    Head("categorical", sizes=(3,)),
    Head("categorical", sizes=(1, 2)),
    Head("bernoulli", shape=(3,)),
    Head("q_values", sizes=(3,)),
    Head("gaussian", low=np.full(3, -0.5), high=np.full(3, 0.5), std=np.full(3, 0.3), shape=(3,)),
    Head("gaussian", low=np.full(3, -2.0), high=np.full(3, 2.0), squashed=True, shape=(3,)),
]
Tensors = Mapping[str, Tensor]


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)  # for the layers' initial weights, which take no generator
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))


def lessons_for(head: Head) -> Lessons:
    """Answers of a wide network in states far from standardised; half of them visited by a pruned agent."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(600, 2, generator=generator) * torch.tensor([3.0, 0.1]) + torch.tensor([5.0, -1.0])
    with torch.no_grad():
        answers = 2.0 * network(16, seed=7)(states)
    return Lessons(states, answers, heads.q_scale(head, answers), dense=300)


def students(count: int = 2, width: int = 3) -> tuple[Trace, list[dict[str, Tensor]]]:
    made = [network(width, seed) for seed in range(count)]
    return trace(made[0], torch.zeros(2, 2)), [{n: t.detach().clone() for n, t in m.state_dict().items()} for m in made]


def taught(
    traced: Trace, own: list[dict[str, Tensor]], head: Head, masks: Masks | None = None, **changes: Any
) -> list[Any]:
    options: dict[str, Any] = {"updates": 60, "learning_rate": 1e-2, **changes}
    generator = torch.Generator().manual_seed(options.pop("seed", 0))
    return list(distill(traced, own, masks or {}, head, lessons_for(head), generator=generator, **options))


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_distillation_brings_every_student_nearer(head: Head) -> None:
    traced, own = students()
    before = divergences(traced, own, head, lessons_for(head))
    after = divergences(traced, taught(traced, own, head), head, lessons_for(head))
    assert all(b > 0 for b in before)
    assert all(a < 0.7 * b for a, b in zip(after, before, strict=True))


def test_the_students_that_were_given_stay_as_they_were() -> None:
    traced, own = students()
    before = [{n: t.clone() for n, t in student.items()} for student in own]
    taught(traced, own, HEADS[0])
    assert all(torch.equal(a[n], b[n]) for a, b in zip(own, before, strict=True) for n in a)
    assert not any(t.requires_grad for student in taught(traced, own, HEADS[0]) for t in student.values())


def test_masks_hold() -> None:
    traced, own = students(width=6)
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(own[0][n].shape, generator=generator) > 0.5 for n in ("0.weight", "2.weight")}
    for student in taught(traced, own, HEADS[0], masks):
        for name, mask in masks.items():
            assert bool((student[name][~mask] == 0).all())
            assert bool((student[name][mask] != 0).all())


class Kernels(nn.Module):
    """Weights stored as (inputs, outputs), without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.last


@pytest.mark.parametrize("made", [network(5, seed=1), nn.Linear(2, 3), Kernels()], ids=["deep", "linear", "no biases"])
def test_standardising_the_inputs_is_undone_exactly(made: nn.Module) -> None:
    """With next to no learning rate the function stays what it was, though the inputs' means and scales are far off."""
    traced = trace(made, torch.zeros(2, 2))
    own = {n: t.detach().clone() for n, t in made.state_dict().items()}
    [same] = taught(traced, [own], HEADS[0], updates=1, learning_rate=1e-12)
    x = lessons_for(HEADS[0]).observations
    torch.testing.assert_close(forward(traced, same, x), forward(traced, own, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[3]], ids=lambda h: h.kind)
def test_equal_generators_give_bit_equal_students(head: Head) -> None:
    traced, own = students()
    first, second, other = (taught(traced, own, head, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a[n], b[n]) for a, b in zip(first, second, strict=True) for n in a)
    assert any(not torch.equal(a[n], b[n]) for a, b in zip(first, other, strict=True) for n in a)


def test_divergences_are_those_of_the_head() -> None:
    traced, own = students()
    lessons = lessons_for(HEADS[0])
    outputs = [forward(traced, student, lessons.observations) for student in own]
    wanted = [float(heads.divergence(HEADS[0], lessons.answers, o, scale=lessons.scale).mean()) for o in outputs]
    assert divergences(traced, own, HEADS[0], lessons) == pytest.approx(wanted)


def test_calibration_restores_the_units_of_q_values_and_changes_no_action() -> None:
    traced, [own] = students(count=1, width=8)
    lessons = lessons_for(HEADS[3])
    output = forward(traced, own, lessons.observations)
    exact = Lessons(lessons.observations, 3.0 * output - 7.0, lessons.scale, lessons.dense)
    restored = calibrate(traced, own, exact)
    torch.testing.assert_close(forward(traced, restored, exact.observations), exact.answers, rtol=1e-4, atol=1e-3)
    for answers in (exact, lessons):
        found = forward(traced, calibrate(traced, own, answers), lessons.observations)
        assert torch.equal(found.argmax(dim=1), output.argmax(dim=1))


def test_calibration_leaves_a_network_alone_that_answers_the_other_way_round() -> None:
    traced, [own] = students(count=1, width=8)
    lessons = lessons_for(HEADS[3])
    output = forward(traced, own, lessons.observations)
    reversed_ = Lessons(lessons.observations, -output, lessons.scale, lessons.dense)
    same = calibrate(traced, own, reversed_)
    assert all(torch.equal(same[n], own[n]) for n in own)
