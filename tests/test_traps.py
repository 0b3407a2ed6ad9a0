"""One test for each known way in which pruning damages an agent of reinforcement learning in silence.

Where it is cheap, a test first shows that the plain way really has the fault, so that it cannot pass by accident.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import prunerl
from prunerl import cost, decide, heads, learner, masks
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import BudgetError, RemovalError, TraceError
from prunerl.remove import remove
from prunerl.trace import forward, trace, unit_groups
from prunerl.types import Decision, Group, State

SEEN: dict[str, gym.Space[Any]] = {
    "dict": spaces.Dict({"vector": spaces.Box(-2.0, 2.0, (3,)), "place": spaces.Discrete(4)}),
    "picture": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}


class Random(gym.Env[Any, Any]):
    """Ten random observations of one space."""

    def __init__(self, seen: str) -> None:
        self.observation_space, self.action_space, self.steps = SEEN[seen], spaces.Discrete(3), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), float(action), self.steps == 10, False, {}


gym.register("Traps-v0", entry_point=Random)

ON: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
OFF: dict[str, Any] = {"learning_starts": 4, "buffer_size": 50, "batch_size": 4, "train_freq": 1, "seed": 0}
WIDTHS: dict[str, Any] = {"net_arch": [12, 12]}
NARROW: dict[str, Any] = {**WIDTHS, "features_extractor_kwargs": {"features_dim": 12}}
MODELS: dict[str, Callable[[], Any]] = {
    "ppo": lambda: PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={**WIDTHS}, **ON),
    "gsde": lambda: PPO("MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs={**WIDTHS}, **ON),
    "dqn": lambda: DQN(
        "MlpPolicy", "CartPole-v1", policy_kwargs={**WIDTHS}, tau=0.5, target_update_interval=2, device="cpu", **OFF
    ),
    "sac": lambda: SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={**WIDTHS}, tau=0.5, device="cpu", **OFF),
    "dict": lambda: PPO("MultiInputPolicy", gym.make("Traps-v0", seen="dict"), policy_kwargs={**WIDTHS}, **ON),
    "cnn": lambda: PPO("CnnPolicy", gym.make("Traps-v0", seen="picture"), policy_kwargs={**NARROW}, **ON),
}


def built(name: str) -> Any:
    """Return a live model that has trained for a moment."""
    with torch.random.fork_rng():
        return MODELS[name]().learn(16)


@functools.cache
def taken(name: str) -> SB3Agent:
    agent = prunerl.load(built(name))
    assert isinstance(agent, SB3Agent)
    return agent


@functools.cache
def inputs(name: str) -> Tensor:
    """Return inputs of an agent's network, of random observations."""
    policy = taken(name).policy
    low, high = (0, 256) if name == "cnn" else (-2, 3)
    drawn = np.random.default_rng(0).integers(low, high, (16, *policy.observation_shape))
    if name == "dict":
        drawn[:, 0] = drawn[:, 0] % 4  # the index comes first: parts are in order of their names
    return heads.prepare(policy, drawn.astype(np.uint8 if name == "cnn" else np.float32))


@functools.cache
def groups_of(name: str) -> tuple[Any, tuple[Group, ...]]:
    traced = trace(taken(name).policy.network, inputs(name)[:2])
    return traced, unit_groups(traced, taken(name).state.tensors)


def some(groups: tuple[Group, ...], share: float = 0.5) -> Decision:
    """Keep units at random, others in each group."""
    generator = torch.Generator().manual_seed(3)
    return {g.name: torch.randperm(g.units, generator=generator) < max(1, int(share * g.units)) for g in groups}


def cut(name: str, share: float = 0.5, *, tied: bool = True) -> SB3Agent:
    agent, (traced, groups) = taken(name), groups_of(name)
    ties = agent.ties if tied else ()
    state = remove(traced, agent.state, groups, some(groups, share), ties=ties, observations=inputs(name))
    return agent.with_state(state)


def widths(agent: SB3Agent, pattern: str) -> list[int]:
    return [len(t) for n, t in agent.state.tensors.items() if pattern in n and n.endswith("weight")]


