"""The trace finds which units live or die together, and keeps whole what it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import TraceError
from prunerl.trace import activity, forward, layer_groups, trace, unit_groups, weight_groups
from prunerl.types import Group, State

Owns = dict[str, set[tuple[str, int]]]


def owns(groups: Iterable[Group]) -> Owns:
    """Return which (tensor, dimension) pairs each group's units own."""
    return {group.name: {(s.tensor, s.dim or 0) for s in group.slices} for group in groups}


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


class Plain(nn.Module):
    """Parameters without modules, kernels stored as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 4))
        self.shift = nn.Parameter(torch.randn(4))
        self.out = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.kernel + self.shift) @ self.out


class Residual(nn.Module):
    """``first`` and ``second`` are added, so their units are the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.inner = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 5)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(h + self.second(torch.relu(self.inner(h))))


class TwoHeads(nn.Module):
    """A policy and a value from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.policy(h), self.value(h)


class SkipToOutput(nn.Module):
    """A hidden layer whose units are added to the output, and so are the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.hidden, self.last = nn.Linear(3, 2), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(x))) + self.skip(x)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.same(torch.tanh(self.same(x)))))


class TwiceWide(nn.Module):
    """One hidden layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.same(torch.tanh(self.same(torch.tanh(self.first(x)))))))


class Branching(nn.Module):
    """Control flow on the values of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool((x > 0).all()) else x


SEQUENTIAL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
ARCHITECTURES: list[tuple[nn.Module, Owns]] = [
    (
        SEQUENTIAL,
        {
            "0": {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)},
            "2": {("2.weight", 0), ("2.bias", 0), ("4.weight", 1)},
        },
    ),
    (Plain(), {"kernel": {("kernel", 1), ("shift", 0), ("out", 0)}}),
    (
        Residual(),
        {
            "first": {
                ("first.weight", 0),
                ("first.bias", 0),
                ("inner.weight", 1),
                ("second.weight", 0),
                ("second.bias", 0),
                ("last.weight", 1),
            },
            "inner": {("inner.weight", 0), ("inner.bias", 0), ("second.weight", 1)},
        },
    ),
    (TwoHeads(), {"body": {("body.weight", 0), ("body.bias", 0), ("policy.weight", 1), ("value.weight", 1)}}),
    (SkipToOutput(), {"hidden": {("hidden.weight", 0), ("hidden.bias", 0), ("last.weight", 1)}}),
    (nn.Sequential(nn.Linear(3, 2)), {}),
]


@pytest.mark.parametrize(("network", "wanted"), ARCHITECTURES)
def test_groups_of_modules(network: nn.Module, wanted: Owns) -> None:
    traced = trace(network, torch.randn(2, 3))
    assert owns(unit_groups(traced, tensors_of(network))) == wanted


@pytest.mark.parametrize("network", [network for network, _ in ARCHITECTURES])
def test_the_graph_computes_what_the_network_computes(network: nn.Module) -> None:
    x = torch.randn(7, 3)
    traced = trace(network, x[:2])
    with torch.no_grad():
        wanted = network(x)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        torch.testing.assert_close(forward(traced, tensors_of(network), x), wanted)
        torch.testing.assert_close(activity(traced, tensors_of(network), x).output, wanted)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "ppo/CartPole-v1",
            {
                "mlp_extractor.policy_net.0": ("mlp_extractor.policy_net.2",),
                "mlp_extractor.policy_net.2": ("action_net",),
            },
        ),
        (
            "a2c/CartPole-v1",
            {
                "mlp_extractor.policy_net.0": ("mlp_extractor.policy_net.2",),
                "mlp_extractor.policy_net.2": ("action_net",),
            },
        ),
        ("dqn/CartPole-v1", {"q_net.q_net.0": ("q_net.q_net.2",), "q_net.q_net.2": ("q_net.q_net.4",)}),
    ],
)
def test_groups_of_real_agents(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], name: str, wanted: dict[str, tuple[str, ...]]
) -> None:
    agent = load_agent(name)
    traced = trace(agent.policy.network, inputs(agent, 3))
    found = owns(unit_groups(traced, agent.state.tensors))
    assert found == {
        maker: {(f"{maker}.weight", 0), (f"{maker}.bias", 0), *((f"{reader}.weight", 1) for reader in readers)}
        for maker, readers in wanted.items()
    }


