"""Critics that take an action judge what students do; others do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl.repair.distill import Lessons, distill
from prunerl.repair.guidance import WEIGHT, features, guide, shortfall
from prunerl.trace import forward, trace
from prunerl.types import Critic, Head


class Wish(nn.Module):
    """−(action − wished)², twice as two quantiles whose mean it is."""

    def __init__(self, wished: float) -> None:
        super().__init__()
        self.wished = wished

    def forward(self, seen: Tensor) -> Tensor:
        value = -(seen[..., -1:] - self.wished).square()
        return torch.cat([value - 1.0, value + 1.0], dim=-1)


def critic(wished: float, actions: int = 1) -> Critic:
    """A critic of states of two numbers whose dense agent does half of the first one."""
    return Critic("qf", Wish(wished), lambda x: torch.cat([x, 0.5 * x[..., :1]], dim=-1), "qf", actions)


def test_critics_take_turns_and_their_mean_spreads() -> None:
    states = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    made = guide([critic(0.0), critic(1.0)], states)
    assert made is not None
    # The dense agent does 0, 1 and 2: worth 0, −1 and −4 to one, −1, 0 and −1 to the other.
    assert made.spread == pytest.approx(np.std([-0.5, -0.5, -2.5], ddof=1))
    at, actions = torch.tensor([0]), torch.tensor([[0.5]])
    for turn, wished in enumerate([0.0, 1.0, 0.0]):
        expected = WEIGHT * (0.5 - wished) ** 2 / made.spread
        assert float(shortfall(made, at, actions, turn=turn)) == pytest.approx(expected)


def test_features_are_those_of_the_guide() -> None:
    states = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    made = guide([critic(0.0)], states)
    assert made is not None
    torch.testing.assert_close(features(made, states), made.features)


def test_shortfall_by_hand() -> None:
    states = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    made = guide([critic(0.0)], states)
    assert made is not None
    torch.testing.assert_close(made.features, states)
    assert made.spread == pytest.approx(np.std([0.0, -1.0], ddof=1))
    found = shortfall(made, torch.tensor([1, 0]), torch.tensor([[0.5], [0.0]]))
    torch.testing.assert_close(found, torch.tensor([WEIGHT * 0.25 / made.spread, 0.0]))


def test_without_critics_of_actions_there_is_no_guide() -> None:
    assert guide([critic(0.0, actions=0)], torch.zeros(4, 2)) is None
    assert guide([], torch.zeros(4, 2)) is None
    assert guide([critic(0.0)], torch.zeros(4, 2)) is None, "a value that is the same everywhere says nothing"


@pytest.mark.parametrize("wished", [-0.6, 0.8])
def test_a_student_does_what_the_critic_wishes_where_imitation_alone_does_not(wished: float) -> None:
    head = Head("gaussian", low=np.full(1, -1.0), high=np.full(1, 1.0), squashed=True, shape=(1,))
    states = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # for the layer's initial weights, which take no generator
    student = nn.Linear(2, 1)
    traced, tensors = trace(student, states), {n: t.detach().clone() for n, t in student.state_dict().items()}
    lessons = Lessons(states, torch.zeros(400, 1), 1.0, dense=200)

    def taught(guided: bool) -> Tensor:
        led = guide([critic(wished)], states) if guided else None
        generator = torch.Generator().manual_seed(0)
        options = {"updates": 300, "learning_rate": 3e-2}
        (made,) = distill(traced, [tensors], {}, head, lessons, generator=generator, guide=led, **options)
        return forward(traced, made, states).tanh().mean()

    assert abs(float(taught(False))) < 0.05
    assert float(taught(True)) == pytest.approx(wished, abs=0.15)
