"""A graph with tensors of its own computes what it was traced from, also in another process; inputs can be rounded."""

from __future__ import annotations

from collections.abc import Callable

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from prunerl.agents.sb3 import SB3Agent
from prunerl.compressions.network import GraphNetwork, applies_directly, owns_bias, rounded, with_rounded_inputs
from prunerl.trace import activity, forward, trace
from prunerl.visits import trace_policy


@pytest.mark.parametrize("name", ["ppo/CartPole-v1", "dqn/LunarLander-v2", "sac/Pendulum-v1", "qrdqn/CartPole-v1"])
def test_a_graph_alone_computes_the_same_also_after_it_was_sent(
    name: str, load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent(name)
    x = inputs(agent)
    traced = trace_policy(agent.policy, x)
    alone = GraphNetwork(traced, agent.state.tensors)
    assert set(alone.state_dict()) == set(traced.parameters)
    with torch.no_grad():
        assert torch.equal(alone(x), agent.policy.network(x))
        assert torch.equal(cloudpickle.loads(cloudpickle.dumps(alone))(x), alone(x))


class Odd(nn.Module):
    """Has a norm, a constant, a buffer and a parameter at the top, and convolutions."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # for the layers' initial weights, which take no generator
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.LayerNorm(64), nn.Linear(64, 3)
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.register_buffer("offset", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.relu(self.conv(x / 255)).flatten(1)) * torch.tensor([2.0])
        return self.head(hidden) * self.scale + self.offset


def odd() -> tuple[Odd, Tensor]:
    return Odd(), torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_buffers_constants_and_norms_come_along() -> None:
    net, x = odd()
    traced = trace(net, x)
    alone = GraphNetwork(traced, net.state_dict())
    assert set(alone.state_dict()) == set(net.state_dict())
    again = trace(alone, x)
    assert again.parameters == traced.parameters
    with torch.no_grad():
        assert torch.equal(alone(x), net(x))
        assert torch.equal(forward(again, net.state_dict(), x), net(x))
        assert torch.equal(cloudpickle.loads(cloudpickle.dumps(alone))(x), net(x))


def test_the_inputs_of_named_layers_are_rounded_and_those_of_others_are_not() -> None:
    net, x = odd()
    traced = trace(net, x)
    changed = with_rounded_inputs(traced, {"head.weight": 0.25})
    before, after = (activity(t, net.state_dict(), x) for t in (traced, changed))
    assert torch.equal(after.inputs["conv"], before.inputs["conv"])
    assert torch.equal(after.inputs["head"], rounded(before.inputs["head"], 0.25))
    assert not torch.equal(after.inputs["head"], before.inputs["head"])
    assert torch.equal(activity(traced, net.state_dict(), x).inputs["head"], before.inputs["head"])
    with torch.no_grad():
        sent = cloudpickle.loads(cloudpickle.dumps(GraphNetwork(changed, net.state_dict())))
        assert torch.equal(sent(x), after.output)
    assert with_rounded_inputs(traced, {}) is traced


def test_rounding_a_convolutions_inputs() -> None:
    net, x = odd()
    changed = with_rounded_inputs(trace(net, x), {"conv.weight": 1e-3})
    assert torch.equal(activity(changed, net.state_dict(), x).inputs["conv"], rounded(x / 255, 1e-3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.read = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.other(torch.tanh(self.one(x)))) + self.read.bias


def test_what_is_read_elsewhere_or_has_two_names_is_told_apart() -> None:
    net = Tied()
    traced = trace(net, torch.zeros(3, 4))
    layers = {e.weight: e for e in traced.layers}
    assert not any(applies_directly(traced, e) for n, e in layers.items() if n != "read.weight")
    assert applies_directly(traced, layers["read.weight"])
    assert not owns_bias(traced, layers["read.weight"])