def test_output_units_are_in_no_group_of_any_real_agent(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    traced = trace(real.policy.network, inputs(real, 3))
    last = traced.layers[-1]
    owned = {pair for pairs in owns(unit_groups(traced, real.state.tensors)).values() for pair in pairs}
    assert (last.weight, 0) not in owned
    assert (last.bias, 0) not in owned
    assert "output" in traced.kept_whole[last.name]


def test_every_parameter_of_an_actor_is_traced_and_no_other(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    traced = trace(real.policy.network, inputs(real, 3))
    assert set(traced.parameters) == {name for name, _ in real.policy.network.named_parameters()}


class Sorted(nn.Module):
    """An operator without a rule, outside of any layer but the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sort(self.hidden(x), dim=1)[0])


class Normalised(Sorted):
    """Values divided by their length."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.normalize(self.hidden(x), dim=1))


class Contracted(Sorted):
    """A product that has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", self.hidden(x), self.last.weight)


class Summed(Sorted):
    """Running sums over units."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cumsum(self.hidden(x), dim=1))


IMAGE = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 1))
GROUPED = nn.Sequential(*IMAGE, nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 2))
GROUP_NORM = nn.Sequential(*IMAGE, nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("network", "width", "layer", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1), nn.Linear(4, 2)), 3, "0", r"softmax.* in layer '1' runs"),
        (GROUP_NORM, 4, "1", r"groups of channels.*group_norm.* in layer '2'"),
        (GROUPED, 4, "1", r"convolution of 2 groups.*conv2d.* in layer '2'"),
        (Sorted(), 3, "hidden", r"aten\.sort.*has no rule"),
        (Normalised(), 3, "hidden", r"aten\.linalg_vector_norm.* runs over"),
        (Contracted(), 3, "hidden", r"aten\.einsum.*has no rule"),
        (Summed(), 3, "hidden", r"aten\.cumsum.* runs over"),
    ],
)
def test_units_that_no_rule_may_cut_are_kept_with_the_operator_and_its_layer(
    network: nn.Module, width: int, layer: str, reason: str
) -> None:
    traced = trace(network, torch.randn(2, width))
    assert unit_groups(traced, tensors_of(network)) == ()
    assert re.search(reason, traced.kept_whole[layer])


UNDERSTOOD: list[tuple[nn.Module, dict[str, int], Owns]] = [
    (
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        {"0": 4},
        {"0": {("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("2.weight", 1)}},
    ),
    (
        nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)),
        {"0": 2},  # a unit is a row of each half
        {"0": {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}},
    ),
    (Twice(), {}, {}),  # its units are the observation's
    (
        TwiceWide(),
        {"first": 4},
        {"first": {("first.weight", 0), ("first.bias", 0), ("same.weight", 0), ("same.bias", 0), ("same.weight", 1),
                   ("last.weight", 1)}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("network", "units", "wanted"), UNDERSTOOD)
def test_groups_across_norms_gates_and_layers_used_twice(
    network: nn.Module, units: dict[str, int], wanted: Owns
) -> None:
    groups = unit_groups(trace(network, torch.randn(2, 3)), tensors_of(network))
    assert owns(groups) == wanted
    assert {group.name: group.units for group in groups} == units


def test_a_width_that_is_written_as_a_number_is_kept_and_one_that_is_not_is_cut() -> None:
    def named(sizes: tuple[int, int]) -> tuple[list[tuple[str, int]], str]:
        parts = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, sizes), nn.Flatten(), nn.Linear(4, 2))
        traced = trace(parts, torch.randn(2, 3))
        return [(g.name, g.units) for g in unit_groups(traced, tensors_of(parts))], traced.kept_whole.get("0", "")

    groups, reason = named((2, 2))
    assert groups == []
    assert "number is written in" in reason
    assert "layer '1'" in reason
    assert named((-1, 2)) == ([("0", 2)], "")  # two rows are one unit


def test_a_layer_used_twice_is_one_layer_of_two_nodes() -> None:
    traced = trace(TwiceWide(), torch.randn(2, 3))
    assert [(layer.name, len(layer.nodes), layer.positions) for layer in traced.layers] == [
        ("first", 1, 1),
        ("same", 2, 2),
        ("last", 1, 1),
    ]


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(TraceError, match=r"torch.export cannot read Branching.*Python control flow"):
        trace(Branching(), torch.randn(2, 3))


def test_layers_that_can_be_dropped() -> None:
    def names(network: nn.Module) -> list[str]:
        return [group.name for group in layer_groups(trace(network, torch.randn(2, 3)))]

    assert names(SEQUENTIAL) == ["0", "2"]
    assert names(Residual()) == ["inner"]  # the others' units are made by two layers
    assert names(TwoHeads()) == []  # two layers read the body
    assert names(nn.Sequential(nn.Linear(3, 2))) == []


def test_every_weight_is_a_unit_of_its_own() -> None:
    traced = trace(SEQUENTIAL, torch.randn(2, 3))
    groups = weight_groups(traced, State(tensors_of(SEQUENTIAL)))
    assert {group.name: group.units for group in groups} == {"0.weight": 12, "2.weight": 20, "4.weight": 10}
    assert all(len(s.index.unique()) == group.units for group in groups for s in group.slices)


def test_a_trace_holds_no_widths() -> None:
    traced = trace(SEQUENTIAL, torch.randn(2, 3))
    narrow = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    x = torch.randn(6, 3)
    torch.testing.assert_close(forward(traced, tensors_of(narrow), x), narrow(x).detach())
    assert [group.units for group in unit_groups(traced, tensors_of(narrow))] == [2, 1]


def test_widths_that_do_not_fit_each_other_are_refused() -> None:
    traced = trace(SEQUENTIAL, torch.randn(2, 3))
    tensors = {**tensors_of(SEQUENTIAL), "0.bias": torch.zeros(3)}
    with pytest.raises(TraceError, match=r"The tensors' widths do not fit each other: .*4.*3"):
        unit_groups(traced, tensors)