def optimizers(model: Any) -> list[torch.optim.Optimizer]:
    parts = (model.policy, getattr(model, "actor", None), getattr(model, "critic", None))
    return [part.optimizer for part in parts if getattr(part, "optimizer", None) is not None]


def live(model: Any) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.policy.named_parameters() if "_target." not in n}


# Training state


def test_stale_optimizer() -> None:
    stale = built("ppo")
    old = stale.policy.mlp_extractor.policy_net
    old[0], old[2], stale.policy.action_net = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)
    known = {id(p) for o in optimizers(stale) for g in o.param_groups for p in g["params"]}
    assert sum(id(p) not in known for p in live(stale).values()) == 6  # the naive way: no error, and none of these
    for name in ("ppo", "sac"):
        small = cut(name)
        model = small.model()
        trained = [id(p) for o in optimizers(model) for g in o.param_groups for p in g["params"]]
        assert sorted(trained) == sorted(id(p) for p in live(model).values())
        for parameter in small.state.moments:
            for key, moment in small.state.moments[parameter].items():
                assert key == "step" or moment.shape == small.state.tensors[parameter].shape
        after = small.learn(16, seed=0).state.tensors
        assert not [n for n in live(model) if torch.equal(after[n], small.state.tensors[n])]


def test_stale_optimizer_moments_are_sliced_along() -> None:
    name, keep = "mlp_extractor.policy_net.0.weight", some(groups_of("ppo")[1])
    group = next(g for g in groups_of("ppo")[1] if any((s.tensor, s.dim) == (name, 0) for s in g.slices))
    for key in ("exp_avg", "exp_avg_sq"):
        dense = taken("ppo").state.moments[name][key]
        assert dense.abs().sum() > 0
        assert torch.equal(cut("ppo").state.moments[name][key], dense[keep[group.name]])


def test_reviving_weights() -> None:
    name = "mlp_extractor.policy_net.2.weight"
    keep = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.8
    naive = built("ppo")
    weight = live(naive)[name]
    weight.data.mul_(keep)
    weight.register_hook(lambda grad: grad * keep)
    naive.learn(16, reset_num_timesteps=False)
    assert (weight[~keep] != 0).all()  # momentum alone revives every one of them
    model = built("ppo")
    held = masks.attach(model.policy, {name: keep})
    model.learn(16, reset_num_timesteps=False)
    held.remove()
    weight = live(model)[name]
    assert torch.equal(weight != 0, keep)  # sparsity is exactly what was set, and the others are trained
    assert all(not m[~keep].any() for k, m in model.policy.optimizer.state[weight].items() if k != "step")


def test_target_network() -> None:
    dense, small, (_, groups) = taken("dqn").state.tensors, cut("dqn"), groups_of("dqn")
    keep = some(groups)
    rows = {s.tensor: keep[g.name] for g in groups for s in g.slices if s.dim == 0}
    columns = {s.tensor: keep[g.name] for g in groups for s in g.slices if s.dim == 1}
    assert not torch.equal(dense["q_net.q_net.0.weight"], dense["q_net_target.q_net.0.weight"])  # it lags behind
    for name in (n for n in dense if n.startswith("q_net.")):
        target = name.replace("q_net.", "q_net_target.", 1)
        wanted = dense[target]
        wanted = wanted[rows[name]] if name in rows else wanted
        wanted = wanted[:, columns[name]] if name in columns else wanted
        assert torch.equal(small.state.tensors[target], wanted)  # the very same units as online, its own values
        assert wanted.shape == small.state.tensors[name].shape
    after = small.learn(8, seed=0).state.tensors
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in small.state.tensors.items()}


