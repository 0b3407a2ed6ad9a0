"""A correct adapter passes; each broken promise is found, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl import check_agent
from prunerl.agents.module import ModuleAgent, from_module
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import CheckError
from prunerl.types import Critic, EnvSpec, Normalizer, State, Tie


class Duel(nn.Module):
    """A Q-network with its target, and two values that read the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.q = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.q_target = copy.deepcopy(self.q)
        self.v1, self.v2 = nn.Linear(8, 1), nn.Linear(8, 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.q(self.features(x))
        return result


def value(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: getattr(m, name)(m.features(x))


def good() -> ModuleAgent:
    torch.manual_seed(0)
    module = Duel()
    optimizer = torch.optim.Adam([*module.body.parameters(), *module.q.parameters()])
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return from_module(
        module,
        env="CartPole-v1",
        head="q_values",
        targets={"q": "q_target"},
        critics={"v1": value("v1"), "v2": value("v2")},
        optimizer=optimizer,
        stacks=("q",),
    )


@dataclass(frozen=True, eq=False)
class Wrapped:
    """An adapter with the promises of ``inner`` but for what ``broken`` puts in their place."""

    inner: Any
    broken: dict[str, Callable[[Any], Any]]

    def __getattribute__(self, name: str) -> Any:
        inner, broken = object.__getattribute__(self, "inner"), object.__getattribute__(self, "broken")
        if name in broken:
            return broken[name](inner)
        if name == "with_state":
            return lambda state: Wrapped(inner.with_state(state), broken)
        return getattr(inner, name)


def adapter(**broken: Callable[[Any], Any]) -> Any:
    return Wrapped(good(), broken)


def test_a_module_passes() -> None:
    (note,) = check_agent(adapter())
    assert note.startswith("It cannot be trained on: How a Duel is trained is not known")


@pytest.mark.parametrize("name", ["ppo/CartPole-v1", "dqn/CartPole-v1"])
def test_agents_of_stable_baselines3_pass(
    name: str, load_agent: Callable[[str], SB3Agent], quick: Callable[[SB3Agent], SB3Agent]
) -> None:
    assert check_agent(quick(load_agent(name)), episodes=1) == ()


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(4, 6), nn.GRUCell(6, 5), nn.Linear(5, 2)

    def step(self, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden = self.cell(torch.tanh(self.first(x)), memory[0][0])
        return self.last(hidden), (hidden.unsqueeze(0),)


class Forgetful(Remembering):
    """What it does on sequences is not what it does step by step."""

    def forward(self, x: Tensor) -> Tensor:
        memory = (torch.ones(1, len(x), 5),)
        return torch.stack([self.step(x[:, 0], memory)[0]] * x.shape[1], dim=1)


def test_a_memory_that_differs_is_named() -> None:
    agent = from_module(
        Forgetful(),
        env="CartPole-v1",
        head="logits",
        step=Remembering.step,
        memory=lambda m: ((1, m.cell.hidden_size),),
    )
    with pytest.raises(CheckError, match=r"step.. differs from its forward"):
        check_agent(agent)


def network_of(change: Callable[[nn.Module], nn.Module]) -> Callable[[Any], Any]:
    return lambda inner: replace(inner.policy, network=change(inner.policy.network))


class Around(nn.Module):
    """The network with its own parameter names, and something done to its output."""

    def __init__(self, network: Any, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._modules = network._modules
        self.change = change
        self.__dict__["network"] = network

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.__dict__["network"](x))


def around(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return network_of(lambda network: Around(network, change).eval())


def noisy(output: Tensor) -> Tensor:
    return output + torch.rand_like(output)


def shifted(inner: Any, name: str = "q.0.weight") -> State:
    return replace(inner.state, tensors={**inner.state.tensors, name: inner.state.tensors[name] + 1})


def shared(inner: Any) -> Any:
    policy = inner.policy
    for name, parameter in policy.network.named_parameters():
        parameter.data = inner.state.tensors[name]
    return policy


def stubborn(inner: Any) -> Any:
    """Give the same agent whatever the state."""
    return lambda state: Wrapped(inner, {"with_state": stubborn})


def forgets(part: str) -> Callable[[Any], Any]:
    def with_state(inner: Any) -> Any:
        return lambda state: Wrapped(inner.with_state(replace(state, **{part: {}})), {"with_state": with_state})

    return with_state


def keeps_width(inner: Any) -> Any:
    """Build networks of the old width: what was cut is put back as zeros."""

    def with_state(state: State) -> Any:
        tensors = {}
        for name, tensor in inner.state.tensors.items():
            tensors[name] = torch.zeros_like(tensor)
            tensors[name][tuple(slice(n) for n in state.tensors[name].shape)] = state.tensors[name]
        return inner.with_state(replace(state, tensors=tensors, moments={}))

    return lambda state: Wrapped(with_state(state) if small(state, inner) else inner.with_state(state), {})


def small(state: State, inner: Any) -> bool:
    return any(t.shape != inner.state.tensors[n].shape for n, t in state.tensors.items() if n in inner.state.tensors)


def changes_itself(inner: Any) -> Any:
    def with_state(state: State) -> Any:
        for name, parameter in inner.policy.network.named_parameters():
            parameter.data.copy_(state.tensors[name])
        return Wrapped(inner.with_state(state), {})

    return with_state


def deaf_to_depth(inner: Any) -> Any:
    def with_state(state: State) -> Any:
        missing = {n: t for n, t in inner.state.tensors.items() if n not in state.tensors}
        if missing:
            raise KeyError(min(missing))
        return Wrapped(inner.with_state(state), {"with_state": deaf_to_depth})

    return with_state


def revives(inner: Any) -> Any:
    def learn(steps: int, *, seed: int) -> Any:
        state = inner.state
        return inner.with_state(replace(state, tensors={n: t + 1 for n, t in state.tensors.items()}))

    return learn


def crashes(inner: Any) -> Any:
    def learn(steps: int, *, seed: int) -> Any:
        raise RuntimeError("no replay buffer")

    return learn


def value_names(inner: Any, change: Callable[[Critic], Critic]) -> Any:
    return tuple(change(c) for c in inner.critics)


def policy_with(**changes: Any) -> Callable[[Any], Any]:
    return lambda inner: replace(inner.policy, **changes)


def head(inner: Any, **changes: Any) -> Any:
    return replace(inner.policy, head=replace(inner.policy.head, **changes))


def untraceable(output: Tensor) -> Tensor:
    return output if float(output.sum()) > 0 else output * 1.0


BROKEN: dict[str, tuple[dict[str, Callable[[Any], Any]], str]] = {
    "member": ({"algorithm": lambda inner: None}, "agent.algorithm is a NoneType. Make it a str"),
    "tie type": ({"ties": lambda inner: ("q_target",)}, "An entry of agent.ties is a str. Make it a Tie"),
    "method": ({"save": lambda inner: None}, "no method 'save'"),
    "network": ({"policy": policy_with(network=3)}, "policy.network is a int. Make it a Module"),
    "value": ({"state": shifted}, "'q.0.weight' differs from state.tensors"),
    "name": (
        {"policy": network_of(lambda n: nn.Sequential(n).eval())},
        "parameter '0.body.weight', which is not in state.tensors. Nest its modules",
    ),
    "moments": (
        {"state": lambda inner: replace(inner.state, moments={"q.0.bias": {"exp_avg": torch.zeros(3)}})},
        r"has shape \(3,\), its parameter has \(6,\)",
    ),
    "moments of nothing": (
        {"state": lambda inner: replace(inner.state, moments={"0": {"exp_avg": torch.zeros(3)}})},
        r"state.moments\['0'\] belongs to no tensor",
    ),
    "mask": (
        {"state": lambda inner: replace(inner.state, masks={"q.0.bias": torch.ones(6)})},
        "not a bool tensor of the parameter's shape",
    ),
    "env": ({"env": lambda inner: EnvSpec("NoSuch-v0")}, "Environment 'NoSuch-v0' cannot be made"),
    "observation": ({"policy": policy_with(observation_shape=(5,))}, r"is \(5,\), 'CartPole-v1' observes \(4,\)"),
    "statistics": (
        {"policy": policy_with(normalizer=Normalizer(np.zeros(3), np.ones(4)))},
        r"normalizer.mean has shape \(3,\), observations have \(4,\)",
    ),
    "head": ({"policy": lambda inner: head(inner, kind="bernoulli")}, r"must be one of \['categorical', 'q_values'\]"),
    "head sizes": ({"policy": lambda inner: head(inner, sizes=(3,))}, r"sizes are \(3,\), they must be \(2,\)"),
    "head shape": ({"policy": lambda inner: head(inner, shape=(1,))}, "its shape is"),
    "training": ({"policy": network_of(lambda n: n.train())}, "is in training mode.*Call eval"),
    "width": ({"policy": around(lambda y: y[:, :1])}, "gives shape .*, not .* Give the head's inputs"),
    "not finite": ({"policy": around(lambda y: y / 0.0)}, "not finite"),
    "noise": ({"policy": around(noisy)}, "two outputs for the same inputs"),
    "batch": ({"policy": around(lambda y: y - y.mean(0))}, "depends on the other rows"),
    "trace": ({"policy": around(untraceable)}, "policy.network cannot be traced"),
    "rebuild": ({"with_state": lambda inner: lambda state: adapter(state=shifted)}, "is not what was given"),
    "shared": ({"policy": shared}, "shares its memory with agent.state"),
    "stubborn": ({"with_state": stubborn}, "differs from state.tensors.*Build the network from the agent's state"),
    "mutable": ({"with_state": changes_itself}, "After with_state.other. the first agent"),
    "forgets moments": ({"with_state": forgets("moments")}, "state.moments is not what was given"),
    "width not read": ({"with_state": keeps_width}, "state.tensors is not what was given"),
    "tie": ({"ties": lambda inner: (Tie("q.0.weight", 0, "q.9.weight", 0),)}, "no dimension 0 of 'q.9.weight'"),
    "tie size": ({"ties": lambda inner: (Tie("q.0.weight", 1, "q.0.bias", 0),)}, "the target has 6 entries there"),
    "target": (
        {"ties": lambda inner: tuple(t for t in inner.ties if not t.target.startswith("q_target"))},
        "'q_target.*' does not follow 'q.*'.*Say so in agent.ties",
    ),
    "critic": (
        {"critics": lambda inner: value_names(inner, lambda c: replace(c, inputs=lambda x: x[:, :2]))},
        "Critic 'v1' does not run: RuntimeError",
    ),
    "critic value": (
        {"critics": lambda inner: value_names(inner, lambda c: replace(c, inputs=lambda x: x[:2]))},
        "gives 2 values for",
    ),
    "twins": (
        {"critics": lambda inner: (inner.critics[0], Critic("q", inner.policy.network, lambda x: x, "v1"))},
        "'v1' and 'q' are twins, but their shapes differ",
    ),
    "untraceable critic": (
        {"critics": lambda inner: value_names(inner, lambda c: replace(c, network=Around(c.network, untraceable)))},
        "Critic 'v1' cannot be traced",
    ),
    "shared features": (
        {"ties": lambda inner: tuple(t for t in inner.ties if t.copies)},
        "Critic 'v1' does not run.*ties say what follows the policy",
    ),
    "depth": ({"with_state": deaf_to_depth}, "Without layer 'q.0' with_state.. fails: KeyError"),
    "save": (
        {"save": lambda inner: lambda path: Path(f"{path}.zip").write_text("x")},
        r"no file at path.*\['agent.safetensors.zip'\]",
    ),
    "save nothing": ({"save": lambda inner: lambda path: None}, r"no file at path, but \[\]"),
    "learn": ({"learn": crashes}, "RuntimeError: no replay buffer. Mend it, or raise LearnError"),
    "revives": ({"learn": revives}, "learn.. revives masked weights of 'body.weight'"),
    "forgets masks": (
        {"learn": lambda inner: lambda steps, seed: inner.with_state(replace(inner.state, masks={}))},
        "learn.. loses the mask of 'body.weight'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_named(name: str) -> None:
    broken, message = BROKEN[name]
    with pytest.raises(CheckError, match=message):
        check_agent(adapter(**broken), episodes=1)
