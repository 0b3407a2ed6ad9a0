"""Networks of many architectures: their units, what is kept whole and why, and that removing equals masking."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field

import pytest
import torch
from sb3_contrib.common.torch_layers import BatchRenorm1d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunerl.agents.resize import resize
from prunerl.errors import RemovalError
from prunerl.remove import remove, zeroed
from prunerl.trace import Trace, forward, trace, unit_groups
from prunerl.types import Decision, Group, State


class Attention(nn.Module):
    """A block of attention over five tokens, with heads four wide."""

    def __init__(self, *, fused: bool, heads: int = -1) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.back = (nn.Linear(a, b) for a, b in ((12, 8), (12, 8), (12, 8), (8, 12)))
        self.last, self.fused, self.heads = nn.Linear(12, 2), fused, heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(-1, (5, 4)))
        y = self.norm(x)
        q, k, v = (m(y).view(y.shape[0], y.shape[1], self.heads, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.fused:
            read = F.scaled_dot_product_attention(q, k, v)
        else:
            read = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1) @ v
        return self.last((x + self.back(read.transpose(1, 2).flatten(2))).sum(1))


class Multihead(nn.Module):
    """PyTorch's own attention, whose width is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.narrow, self.last = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(-1, (5, 4)))
        x = x + self.attention(x, x, x)[0]
        return self.last((x + self.narrow(torch.relu(self.wide(x)))).sum(1))


class Dueling(nn.Module):
    """A value and advantages of actions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.v, self.value = nn.Linear(20, 8), nn.Linear(8, 6), nn.Linear(6, 1)
        self.a, self.advantage = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.body(x))
        a = self.advantage(torch.relu(self.a(h)))
        return self.value(torch.relu(self.v(h))) + a - a.mean(1, keepdim=True)


class Noisy(nn.Module):
    """A layer whose weight is a mean and scaled noise."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.mu, self.sigma = (nn.Parameter(torch.randn(outer, inner)) for _ in range(2))
        self.bias_mu, self.bias_sigma = (nn.Parameter(torch.randn(outer)) for _ in range(2))
        self.register_buffer("noise", torch.randn(outer, inner))
        self.register_buffer("bias_noise", torch.randn(outer))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mu + self.sigma * self.noise, self.bias_mu + self.bias_sigma * self.bias_noise)


class Branches(nn.Module):
    """Two branches side by side, multiplied by a third; what reads them is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate, self.last = nn.Linear(20, 5), nn.Linear(20, 4), nn.Linear(20, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], 1)
        return self.last(z * self.gate(x)) + self.last(z)


class Recurrent(nn.Module):
    """A recurrent layer over five steps."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, *, both: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.memory = kind(6, 8, layers, batch_first=True, bidirectional=both)  # type: ignore[arg-type]
        self.last = nn.Linear(16 if both else 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(torch.relu(self.embed(x.unflatten(-1, (5, 4)))))[0][:, -1])


class Cells(nn.Module):
    """One step of each of PyTorch's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.last = nn.LSTMCell(20, 6), nn.GRUCell(6, 5), nn.RNNCell(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.c(self.b(self.a(x)[0])))


class ByHand(nn.Module):
    """An LSTM written with two linear layers, whose gates are taken apart by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.again, self.last = nn.Linear(4, 24), nn.Linear(6, 24), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (5, 4))
        h = c = torch.zeros_like(self.inward(x[:, 0]).chunk(4, -1)[0])
        for step in range(5):
            i, f, g, o = (self.inward(x[:, step]) + self.again(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.last(h)


class Table(nn.Module):
    """Rows of a table, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.last = nn.Embedding(10, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(self.table(x.clamp(0, 9).long()).sum(1))))


class Shared(nn.Module):
    """Two layers with one weight, and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = nn.Linear(20, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(torch.relu(self.first(x)))))))