def test_parameter_order() -> None:
    naive = built("dqn")
    target = naive.q_net_target.q_net[2].weight
    before, bias = target.detach().clone(), naive.q_net.q_net[2].bias.detach()
    prune.identity(naive.q_net.q_net[2], "weight")
    polyak_update(naive.q_net.parameters(), naive.q_net_target.parameters(), 0.5)
    assert torch.allclose(target, 0.5 * before + 0.5 * bias)  # the bias, broadcast into a weight, without an error
    model = built("dqn")
    names = [n for n, _ in model.policy.named_parameters()]
    keep = {n: torch.rand(p.shape) > 0.5 for n, p in live(model).items() if p.dim() == 2}
    held = masks.attach(model.policy, keep)
    model.learn(4, reset_num_timesteps=False)
    assert [n for n, _ in model.policy.named_parameters()] == names
    assert not any(nn.utils.parametrize.is_parametrized(m) or prune.is_pruned(m) for m in model.policy.modules())
    old = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), 0.5)
    for name, now in model.q_net_target.named_parameters():
        assert torch.allclose(now, 0.5 * old[f"q_net.{name}"] + 0.5 * old[f"q_net_target.{name}"])
        assert f"q_net.{name}" not in keep or not now[~keep[f"q_net.{name}"]].any()
    held.remove()


def test_twin_critics() -> None:
    state = taken("sac").state
    weak = {n: 0.05 * t if n == "critic.qf1.0.weight" else t for n, t in state.tensors.items()}
    agent = taken("sac").with_state(replace(state, tensors=weak))  # twins that differ in which layer matters
    scores: dict[str, Tensor] = {}
    groups: list[Group] = []
    for critic in agent.critics:
        found = unit_groups(trace(critic.network, critic.inputs(inputs("sac"))[:2]), agent.state.tensors)
        groups += found
        for group in found:
            row = next(s for s in group.slices if s.dim == 0 and s.tensor.endswith("weight"))
            scores[group.name] = agent.state.tensors[row.tensor].abs().sum(1)
    everywhere = decide.by_sparsity(groups, scores, 0.5)
    counts = [[int(everywhere[g.name].sum()) for g in groups if f"qf{i}." in g.name] for i in (0, 1)]
    assert len(counts[0]) == 2
    assert counts[0] != counts[1]  # one ranking of all: widths that net_arch cannot express
    generator = torch.Generator().manual_seed(0)
    made = learner.prune_critics(agent, inputs("sac"), 0.5, structure="units", generator=generator)
    small = agent.with_state(made.state)
    assert widths(small, "critic.qf0.") == widths(small, "critic.qf1.")
    assert max(widths(small, "critic.qf0.")) < 12
    kept = []
    for i in (0, 1):  # the first layer is not refitted, so its rows say which units are left
        dense, left = (s.tensors[f"critic.qf{i}.0.weight"] for s in (agent.state, made.state))
        kept.append((left[:, None] == dense[None]).all(-1).any(0))
        assert int(kept[-1].sum()) == len(left)
    assert not torch.equal(kept[0], kept[1])
    assert widths(small.learn(8, seed=0), "critic_target.qf1.") == widths(small, "critic.qf0.")


def test_gsde_log_std() -> None:
    loose = cut("gsde", tied=False)
    assert loose.state.tensors["log_std"].shape == (12, 1)  # the fault: the latent layer is narrower
    small, (_, groups) = cut("gsde"), groups_of("gsde")
    last = next(g for g in groups if any((s.tensor, s.dim) == ("action_net.weight", 1) for s in g.slices))
    keep = some(groups)[last.name]
    assert 0 < int(keep.sum()) < 12
    assert torch.equal(small.state.tensors["log_std"], taken("gsde").state.tensors["log_std"][keep])
    after = small.learn(16, seed=0).state.tensors["log_std"]
    assert after.shape == small.state.tensors["log_std"].shape
    assert not torch.equal(after, small.state.tensors["log_std"])


def test_deep_copy() -> None:
    model = built("ppo")
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model.policy)
    agent = prunerl.load(model)
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    model.learn(16, reset_num_timesteps=False)
    assert not any(torch.equal(p, before[n]) for n, p in model.policy.named_parameters())
    assert all(torch.equal(agent.state.tensors[n], p) for n, p in before.items())


