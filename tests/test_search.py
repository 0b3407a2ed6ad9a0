"""The search ends, and tries nothing twice."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from prunerl import search
from prunerl.remove import cut
from prunerl.search import Attempt
from prunerl.task import Candidate
from prunerl.trace import trace, unit_groups
from prunerl.types import State


def candidate(*widths: int) -> Candidate:
    """Return a bare network of 8 inputs and 4 outputs as if it were an agent's."""
    sizes = (8, *widths, 4)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())][:-1]
    network = nn.Sequential(*layers)
    state = State({name: tensor.detach() for name, tensor in network.state_dict().items()})
    agent: Any = SimpleNamespace(state=state)
    return Candidate(agent, trace(network, torch.randn(3, 8)), torch.empty(0, 8))


def shrink(start: Candidate, least: int, *, dear: bool = False) -> tuple[Candidate, list[int]]:
    """Search with rounds that pass as long as ``least`` parameters are left; return the result and the sizes tried."""
    tried: list[int] = []

    def step(current: Candidate, plan: Attempt) -> Any:
        tensors = current.agent.state.tensors
        units = unit_groups(current.traced, tensors)
        # The first layer's units always look worst, whatever they cost.
        scores = {g.name: torch.arange(g.units) + 100.0 * (i > 0) + 1.0 for i, g in enumerate(units)}
        decision = plan.decide(current, units, scores)
        state = cut(current.agent.state, units, decision, ())
        smaller = Candidate(SimpleNamespace(state=state), current.traced, current.visited)  # type: ignore[arg-type]
        tried.append(search.masked_parameters(smaller))
        assert len(tried) < 60
        return SimpleNamespace(satisfied=tried[-1] >= least), smaller

    return search._shrink(start, "units", step, dear=dear), tried


@pytest.mark.parametrize("widths", [(3, 8), (8, 3), (64,), (16, 16, 16), (1, 1)])
def test_a_search_in_which_all_fails_ends_where_it_began(widths: tuple[int, ...]) -> None:
    start = candidate(*widths)
    result, tried = shrink(start, least=10**9)
    assert result is start
    assert len(tried) < 40


@pytest.mark.parametrize("least", [60, 200, 500, 831])
def test_the_smallest_network_of_one_layer_is_found(least: int) -> None:
    result, _ = shrink(candidate(64), least)
    left = search.masked_parameters(result)
    assert left >= least
    assert left - 13 < least  # a unit has 8 + 1 + 4 parameters


def test_where_rounds_are_dear_few_are_made() -> None:
    start = candidate(1024)  # 13 parameters a unit and 4 more
    result, tried = shrink(start, least=200)
    assert len(tried) > 6
    dear, few = shrink(start, least=200, dear=True)
    assert few[0] == tried[0] == 264, "both leave a 48th at first"
    # Then 2^−½ of 264 is 186: it fails, and of 264 no 30 % are left above it.
    assert few == [264, 186]
    assert search.masked_parameters(dear) == 264
    assert search.masked_parameters(result) < 264


@pytest.mark.parametrize(
    ("widths", "led", "dear"),
    [
        ((256, 256), True, True),  # 69,124 / 48 = 1,440; with one layer 3,332 are left
        ((256, 256), False, False),
        ((256, 40), True, False),  # without the first layer 524 are left, fewer than a 48th (264) twice over
        ((64, 64), True, False),  # a 48th is 104 parameters: several students learn side by side
    ],
)
def test_rounds_are_dear_where_critics_lead_and_layers_save_little(
    widths: tuple[int, ...], led: bool, dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "can_be_led", lambda task, traced: led)
    start = candidate(*widths)
    start.agent.stacks = None  # type: ignore[misc, assignment]
    assert search._dear(SimpleNamespace(), start) is dear  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", [1, 5, 16])
def test_every_layer_keeps_the_units_that_it_is_told_to(floor: int) -> None:
    start = candidate(16, 12)

    def step(current: Candidate, plan: Attempt) -> Any:
        units = unit_groups(current.traced, current.agent.state.tensors)
        scores = {g.name: torch.arange(g.units) + 100.0 * (i > 0) + 1.0 for i, g in enumerate(units)}
        state = cut(current.agent.state, units, plan.decide(current, units, scores), ())
        smaller = Candidate(SimpleNamespace(state=state), current.traced, current.visited)  # type: ignore[arg-type]
        return SimpleNamespace(satisfied=True), smaller

    result = search._shrink(start, "units", step, min_units=floor)
    assert [g.units for g in unit_groups(result.traced, result.agent.state.tensors)] == [min(16, floor), min(12, floor)]


class Joined(nn.Module):
    """A hidden layer beside the observation itself, as in a dict's policy."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 6), nn.Linear(14, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.cat([x, torch.tanh(self.one(x))], 1))


def test_the_fewest_parameters_count_what_no_unit_owns() -> None:
    network = Joined()
    state = State({name: tensor.detach() for name, tensor in network.state_dict().items()})
    start = Candidate(SimpleNamespace(state=state), trace(network, torch.randn(3, 8)), torch.empty(0, 8))  # type: ignore[arg-type]
    assert search._fewest(start, "units", 1) == (8 + 1) + (9 * 4 + 4)
    assert search._fewest(start, "units", 2) == 2 * (8 + 1) + (10 * 4 + 4)
    assert search._fewest(start, "weights", 3) == 6 + 4 + 3 + 3