class ChannelsLast(nn.Module):
    """Images as environments give them, flattened with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(3, 5, 2), nn.Linear(5 * 4 * 3, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.last(torch.relu(self.hidden(h.flatten(1))))


def convolutions(padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=padding), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 4, 10), nn.ReLU(), nn.Linear(10, 2),
    )  # fmt: skip


def perceptron(first: nn.Module, second: nn.Module, *between: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, *between, nn.ELU(), second, nn.ELU(), nn.Linear(6, 2))


IMAGE, LINE, VECTOR = (3, 8, 8), (3, 8), (20,)


@dataclass(frozen=True)
class Case:
    """An architecture.

    Attributes:
        network: The network.
        shape: Of its observations.
        units: Group → number of units and of the tensors' dimensions that they own.
        kept: What is kept besides the output → why, a regular expression.
        output: Layers that make the output.
        rebuilds: Its widths can be set by ``resize``.
        zeroing: Removing equals setting to zero: nothing is normalised over units. None: zeros have no direction.
        still: Parameters that one update from an empty memory does not reach.
    """

    network: nn.Module
    units: dict[str, tuple[int, int]]
    output: tuple[str, ...] = ("last",)
    shape: tuple[int, ...] = VECTOR
    kept: dict[str, str] = field(default_factory=dict)
    rebuilds: bool = True
    zeroing: bool | None = True
    still: frozenset[str] = frozenset()


NORM = "parametrizations.weight"
GROUPS = r"convolution of 6 groups.*conv2d.* in layer '2'"
CHANNELS = r"groups of channels.*group_norm.* in layer '1'"
WRITTEN = "their number is written in aten.view.default"


LAST_STEP = frozenset({"memory.weight_hh_l1_reverse"})
FIRST_STEP = frozenset(f"{name}.weight_hh" for name in "abc")


def cases() -> dict[str, Case]:
    """Return the architectures by name, each time with the same weights."""
    torch.manual_seed(0)
    return {
        "perceptron": Case(perceptron(nn.Linear(20, 8), nn.Linear(8, 6)), {"0": (8, 3), "2": (6, 3)}, ("4",)),
        "no biases": Case(
            perceptron(nn.Linear(20, 8, bias=False), nn.Linear(8, 6, bias=False)), {"0": (8, 2), "2": (6, 2)}, ("4",)
        ),
        "LayerNorm": Case(
            perceptron(nn.Linear(20, 8), nn.Linear(8, 6), nn.LayerNorm(8)),
            {"0": (8, 5), "3": (6, 3)},
            ("5",),
            zeroing=False,
        ),
        "RMSNorm": Case(
            perceptron(nn.Linear(20, 8), nn.Linear(8, 6), nn.RMSNorm(8)),
            {"0": (8, 4), "3": (6, 3)},
            ("5",),
            zeroing=False,
        ),
        "BatchNorm": Case(
            perceptron(nn.Linear(20, 8), nn.Linear(8, 6), nn.BatchNorm1d(8)), {"0": (8, 7), "3": (6, 3)}, ("5",)
        ),
        "BatchRenorm": Case(
            perceptron(nn.Linear(20, 8), nn.Linear(8, 6), BatchRenorm1d(8)), {"0": (8, 7), "3": (6, 3)}, ("5",)
        ),
        "PReLU": Case(
            nn.Sequential(nn.Linear(20, 8), nn.PReLU(8), nn.Linear(8, 6), nn.PReLU(), nn.Linear(6, 2)),
            {"0": (8, 4), "2": (6, 3)},
            ("4",),
            kept={"3.weight": "one number serves several units in aten.prelu"},
        ),
        "convolutions": Case(convolutions(0), {"0": (6, 3), "2": (8, 7), "6": (10, 3)}, ("8",), IMAGE),
        "padding": Case(convolutions(1), {"0": (6, 3), "2": (8, 7), "6": (10, 3)}, ("8",), (3, 6, 6)),
        "groups": Case(
            nn.Sequential(
                nn.Conv2d(3, 6, 3),
                nn.ReLU(),
                nn.Conv2d(6, 6, 3, groups=6),
                nn.Flatten(),
                nn.Linear(96, 5),
                nn.ReLU(),
                nn.Linear(5, 2),
            ),
            {"4": (5, 3)},
            ("6",),
            IMAGE,
            {"0": GROUPS, "2.weight": GROUPS, "2.bias": GROUPS},
        ),
        "transposed": Case(
            nn.Sequential(
                nn.Conv2d(3, 6, 3),
                nn.ReLU(),
                nn.ConvTranspose2d(6, 5, 2),
                nn.ReLU(),
                nn.Conv2d(5, 4, 3),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4, 2),
            ),
            {"0": (6, 3), "2": (5, 3), "4": (4, 3)},
            ("7",),
            IMAGE,
        ),
        "one dimension": Case(
            nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(16, 2)),
            {"0": (6, 3), "2": (4, 3)},
            ("4",),
            LINE,
        ),
        "GroupNorm": Case(
            nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6 * 36, 5), nn.ReLU(), nn.Linear(5, 2)
            ),
            {"3": (5, 3)},
            ("5",),
            IMAGE,
            {"0": CHANNELS, "1.weight": CHANNELS, "1.bias": CHANNELS},
        ),
        "channels last": Case(ChannelsLast(), {"conv": (5, 3), "hidden": (7, 3)}, shape=(5, 4, 3)),
        "weight norm": Case(
            perceptron(weight_norm(nn.Linear(20, 8)), weight_norm(nn.Linear(8, 6))),
            {f"0.{NORM}": (8, 4), f"2.{NORM}": (6, 4)},
            ("4",),
            zeroing=None,
        ),
        "spectral norm": Case(
            perceptron(spectral_norm(nn.Linear(20, 8)), spectral_norm(nn.Linear(8, 6))),
            {f"0.{NORM}": (8, 5), f"2.{NORM}": (6, 4)},
            ("4",),
            kept={f"0.{NORM}.0._v": "reads the observation"},
        ),
        "attention": Case(Attention(fused=False), {"embed": (12, 10), "q": (2, 7)}, zeroing=False),
        "fused attention": Case(Attention(fused=True), {"embed": (12, 10), "q": (2, 7)}, zeroing=False),
        "heads in numbers": Case(
            Attention(fused=False, heads=2), {"embed": (12, 10)}, kept=dict.fromkeys("qkv", WRITTEN), zeroing=False
        ),
        "MultiheadAttention": Case(
            Multihead(),
            {"wide": (6, 3)},
            kept=dict.fromkeys(("embed", "attention.out_proj", "narrow"), WRITTEN),
            output=("attention", "last"),
        ),  # the projections' last third is the values', which the output's reason reaches
        "dueling": Case(
            Dueling(),
            {"body": (8, 4), "v": (6, 3), "a": (7, 3)},
            ("advantage",),
            kept={"value": "one number serves several units in aten.add"},
        ),
        "noisy": Case(perceptron(Noisy(20, 8), Noisy(8, 6)), {"0": (8, 9), "2": (6, 7)}, ("4",)),
        "branches": Case(Branches(), {"a": (5, 5), "b": (4, 5)}),
        "LSTM": Case(Recurrent(nn.LSTM, 2), {"embed": (6, 3), "memory": (8, 12)}),
        "GRU": Case(Recurrent(nn.GRU, 3), {"embed": (6, 3), "memory": (8, 18)}),
        "RNN": Case(Recurrent(nn.RNN, 1), {"embed": (6, 3), "memory": (8, 6)}),
        "both directions": Case(
            Recurrent(nn.LSTM, 2, both=True), {"embed": (6, 4), "memory": (8, 23)}, still=LAST_STEP
        ),
        "cells": Case(Cells(), {"a": (6, 6), "b": (5, 6), "c": (4, 6)}, still=FIRST_STEP),
        "LSTM by hand": Case(ByHand(), {"inward": (6, 6)}),
        "table": Case(Table(), {"hidden": (5, 3), "table": (6, 2)}),
        "GLU": Case(nn.Sequential(nn.Linear(20, 8), nn.GLU(), nn.Linear(4, 2)), {"0": (4, 3)}, ("2",)),
        "shared weight": Case(Shared(), {"first": (6, 9)}),
    }


with torch.random.fork_rng():
    CASES = cases()


@dataclass(frozen=True)
class Traced:
    """A case, traced."""

    case: Case
    graph: Trace
    state: State
    groups: tuple[Group, ...]
    x: Tensor


@pytest.fixture(scope="module", params=CASES)
def traced(request: pytest.FixtureRequest) -> Traced:
    torch.manual_seed(0)
    case = CASES[request.param]
    network = copy.deepcopy(case.network).eval()
    x = torch.randn(6, *case.shape) * 2
    tensors = {n: t.detach() for n, t in network.state_dict().items()}
    moments = {n: {"exp_avg": torch.randn_like(p), "step": torch.tensor(3.0)} for n, p in network.named_parameters()}
    masks = {n: torch.rand_like(p) < 2 for n, p in network.named_parameters()}
    graph = trace(network, x)
    return Traced(case, graph, State(tensors, moments, masks), unit_groups(graph, tensors), x)


def halves(groups: tuple[Group, ...]) -> Decision:
    return {g.name: torch.arange(g.units) % 2 == 0 for g in groups}


def ones(groups: tuple[Group, ...]) -> Decision:
    return {g.name: torch.arange(g.units) == g.units - 1 for g in groups}


def removed(traced: Traced, decision: Decision) -> State:
    return remove(traced.graph, traced.state, traced.groups, decision, ties=(), observations=traced.x)


def test_units_are_these_and_what_is_kept_says_why(traced: Traced) -> None:
    assert {g.name: (g.units, len(g.slices)) for g in traced.groups} == traced.case.units
    kept = dict(traced.graph.kept_whole)
    assert {n for n, why in kept.items() if "network's output" in why} == set(traced.case.output)
    others = {n: why for n, why in kept.items() if n not in traced.case.output}
    assert set(others) == set(traced.case.kept)
    for name, why in traced.case.kept.items():
        assert re.search(why, others[name])


def test_the_graph_computes_what_the_network_computes(traced: Traced) -> None:
    with torch.no_grad():
        wanted = copy.deepcopy(traced.case.network).eval()(traced.x)
    torch.testing.assert_close(forward(traced.graph, traced.state.tensors, traced.x), wanted)


@pytest.mark.parametrize("decide", [halves, ones])
def test_removing_equals_masking_and_cuts_moments_and_masks_along(traced: Traced, decide: object) -> None:
    decision = halves(traced.groups) if decide is halves else ones(traced.groups)
    smaller = removed(traced, decision)  # it compares itself with the masked original, or raises
    left = {g.name: g.units for g in unit_groups(traced.graph, smaller.tensors)}
    assert left == {name: int(keep.sum()) for name, keep in decision.items()}
    for name, moments in smaller.moments.items():
        assert moments["exp_avg"].shape == smaller.masks[name].shape == smaller.tensors[name].shape
        assert moments["step"].shape == ()
    before = forward(traced.graph, zeroed(traced.state, traced.groups, decision), traced.x)
    after = forward(traced.graph, smaller.tensors, traced.x)
    if traced.case.zeroing:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    elif traced.case.zeroing is False:  # the norm of the units that are left is taken over them alone
        assert float((after - before).abs().max()) > 1e-3


def test_the_network_rebuilt_is_the_smaller_one_and_trains(traced: Traced) -> None:
    smaller = removed(traced, halves(traced.groups))
    network = copy.deepcopy(traced.case.network).eval()
    resize(network, {n: tuple(t.shape) for n, t in smaller.tensors.items()})
    network.load_state_dict(dict(smaller.tensors))
    torch.testing.assert_close(
        network(traced.x).detach(), forward(traced.graph, smaller.tensors, traced.x), rtol=1e-4, atol=1e-4
    )
    again = trace(network, traced.x)
    known = unit_groups(traced.graph, smaller.tensors)
    assert [describe(g) for g in unit_groups(again, smaller.tensors)] == [describe(g) for g in known]
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    (network(traced.x).square().sum()).backward()
    optimizer.step()
    still = {n for n, p in network.named_parameters() if torch.equal(p, before[n])}
    assert still == traced.case.still


def describe(group: Group) -> tuple[object, ...]:
    return group.name, group.units, [(s.tensor, s.dim, s.index.tolist()) for s in group.slices]


def test_a_wrong_decision_changes_nothing(traced: Traced) -> None:
    before = {n: t.clone() for n, t in traced.state.tensors.items()}
    name = traced.groups[0].name
    with pytest.raises(RemovalError, match="needs a bool mask of shape"):
        removed(traced, {**halves(traced.groups), name: torch.ones(99, dtype=torch.bool)})
    assert all(torch.equal(before[n], t) for n, t in traced.state.tensors.items())