# Structure


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac"])
def test_output_heads(name: str) -> None:
    agent, small, (traced, groups) = taken(name), cut(name, 0.0), groups_of(name)
    cuts = {(s.tensor, s.dim) for g in groups for s in g.slices}
    first = traced.layers[0].weight
    outputs = {n for n in traced.parameters if n.startswith(("action_net", "q_net.q_net.4", "actor.mu."))}
    assert outputs
    assert not cuts & {(first, 1), *((n, 0) for n in outputs)}
    for critic in agent.critics:  # values and actions are no units either
        seen = critic.inputs(inputs(name))
        deep = trace(critic.network, seen[:2])
        ends = {(deep.layers[0].weight, 1), (deep.layers[-1].weight, 0)}
        assert not ends & {(s.tensor, s.dim) for g in unit_groups(deep, agent.state.tensors) for s in g.slices}
    assert all(g.units == 12 for g in groups)
    assert small.state.tensors[first].shape == (1, agent.state.tensors[first].shape[1])
    space = small.spaces[1]
    action, _ = small.model().predict(small.spaces[0].sample(), deterministic=True)
    assert space.contains(int(action) if name == "dqn" else action)


class Gru(nn.Module):
    """A frozen recurrent layer, and one whose width is written into the code as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.wide, self.last = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 6), nn.Linear(6, 2)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.wide(self.gru(x)[0][:, -1])).reshape(-1, 6))


def test_nothing_pruned() -> None:
    seen = torch.zeros(2, 4)
    assert not built("dqn").policy(seen).requires_grad  # ends in argmax: no gradient to follow
    assert [g.units for g in groups_of("dqn")[1]] == [12, 12]
    network = Gru()
    traced = trace(network, torch.zeros(2, 5, 3))
    groups = unit_groups(traced, network.state_dict())
    assert [g.units for g in groups] == [8]  # recurrent and frozen, and yet it has units
    told = " ".join(f"{n} {reason}" for n, reason in traced.kept_whole.items())
    assert "wide" in told
    assert "-1" in told.replace("\N{MINUS SIGN}", "-")  # the reason says how to mend it
    for found in (traced, groups_of("dqn")[0], groups_of("sac")[0], groups_of("cnn")[0]):
        rows = {t for owned in found.couplings.values() for t, dim in owned if dim == 0}
        assert not [e.name for e in found.layers if e.weight not in rows and e.name not in found.kept_whole]
        assert all(reason.strip() for reason in found.kept_whole.values())


class Lstm(nn.Module):
    """Two LSTMs, one after the other."""

    def __init__(self, one: int = 6, two: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.LSTM(3, one, batch_first=True), nn.LSTM(one, two, batch_first=True)
        self.last = nn.Linear(two, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(x)[0])[0][:, -1])


def test_lstm() -> None:
    torch.manual_seed(0)
    network, seen = Lstm(), torch.randn(4, 5, 3)
    traced = trace(network, seen)
    groups = unit_groups(traced, network.state_dict())
    assert [g.units for g in groups] == [6, 6]
    gates = {(s.tensor, s.dim): s.index for g in groups for s in g.slices}
    four = torch.arange(6)[:, None] + 6 * torch.arange(4)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(gates[f"one.{name}", 0].sort(dim=1).values, four)  # a unit is a slice of each gate
    assert gates["one.weight_hh_l0", 1].shape == gates["two.weight_ih_l0", 1].shape == (6, 1)
    keep = {g.name: torch.arange(6) % 3 > i for i, g in enumerate(groups)}
    small = remove(traced, State(network.state_dict()), groups, keep, ties=(), observations=seen)
    smaller = Lstm(4, 2)
    smaller.load_state_dict(dict(small.tensors))
    silent = Lstm()
    silent.load_state_dict(network.state_dict())
    with torch.no_grad():  # what nobody reads is not there
        for (name, dim), index in gates.items():
            group = next(g for g in groups if any((s.tensor, s.dim) == (name, dim) for s in g.slices))
            if dim == 1:
                silent.get_parameter(name).index_fill_(1, index[~keep[group.name]].flatten(), 0.0)
        assert torch.allclose(smaller(seen), silent(seen), atol=1e-6)


class Layers(nn.Module):
    """An LSTM of two layers."""

    def __init__(self, units: int = 6) -> None:
        super().__init__()
        self.memory, self.last = nn.LSTM(3, units, 2, batch_first=True), nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.memory(x)[0][:, -1])


def test_lstm_of_several_layers() -> None:
    network, seen = Layers(), torch.randn(4, 5, 3)
    traced = trace(network, seen)
    groups = unit_groups(traced, network.state_dict())
    keep = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    small = remove(traced, State(network.state_dict()), groups, keep, ties=(), observations=seen)
    smaller = Layers(3)
    smaller.load_state_dict(dict(small.tensors))  # shapes fit, gate by gate
    assert torch.allclose(smaller(seen), forward(traced, small.tensors, seen), atol=1e-6)


def test_half_pruned_network() -> None:
    agent, (traced, groups) = taken("ppo"), groups_of("ppo")
    before = {n: t.clone() for n, t in agent.state.tensors.items()}
    right = some(groups)
    wrong = torch.zeros(11, dtype=torch.bool), torch.zeros(12), torch.zeros(12, dtype=torch.bool)
    for mask in wrong:  # the first group is right, the error comes in the middle
        with pytest.raises((RemovalError, BudgetError), match=groups[1].name):
            remove(
                traced,
                agent.state,
                groups,
                {groups[0].name: right[groups[0].name], groups[1].name: mask},
                ties=agent.ties,
                observations=inputs("ppo"),
            )
        assert all(torch.equal(t, before[n]) for n, t in agent.state.tensors.items())
        assert all(torch.equal(p, before[n]) for n, p in agent.policy.network.named_parameters())


def test_layer_collapse() -> None:
    groups = (Group("thin", 64, ()), Group("fat", 64, ()))
    scores = {"thin": torch.linspace(0.0, 0.1, 64), "fat": torch.linspace(1.0, 2.0, 64)}
    naive = torch.cat(list(scores.values())) >= torch.cat(list(scores.values())).median()
    assert int(naive[:64].sum()) <= 1  # one ranking of all takes the layer whole
    with pytest.raises(BudgetError, match="'thin' would keep 0 of 64 units"):
        decide.by_sparsity(groups, scores, 0.5, min_units=0)
    floored = decide.by_sparsity(groups, scores, 0.5, min_units=5)
    assert {n: int(k.sum()) for n, k in floored.items()} == {"thin": 5, "fat": 59}
    with pytest.raises(BudgetError, match=r"sparsity 1\.0"):
        decide.by_sparsity(groups, scores, 1.0)  # neither nothing nor all in silence


def test_dict_observations() -> None:
    small = cut("dict")
    seen = SEEN["dict"]
    seen.seed(1)
    observations = [seen.sample() for _ in range(8)]
    packed = np.stack([prunerl.environments.pack(seen, one) for one in observations])
    batch = {k: np.stack([one[k] for one in observations]) for k in ("vector", "place")}
    wanted, _ = small.model().predict(batch, deterministic=True)
    assert np.array_equal(heads.act(small.policy, packed), wanted)
    assert widths(small, "policy_net") == [6, 6]
    assert widths(small.learn(16, seed=0), "policy_net") == [6, 6]


class Noisy(nn.Module):
    """A layer whose weight is a mean and scaled noise."""

    def __init__(self) -> None:
        super().__init__()
        self.mu, self.sigma = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(8, 5))
        self.register_buffer("noise", torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mu + self.sigma * self.noise)


class Ensemble(nn.Module):
    """Two members side by side in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(2, 5, 8)), nn.Parameter(torch.randn(2, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.tanh(torch.bmm(x.expand(2, -1, -1), self.weight)), self.last).mean(0)


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: nn.Sequential(weight_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 3)),
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 3)),
    "noisy": lambda: nn.Sequential(Noisy(), nn.Tanh(), nn.Linear(8, 3)),
    "ensemble": Ensemble,
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_weight_norm_spectral_norm_noisy_and_ensembles(kind: str) -> None:
    torch.manual_seed(0)
    network, seen = UNUSUAL[kind]().eval(), torch.randn(6, 5)
    traced = trace(network, seen)
    groups = unit_groups(traced, network.state_dict())
    if kind == "spectral norm" and not groups:  # a clear refusal is right as well
        assert any(name.startswith("0") and reason for name, reason in traced.kept_whole.items())
        return
    assert [g.units for g in groups] == [8]  # no KeyError, and not nothing
    keep = torch.tensor([True, False] * 4)
    decision = {groups[0].name: keep}
    small = remove(traced, State(network.state_dict()), groups, decision, ties=(), observations=seen)
    assert sum(t.numel() for t in small.tensors.values()) < 0.7 * sum(t.numel() for t in network.state_dict().values())
    with torch.no_grad():
        last = network.last.movedim(1, 2) if isinstance(network, Ensemble) else network.get_parameter("2.weight")
        last[..., ~keep] = 0.0  # what nobody reads is not there; the other units compute what they did
        exact = torch.allclose(forward(traced, small.tensors, seen), network(seen), atol=1e-6)
    assert exact or traced.normalised  # or the report says that they do not


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_fx_symbolic_trace() -> None:
    model = built("ppo")
    with pytest.raises(Exception, match=r"symbolic|trac|Proxy|iterated"):
        torch.fx.symbolic_trace(model.policy)
    traced, _ = groups_of("ppo")
    network = taken("ppo").policy.network
    with torch.no_grad():
        assert torch.equal(forward(traced, taken("ppo").state.tensors, inputs("ppo")), network(inputs("ppo")))
    with pytest.raises(TraceError, match=r"Choosing.*control flow"):
        trace(Choosing(), torch.ones(2, 3))


