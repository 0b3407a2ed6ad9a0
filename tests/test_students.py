"""Which students learn, from what, and when they are given up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from prunerl import students
from prunerl.repair.distill import Lessons
from prunerl.repair.guidance import guide
from prunerl.students import SMALL, STUDENTS, effort
from prunerl.task import Task
from prunerl.trace import trace
from prunerl.types import Critic, Head, Verdict


@pytest.mark.parametrize(
    ("parameters", "led", "count"),
    [(SMALL, False, STUDENTS), (SMALL + 1, False, 1), (900, True, 1), (90, True, STUDENTS)],
)
def test_small_networks_have_alternatives_and_led_ones_do_without(parameters: int, led: bool, count: int) -> None:
    assert effort(parameters, led=led).students == count


def test_no_effort_goes_beyond_its_seeds() -> None:
    for parameters in (10, 500, 3_000, 10_000, 50_000):
        for led in (False, True):
            assert effort(parameters, led=led).iterations <= students.MOST_ITERATIONS


def test_a_student_is_given_up_where_it_stands_still_or_lags() -> None:
    rising = (1.0 - 0.5 * 0.08 ** (np.arange(12) / 11)).tolist()
    assert not any(students._behind(rising[:n], 12, 0.05) for n in range(1, 13))
    assert students._behind([0.9, *[0.89] * 5], 12, 0.05)
    assert students._behind([0.49] * 3, 12, 0.05)
    assert not students._behind([0.1, 0.2], 12, 0.05), "too early to tell"
    assert students._behind([0.94] * 11 + [0.945], 12, 0.05), "what would pass is asked for in the end"


def test_lessons_and_what_critics_see_grow_together_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunerl.task.LESSONS", 5)
    network = nn.Linear(2, 1)
    states = torch.arange(40.0).view(20, 2)
    traced, tensors = trace(network, states), {n: t.detach() for n, t in network.state_dict().items()}
    head = Head("gaussian", low=np.full(1, -1.0), high=np.full(1, 1.0), squashed=True, shape=(1,))
    dense = SimpleNamespace(state=SimpleNamespace(tensors=tensors), policy=SimpleNamespace(head=head))
    task = cast(Task, cast(Any, SimpleNamespace(dense=dense, traced=traced)))
    critic = Critic("qf", nn.Linear(3, 1), lambda x: torch.cat([x, x[:, :1]], dim=1), "qf", 1)

    with torch.no_grad():
        lessons, leading = Lessons(states[:8], network(states[:8]), 1.0, dense=4), guide([critic], states[:8])
        for more in (states[8:11], states[11:13]):
            lessons, leading = students._grown(task, lessons, leading, more)
        kept = torch.cat([states[:4], states[8:13]])
        torch.testing.assert_close(lessons.observations, kept)
        torch.testing.assert_close(lessons.answers, network(kept))
    assert leading is not None
    torch.testing.assert_close(leading.features, kept)
    assert lessons.dense == 4


@pytest.mark.parametrize(
    ("mean", "low", "clear"),
    [
        (-0.025, -0.029, True),  # most of the tolerance is left
        (-0.0349, -0.0389, True),  # error 0.0041 / 1.96: −0.0389 − 2√2 · 0.00204 = −0.0447
        (-0.0350, -0.0450, False),  # error 0.0051: −0.0450 − 2√2 · 0.0051 = −0.0594
        (-0.0450, -0.0490, False),
    ],
)
def test_what_is_clear_would_pass_on_other_episodes_too(mean: float, low: float, clear: bool) -> None:
    verdict = Verdict((), (), (0, 100), 0.0, 1.0 + mean, 1.0, (low, 0.0), 0.95, 0.05, low > -0.05)
    assert students._clear(verdict) is clear
