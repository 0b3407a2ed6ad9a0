"""The rules of operators: what each says of small weights, by hand; and that none of them makes removing wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunerl import operators
from prunerl.agents.resize import resize
from prunerl.errors import BudgetError, RemovalError
from prunerl.remove import remove, zeroed
from prunerl.trace import forward, trace, unit_groups
from prunerl.types import State

Forward = Callable[..., Tensor]


class Weights(nn.Module):
    """A function of an observation (3,) and weights: ``a`` and ``b`` make 4 units, ``w`` reads 4 or what is said."""

    def __init__(self, forward: Forward, reads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = forward
        self.a, self.b = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
        self.w = nn.Parameter(torch.randn(2, reads))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.function(F.linear(x, self.a), F.linear(x, self.b)), self.w)


Rows = dict[str, list[list[int]]]
SELF = [[0], [1], [2], [3]]
ALL = {"a": SELF, "b": SELF, "w": SELF}
ONE = {"a": SELF, "w": SELF}
CASES: list[tuple[str, Forward, int, Rows]] = [
    ("elementwise", lambda a, b: torch.tanh(a) * 2 + 1, 4, ONE),
    ("one value", lambda a, b: a * a.abs(), 4, ONE),
    ("sum", lambda a, b: a + b, 4, ALL),
    ("where", lambda a, b: torch.where(a > 0, a, b), 4, ALL),
    ("larger", torch.max, 4, ALL),
    ("smallest", lambda a, b: torch.stack([a, b]).amin(0), 4, ALL),
    ("largest", lambda a, b: torch.stack([a, b]).max(0)[0], 4, ALL),
    ("reversed", lambda a, b: a.flip(1), 4, {"a": SELF, "w": [[3], [2], [1], [0]]}),
    ("side by side", lambda a, b: torch.cat([a, b], 1), 8, {"a": SELF, "b": SELF, "w": [[i] for i in range(8)]}),
    ("twice", lambda a, b: torch.cat([a, a], 1), 8, {"a": SELF, "w": [[0, 4], [1, 5], [2, 6], [3, 7]]}),
    ("repeated", lambda a, b: a.repeat(1, 2), 8, {"a": SELF, "w": [[0, 4], [1, 5], [2, 6], [3, 7]]}),
    ("halves", lambda a, b: a.chunk(2, 1)[0] * a.chunk(2, 1)[1], 2, {"a": [[0, 2], [1, 3]], "w": [[0], [1]]}),
    ("gated", lambda a, b: F.glu(a), 2, {"a": [[0, 2], [1, 3]], "w": [[0], [1]]}),
    ("inner -1", lambda a, b: a.view(-1, 2, 2).flatten(1), 4, {}),
    ("pairs", lambda a, b: a.unflatten(1, (-1, 2)).flatten(1), 4, {"a": [[0, 1], [2, 3]], "w": [[0, 1], [2, 3]]}),
    ("strided", lambda a, b: a.unflatten(1, (2, -1)).flatten(1), 4, {"a": [[0, 2], [1, 3]], "w": [[0, 2], [1, 3]]}),
    ("turned", lambda a, b: a.unflatten(1, (2, -1)).transpose(1, 2).flatten(1), 4,
     {"a": [[0, 2], [1, 3]], "w": [[0, 1], [2, 3]]}),
    ("moved", lambda a, b: a[:, None].movedim((0, 1, 2), (1, 0, 2))[0], 4, ONE),
    ("squeezed", lambda a, b: a[:, :, None].squeeze(2), 4, ONE),
    ("spread", lambda a, b: a[:, None].expand(-1, 3, -1).mean(1), 4, ONE),
    ("spread by number", lambda a, b: a[:, None].expand(-1, 3, 4).mean(1), 4, {}),
    ("added up", lambda a, b: a.sigmoid().sum(1, keepdim=True), 1, {"a": SELF}),
    ("product of values", lambda a, b: (a.sigmoid()[:, None] @ b.sigmoid()[:, :, None])[:, 0], 1,
     {"a": SELF, "b": SELF}),
    ("outer product", lambda a, b: (a[:, :, None] * b[:, None]).flatten(1), 16, {}),
    ("outer product as a matrix", lambda a, b: torch.bmm(a[:, :, None], b[:, None]).sum(2), 4, {**ONE, "b": SELF}),
    ("fixed beside", lambda a, b: a + torch.ones(4), 4, {}),
    ("first two", lambda a, b: a[:, :2], 2, {}),
    ("mean", lambda a, b: a - a.mean(1, keepdim=True), 4, {}),
    ("softmax", lambda a, b: a.softmax(1), 4, {}),
    ("softmax over samples", lambda a, b: a.softmax(0), 4, ONE),
    ("no rule", lambda a, b: a.sort(1)[0], 4, {}),
    ("indices", lambda a, b: a[:, [1, 0, 2, 3]], 4, {}),
    ("assigned", lambda a, b: torch.zeros_like(a).copy_(a), 4, {}),
    ("in place", lambda a, b: a.relu_().add_(b), 4, ALL),
    ("layer norm", lambda a, b: F.layer_norm(a, (4,)), 4, ONE),
    ("layer norm over two", lambda a, b: F.layer_norm(torch.stack([a, b], 1), (2, 4)).sum(1), 4, {}),
    ("attention", lambda a, b: F.scaled_dot_product_attention(b[:, None], b[:, None], a[:, None])[:, 0], 4, ONE),
    ("type", lambda a, b: a.double().type_as(b), 4, {**ONE, "b": SELF}),
    ("padded", lambda a, b: F.pad(a, (0, 1)), 5, {}),
    ("squeezed all", lambda a, b: a[:, None].squeeze(), 4, {}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "reads", "rows"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_units_own_these_rows_and_can_be_removed(function: Forward, reads: int, rows: Rows) -> None:
    network = Weights(function, reads)
    x = torch.randn(5, 3)
    traced = trace(network, x)
    state = State({n: t.detach() for n, t in network.state_dict().items()})
    groups = unit_groups(traced, state.tensors)
    found: dict[str, list[list[int]]] = {}
    for group in groups:
        for part in group.slices:
            found[part.tensor] = found.get(part.tensor, []) + part.index.tolist()
    assert found == rows
    assert bool(groups) or "a" in traced.kept_whole
    for group in groups:
        for last in range(group.units):
            decision = {group.name: torch.arange(group.units) == last}
            remove(traced, state, groups, decision, ties=(), observations=x)


class Drawn(nn.Module):
    """A network drawn at random: blocks on a vector, or on channels of an image before, or a recurrent layer."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.parts, self.kinds, self.stem = nn.ModuleList(), [], nn.Identity()
        self.memory: nn.RNNBase | None = None
        start, width = draw.choice("vis"), 12
        if start == "i":
            kernel, channels = draw.randint(1, 3), draw.randint(1, 5)
            conv = nn.Conv2d(1, channels, kernel, draw.randint(1, 2), draw.randint(0, 1), bias=draw.random() < 0.5)
            parts = [nn.Unflatten(1, (1, 3, 4)), conv, draw.choice([nn.BatchNorm2d(channels), nn.ReLU()]), nn.Flatten()]
            self.stem = nn.Sequential(*parts)
            width = self.stem.eval()(torch.zeros(1, 12)).shape[1]
        elif start == "s":
            width = draw.randint(1, 5)
            kind = draw.choice([nn.LSTM, nn.GRU, nn.RNN])
            self.memory = kind(4, width, draw.randint(1, 2), batch_first=True, bias=draw.random() < 0.5)
        for _ in range(draw.randint(1, 4)):
            width = self._block(draw, width)
        self.last = nn.Linear(width, 2, bias=draw.random() < 0.5)

    def _block(self, draw: random.Random, width: int) -> int:
        kind, wide = draw.choice(("plain", "residual", "branches", "gate", "glu")), draw.randint(1, 9)
        wide = width if kind == "residual" else wide
        self.kinds.append(kind)
        norm = draw.choice([nn.LayerNorm, nn.BatchNorm1d, nn.Identity])(wide)
        bias = draw.random() < 0.5
        count = {"plain": 1, "residual": 1, "branches": 2, "gate": 2, "glu": 1}[kind]
        sizes = [2 * wide if kind == "glu" else wide] * count
        activation = draw.choice([nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.ELU()])
        self.parts.append(nn.ModuleList([norm, activation, *(nn.Linear(width, n, bias=bias) for n in sizes)]))
        return 2 * wide if kind == "branches" else wide

    def forward(self, x: Tensor) -> Tensor:
        if self.memory is not None:
            x = self.memory(x.unflatten(1, (3, 4)))[0][:, -1]
        x = self.stem(x)
        for kind, (norm, activation, *layers) in zip(self.kinds, self.parts, strict=True):  # type: ignore[misc]
            made = [layer(x) for layer in layers]
            if kind == "branches":
                x = torch.cat([norm(activation(made[0])), made[1]], 1)
            elif kind == "gate":
                x = norm(made[0]) * torch.sigmoid(made[1])
            elif kind == "glu":
                x = norm(F.glu(made[0], 1))
            else:
                x = activation(norm(made[0])) + (x if kind == "residual" else 0)
        return self.last(x)