def test_ratio_words() -> None:
    network = nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 2))
    traced, tensors = trace(network, torch.zeros(2, 8)), network.state_dict()
    groups = unit_groups(traced, tensors)
    scores = {g.name: torch.rand(g.units) for g in groups}
    by_units = decide.by_sparsity(groups, scores, 0.3, scope="local")
    assert [int(k.sum()) for k in by_units.values()] == [42, 42]  # removed, not kept
    state = remove(traced, State(tensors), groups, by_units, ties=(), observations=torch.randn(4, 8))
    size, dense = cost.size(traced, state.tensors), cost.size(traced, tensors)
    assert size.units[:2] == (42, 42)
    assert (dense.parameters, size.parameters) == (4322, 2270)  # 30 % of the units are 47 % of the parameters
    by_parameters = decide.by_sparsity(
        groups, scores, 0.3, scope="local", count="parameters", traced=traced, tensors=tensors
    )
    state = remove(traced, State(tensors), groups, by_parameters, ties=(), observations=torch.randn(4, 8))
    assert 0.30 <= 1 - cost.size(traced, state.tensors).parameters / 4322 < 0.33


# Speed: what can be counted is, since a time depends on the machine


class Counted(TorchDispatchMode):
    """Count the operators that PyTorch runs, and the bytes that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        if isinstance(made, Tensor) and not func.is_view and "_." not in str(func):
            self.bytes += made.numel() * made.element_size()
        return made


def test_masks_cost_a_decision_nothing() -> None:
    naive, seen = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)), torch.zeros(1, 3)
    with Counted() as plain:
        naive(seen)
    prune.l1_unstructured(naive[0], "weight", 0.9)
    with Counted() as slower:
        naive(seen)
    assert len(slower.calls) > len(plain.calls)  # a mask is multiplied in at every decision
    agent = taken("ppo")
    keep = {n: torch.rand(t.shape) > 0.9 for n, t in agent.state.tensors.items() if t.dim() == 2}
    tensors = {n: t * keep[n] if n in keep else t for n, t in agent.state.tensors.items()}
    masked = agent.with_state(replace(agent.state, tensors=tensors, masks=keep))
    seen, dense, sparse = inputs("ppo"), agent.policy.network, masked.policy.network
    with Counted() as before:
        dense(seen)
    with Counted() as after:
        sparse(seen)
    assert after.calls == before.calls
    assert len(after.calls) > 3


def deep(layers: int, width: int) -> nn.Sequential:
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.Tanh())][:-1])


def test_surgery_takes_a_few_copies_and_time_linear_in_depth() -> None:
    def halved(layers: int, width: int) -> tuple[int, Counted]:
        network, seen = deep(layers, width), torch.zeros(2, width)
        traced, state = trace(network, seen), State(network.state_dict())
        called = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal called
            called += 1

        sys.setprofile(count)
        try:
            groups = unit_groups(traced, state.tensors)
            decision = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
        finally:
            sys.setprofile(None)
        with Counted() as counted:
            sys.setprofile(count)
            try:
                remove(traced, state, groups, decision, ties=(), observations=seen)
            finally:
                sys.setprofile(None)
        return called, counted

    (few, _), (more, _), (most, _) = halved(8, 8), halved(16, 8), halved(32, 8)
    assert (most - more) / (more - few) == pytest.approx(2.0, rel=0.1)  # twice the layers, twice the work
    _, counted = halved(4, 256)
    naive = deep(4, 256)
    weights = sum(t.numel() * t.element_size() for t in naive.state_dict().values())
    assert counted.bytes < 4 * weights
    with Counted() as wasteful:
        chosen = [(m, "weight") for m in naive if isinstance(m, nn.Linear)]
        prune.global_unstructured(chosen, prune.L1Unstructured, amount=0.5)
    assert wasteful.bytes > 2 * counted.bytes


# Saving


def test_zip_load(tmp_path: Path) -> None:
    naive = built("ppo")
    prune.l1_unstructured(naive.policy.action_net, "weight", 0.5)
    naive.save(tmp_path / "naive.zip")
    with pytest.raises(RuntimeError, match="weight_orig"):
        PPO.load(tmp_path / "naive.zip", device="cpu")
    small = cut("ppo")
    small.save(tmp_path / "small.zip")
    model = PPO.load(tmp_path / "small.zip", device="cpu")
    assert model.policy_kwargs["net_arch"] == {"pi": [6, 6], "vf": [12, 12]}
    seen = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    assert np.array_equal(model.predict(seen, deterministic=True)[0], heads.act(small.policy, seen))


def test_resume(tmp_path: Path) -> None:
    dense, small = built("ppo"), cut("ppo")
    edited = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": {"pi": [6, 6], "vf": [12, 12]}}, **ON)
    edited.policy.optimizer.load_state_dict(dense.policy.optimizer.state_dict())
    with pytest.raises(RuntimeError, match="size"):
        edited.learn(16)  # the moments are of other shapes
    small.save(tmp_path / "small.zip")
    model = PPO.load(tmp_path / "small.zip", env=gym.make("Pendulum-v1"), device="cpu")
    for name, parameter in model.policy.named_parameters():
        kept = model.policy.optimizer.state[parameter]
        assert torch.equal(kept["exp_avg"], small.state.moments[name]["exp_avg"])
        assert float(kept["step"]) > 0
    before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    model.learn(16, reset_num_timesteps=False)
    assert not [n for n, p in model.policy.named_parameters() if torch.equal(p, before[n])]


def test_cnn(tmp_path: Path) -> None:
    small = cut("cnn")
    small.save(tmp_path / "small.zip", portable=False)
    model = PPO.load(tmp_path / "small.zip", env=gym.make("Traps-v0", seen="picture"), device="cpu")
    kwargs = model.policy_kwargs
    cls = kwargs["features_extractor_class"]
    assert cls.__module__ == "prunerl.agents.sb3_extractors"  # importable, its widths are arguments
    extractor = model.policy.features_extractor
    channels = [m.out_channels for m in extractor.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [16, 32, 32]  # half of 32, 64, 64
    assert extractor.features_dim == kwargs["features_extractor_kwargs"]["features_dim"] == 6
    seen = np.random.default_rng(0).integers(0, 256, (4, 36, 36, 1)).astype(np.uint8)
    assert np.array_equal(model.predict(seen, deterministic=True)[0], heads.act(small.policy, seen))
    model.learn(16, reset_num_timesteps=False)


def test_legacy_agents(tmp_path: Path, zip_of: Callable[[str], Path]) -> None:
    path = zip_of("ppo/CartPole-v1")
    if importlib.util.find_spec("gym") is None:
        with pytest.raises(ModuleNotFoundError, match="'gym'"):
            PPO.load(path, device="cpu")
    agent = prunerl.load(path, env="CartPole-v1")
    with zipfile.ZipFile(path) as archive:
        stored = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    assert stored.keys() == agent.state.tensors.keys()
    assert all(torch.equal(agent.state.tensors[n], t) for n, t in stored.items())
    agent.save(tmp_path / "today.zip")
    model = PPO.load(tmp_path / "today.zip", device="cpu")
    assert all(torch.equal(p, stored[n]) for n, p in model.policy.named_parameters())