def assert_loads_and_trains(network: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> None:
    """Check that a file of tensors is the same network bit by bit, and that an update moves all that has a gradient."""
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    for module, held in ((first, tensors), (second, safetensors.torch.load(safetensors.torch.save(tensors)))):
        resize(module, {n: tuple(t.shape) for n, t in held.items()})
        module.load_state_dict(held)
    assert torch.equal(first(x), second(x))
    optimizer = torch.optim.Adam(second.parameters(), lr=1e-2)
    second(x).square().sum().backward()
    parameters = dict(second.named_parameters())
    assert all(p.grad is not None for p in parameters.values())
    optimizer.step()
    moved = {n for n, p in parameters.items() if not torch.equal(p, tensors[n])}
    assert moved == {n for n, p in parameters.items() if p.grad is not None and p.grad.any()}


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6))
def test_removing_from_drawn_networks_equals_masking_and_nothing_is_skipped(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    network = Drawn(draw).eval()
    x = torch.randn(4, 12)
    traced = trace(network, x)
    state = State({n: t.detach().clone() for n, t in network.state_dict().items()})
    groups = unit_groups(traced, state.tensors)
    made = {name for layer in traced.layers for name in layer.makes}
    assert all(layer.makes or layer.name in traced.kept_whole for layer in traced.layers)
    assert {group.name for group in groups} == made
    weights = {n for n, p in network.named_parameters() if p.dim() > 1}
    assert weights == {layer.weight for layer in traced.layers}
    for _ in range(2):
        decision = {
            g.name: torch.tensor([draw.random() < 0.5 or i == g.units - 1 for i in range(g.units)]) for g in groups
        }
        smaller = remove(traced, state, groups, decision, ties=(), observations=x)
        left = {g.name: g.units for g in unit_groups(traced, smaller.tensors)}
        assert left == {name: int(keep.sum()) for name, keep in decision.items()}
        if not any(isinstance(m, nn.LayerNorm) for m in network.modules()):  # it takes statistics of what is left
            wanted = forward(traced, zeroed(state, groups, decision), x)
            torch.testing.assert_close(forward(traced, smaller.tensors, x), wanted, rtol=1e-4, atol=1e-4)
    assert_loads_and_trains(network, dict(smaller.tensors), x)
    before = {n: t.clone() for n, t in state.tensors.items()}
    for group in groups[:1]:
        none, long = torch.zeros(group.units, dtype=torch.bool), torch.ones(group.units + 1, dtype=torch.bool)
        with pytest.raises(BudgetError):
            remove(traced, state, groups, {group.name: none}, ties=(), observations=x)
        with pytest.raises(RemovalError):
            remove(traced, state, groups, {group.name: long}, ties=(), observations=x)
    assert all(torch.equal(before[n], t) for n, t in state.tensors.items())


def test_a_form_that_a_rule_does_not_know_keeps_its_inputs_whole_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(walk: operators.Walk, node: fx.Node) -> tuple[()]:
        raise IndexError("no such argument")

    monkeypatch.setitem(operators.RULES, "tanh", strange)
    network = Weights(lambda a, b: torch.tanh(a) + b)
    traced = trace(network, torch.randn(2, 3))
    assert unit_groups(traced, network.state_dict()) == ()
    assert "aten.tanh.default in a form that its rule does not know (IndexError: no such" in traced.kept_whole["a"]
    assert traced.kept_whole["b"].startswith("combined with values of fixed width")


def test_an_attribute_that_is_no_buffer_is_never_cut() -> None:
    network = Weights(lambda a, b: a * torch.arange(4.0))
    traced = trace(network, torch.randn(2, 3))
    assert unit_groups(traced, network.state_dict()) == ()
    assert "combined with values of fixed width in aten.mul" in traced.kept_whole["a"]


def test_a_layer_left_with_one_unit_is_not_taken_for_the_number_that_served_all() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.wide, self.last = nn.Linear(3, 1), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sigmoid(self.gate(x)) * self.wide(x))

    network, x = Gate(), torch.randn(2, 3)
    traced = trace(network, x)
    state = State({n: t.detach() for n, t in network.state_dict().items()})
    groups = unit_groups(traced, state.tensors)
    smaller = remove(traced, state, groups, {"wide": torch.arange(4) == 2}, ties=(), observations=x)
    (left,) = unit_groups(traced, smaller.tensors)
    assert (left.name, left.units, [part.tensor for part in left.slices]) == (
        "wide", 1, [part.tensor for part in groups[0].slices]
    )  # fmt: skip
