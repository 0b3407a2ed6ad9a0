"""Any module becomes an agent that is cut, rebuilt, saved and trained on like those of a library."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from torch import Tensor, nn

import prunerl
from prunerl import environments, heads
from prunerl.agents import module_file
from prunerl.agents.module import ModuleAgent, from_module, load_module, unpack
from prunerl.agents.resize import resize
from prunerl.errors import LearnError, LoadError, NameUnknownError, PruneError, RemovalError, SpaceError
from prunerl.remove import remove
from prunerl.trace import trace, unit_groups, weight_groups
from prunerl.types import EnvSpec, Group, Normalizer


class ActorCritic(nn.Module):
    """Actor and critic in one, as a single-file PPO has them."""

    def __init__(self, observations: int = 4, actions: int = 2) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(observations, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor_mean = nn.Sequential(
            nn.Linear(observations, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, actions)
        )
        self.actor_logstd = nn.Parameter(torch.zeros(1, actions))


class Noisy(nn.Module):
    """A noisy linear layer; the noise is only there in training."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inner, outer
        self.mu_w, self.sigma_w = (nn.Parameter(torch.randn(outer, inner)) for _ in range(2))
        self.mu_b, self.sigma_b = (nn.Parameter(torch.randn(outer)) for _ in range(2))
        self.register_buffer("eps_p", torch.randn(inner))
        self.register_buffer("eps_q", torch.randn(outer))
        self.eps_p: Tensor
        self.eps_q: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.linear(x, self.mu_w, self.mu_b)
        weight = self.mu_w + self.sigma_w * torch.outer(self.eps_q, self.eps_p)
        return nn.functional.linear(x, weight, self.mu_b + self.sigma_b * self.eps_q)


class Remembering(nn.Module):
    """A GRU between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 12)
        self.gru = nn.GRU(12, 10, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.gru(torch.tanh(self.encoder(sequences)))[0])

    def step(self, observations: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, after = self.gru(torch.tanh(self.encoder(observations)).unsqueeze(1), memory[0])
        return self.head(hidden[:, 0]), (after,)


class Fixed(nn.Module):
    """A width is written in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).reshape(-1, 16))


def actor_critic(**options: Any) -> ModuleAgent:
    return from_module(ActorCritic(), env="CartPole-v1", head="logits", forward=act, **options)


def act(module: Any, observations: Tensor) -> Tensor:
    result: Tensor = module.actor_mean(observations)
    return result


def halved(agent: ModuleAgent, *, structure: str = "units") -> tuple[ModuleAgent, tuple[Group, ...], Mapping[str, Any]]:
    """Return the agent without every second unit or weight."""
    inputs = agent.adapter.example
    traced = trace(agent.policy.network, inputs)
    groups = unit_groups(traced, agent.state.tensors) if structure == "units" else weight_groups(traced, agent.state)
    decision = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    state = remove(traced, agent.state, groups, decision, ties=agent.ties, observations=inputs)
    return agent.with_state(state), groups, decision


def observations(agent: ModuleAgent, count: int = 8) -> np.ndarray:
    env = environments.make(agent.env)
    env.observation_space.seed(1)
    seen = np.stack([environments.pack(env.observation_space, env.observation_space.sample()) for _ in range(count)])
    env.close()
    return seen


def output(agent: ModuleAgent, module: nn.Module | None = None) -> Tensor:
    network = agent.policy.network if module is None else module
    with torch.no_grad():
        result: Tensor = network(agent.adapter.example)
    return result


def test_nothing_is_shared_with_the_module_and_it_stays_as_it_is() -> None:
    module = ActorCritic()
    before = copy.deepcopy(module.state_dict())
    agent = from_module(module, env="CartPole-v1", head="logits", forward=act)
    smaller, _, _ = halved(agent)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    assert output(agent).isfinite().all()
    assert output(smaller).isfinite().all()
    assert smaller.module().training


def test_names_are_the_modules_own() -> None:
    agent = actor_critic()
    names = dict(agent.policy.network.named_parameters())
    assert set(names) == set(dict(ActorCritic().named_parameters())) == set(agent.state.tensors)
    assert all(torch.equal(names[n], t) for n, t in agent.state.tensors.items())


def test_what_forward_does_not_read_stays_as_it_is() -> None:
    agent = actor_critic()
    smaller, _, _ = halved(agent)
    assert smaller.state.tensors["actor_mean.2.weight"].shape == (8, 8)
    for name in ("critic.0.weight", "critic.2.bias", "actor_logstd"):
        assert torch.equal(smaller.state.tensors[name], agent.state.tensors[name])


def test_a_smaller_module_is_of_the_same_class_and_gives_the_agents_actions() -> None:
    smaller, _, _ = halved(actor_critic())
    live = smaller.module()
    assert type(live) is ActorCritic
    assert live.actor_mean[2].in_features == live.actor_mean[2].out_features == 8
    seen = observations(smaller)
    wanted = live.actor_mean(torch.as_tensor(seen)).argmax(dim=1).numpy()
    assert np.array_equal(heads.act(smaller.policy, seen), wanted)


def test_masked_weights_are_zero_in_the_module() -> None:
    smaller, groups, decision = halved(actor_critic(), structure="weights")
    tensors = smaller.module().state_dict()
    for group in groups:
        assert bool((tensors[group.name].flatten()[~decision[group.name]] == 0).all())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_training_goes_on_from_the_sliced_moments(optimizer: Any) -> None:
    torch.manual_seed(0)
    module = ActorCritic()
    trained = optimizer(
        [{"params": module.actor_mean.parameters(), "lr": 1e-2}, {"params": module.critic.parameters(), "lr": 1e-3}],
        **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}),
        lr=0.5,
    )

    def update(live: Any, own: torch.optim.Optimizer) -> None:
        own.zero_grad()
        x = torch.ones(4, 4) * torch.arange(4.0).unsqueeze(1)
        (live.actor_mean(x).square().mean() + live.critic(x).square().mean()).backward()
        own.step()

    update(module, trained)
    agent = from_module(module, env="CartPole-v1", head="logits", forward=act, optimizer=trained)
    smaller, groups, decision = halved(agent)
    for name, entries in smaller.state.moments.items():
        for key, moment in entries.items():
            assert moment.dim() == 0 or moment.shape == smaller.state.tensors[name].shape, (name, key)
    kept = decision[groups[0].name]
    first = {k: m for k, m in agent.state.moments["actor_mean.0.weight"].items() if m.dim()}
    assert all(torch.equal(smaller.state.moments["actor_mean.0.weight"][k], m[kept]) for k, m in first.items())
    live = smaller.module()
    own = smaller.optimizer(live)
    assert [g["lr"] for g in own.param_groups] == [1e-2, 1e-3]
    before = {n: p.detach().clone() for n, p in live.named_parameters()}
    update(live, own)
    unmoved = [n for n, p in live.named_parameters() if torch.equal(p, before[n])]
    assert unmoved == ["actor_logstd"]  # the loss does not read it
    again = from_module(live, env="CartPole-v1", head="logits", forward=act, optimizer=own)
    assert again.state.moments.keys() == agent.state.moments.keys()


def test_targets_follow_and_critics_are_there() -> None:
    parts = nn.ModuleDict({"q": nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))})
    parts["target"] = copy.deepcopy(parts["q"])
    agent = from_module(parts, env="CartPole-v1", head="q_values", forward=q_of, targets={"q": "target"})
    smaller, _, _ = halved(agent)
    tensors = smaller.state.tensors
    assert tensors["q.0.weight"].shape == (8, 4)
    assert all(torch.equal(t, tensors[n.replace("q.", "target.", 1)]) for n, t in tensors.items() if n[0] == "q")


def q_of(module: Any, observations: Tensor) -> Tensor:
    result: Tensor = module["q"](observations)
    return result


def test_critics_see_what_they_value() -> None:
    actor = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    parts = nn.ModuleDict({"actor": actor, "v": nn.Linear(3, 1), "q1": nn.Linear(4, 1), "q2": nn.Linear(4, 1)})
    agent = from_module(
        parts,
        env="Pendulum-v1",
        head="squashed_mean",
        forward=lambda m, o: m["actor"](o),
        critics={"v": lambda m, o: m["v"](o)},
        action_critics={f"q{i}": lambda m, o, a, i=i: m[f"q{i}"](torch.cat([o, a], 1)) for i in (1, 2)},
    )
    assert [(c.name, c.twins) for c in agent.critics] == [
        ("v", "v"),
        ("q1", "action critics"),
        ("q2", "action critics"),
    ]
    x = agent.adapter.example
    action = 2 * torch.tanh(actor(x))
    for critic, wanted in zip(agent.critics, (x, torch.cat([x, action], 1), torch.cat([x, action], 1)), strict=True):
        with torch.no_grad():
            got = critic.network(critic.inputs(x))
        assert torch.allclose(critic.inputs(x), wanted)
        assert torch.allclose(got, parts[critic.name](wanted))
        assert {n for n, _ in critic.network.named_parameters()} <= set(agent.state.tensors)


class Features(nn.Module):
    """What acts and what is needed only to train read the same convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.mean, self.log_std, self.value = (nn.Linear(6 * 2, n) for n in (2, 2, 1))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x.reshape(-1, 1, 4, 3))).flatten(1)


def test_what_is_shared_is_cut_along() -> None:
    env = EnvSpec("CartPole-v1", {}, (("gymnasium.wrappers:FrameStackObservation", {"stack_size": 3}),))
    agent = from_module(
        Features(),
        env=env,
        head="q_values",
        forward=lambda m, o: m.mean(m.features(o.reshape(-1, 12))),
        critics={
            "value": lambda m, o: m.value(m.features(o.reshape(-1, 12))),
            "log_std": lambda m, o: m.log_std(m.features(o.reshape(-1, 12))),
        },
    )
    smaller, _, _ = halved(agent)
    live: Any = smaller.module()
    assert live.conv.out_channels == 3
    assert live.value.in_features == live.log_std.in_features == live.mean.in_features == 6
    columns = torch.tensor([0, 1, 4, 5, 8, 9])  # of the channels 0, 2 and 4
    wide = agent.state.tensors
    assert torch.equal(live.log_std.weight, wide["log_std.weight"][:, columns])
    assert torch.equal(live.value.weight, wide["value.weight"][:, columns])


def test_noise_follows_the_means() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Noisy(4, 6), nn.ReLU(), Noisy(6, 6), nn.ReLU(), Noisy(6, 2))
    smaller, _, _ = halved(from_module(module, env="CartPole-v1", head="q_values"))
    live = smaller.module().train()
    shapes = {n: tuple(t.shape) for n, t in live.state_dict().items()}
    assert shapes["2.sigma_w"] == (3, 3)
    assert shapes["0.eps_p"] == (4,)
    assert shapes["2.eps_p"] == shapes["0.eps_q"] == (3,)
    live(torch.randn(5, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in live.parameters())


def test_a_recurrent_module() -> None:
    agent = from_module(
        Remembering(),
        env="CartPole-v1",
        head="logits",
        step=Remembering.step,
        memory=lambda m: ((1, m.gru.hidden_size),),
    )
    smaller, _, _ = halved(agent)
    assert smaller.policy.memory == ((1, 5),)
    sequences, memory = smaller.adapter.example, heads.empty_memory(smaller.policy, 3)
    whole = output(smaller)
    with torch.no_grad():
        for time in range(sequences.shape[1]):
            one, memory = smaller.policy.network.step(sequences[:, time], memory)
            assert torch.allclose(one, whole[:, time], atol=1e-6)


def test_old_weight_norm_after_training() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2))
    module(torch.ones(1, 4)).sum().backward()
    agent = from_module(module, env="CartPole-v1", head="logits")
    smaller, _, _ = halved(agent)
    assert smaller.module()(torch.ones(1, 4)).shape == (1, 2)


class Parts(gym.Env[Any, Any]):
    """Observations are a dict, actions several choices."""

    observation_space = spaces.Dict(
        place=spaces.Discrete(3), image=spaces.Box(0, 255, (1, 4, 4), np.uint8), speed=spaces.Box(-1, 1, (2,))
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def __init__(self) -> None:
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), float(action[0]), self.time >= 5, False, {}


gym.register("PrunerlParts-v0", Parts)


class ReadsParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embedding = nn.Conv2d(1, 6, 3), nn.Embedding(3, 4)
        self.last = nn.Sequential(nn.Linear(6 * 4 + 4 + 2, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        image = torch.relu(self.conv(observations["image"] / 255.0)).flatten(1)
        return self.last(torch.cat([image, self.embedding(observations["place"]), observations["speed"]], 1))


def test_dict_observations_are_unpacked() -> None:
    space = Parts.observation_space
    agent = from_module(ReadsParts(), env="PrunerlParts-v0", head="logits", forward=lambda m, o: m(unpack(space, o)))
    assert agent.policy.head.sizes == (3, 2)
    space.seed(0)
    given = [space.sample() for _ in range(4)]
    packed = torch.as_tensor(np.stack([environments.pack(space, o) for o in given]))
    parts = unpack(space, packed)
    for name in space.spaces:
        assert np.array_equal(parts[name].numpy(), np.stack([o[name] for o in given]))
    smaller, groups, _ = halved(agent)
    assert {g.units for g in groups} >= {6, 8}
    assert heads.act(smaller.policy, packed.numpy()).shape == (4, 2)


@pytest.mark.parametrize("bare", [True, False])
def test_a_layer_is_left_out_of_a_stack(bare: bool) -> None:
    body = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    module = nn.ModuleDict({"q": nn.Sequential(*body if bare else body[:4]), "head": nn.Linear(5, 2)})
    module["target"] = copy.deepcopy(module["q"])
    agent = from_module(
        module,
        env="CartPole-v1",
        head="q_values",
        forward=lambda m, o: m["q"](o) if len(m["q"]) % 2 else m["head"](m["q"](o)),
        stacks=("q",),
        targets={"q": "target"},
    )
    tensors = dict(agent.state.tensors)
    for name in ("q", "target"):
        del tensors[f"{name}.0.weight"], tensors[f"{name}.0.bias"]
        tensors[f"{name}.2.weight"] = torch.randn(5, 4)
    tensors["target.2.weight"] = tensors["q.2.weight"]
    shallow = agent.with_state(prunerl.types.State(tensors))
    assert [type(part) for part in shallow.module()["q"]] == [nn.Linear, nn.ReLU, *([nn.Linear] if bare else [])]
    assert torch.equal(shallow.state.tensors["q.0.weight"], tensors["q.2.weight"])
    assert repr(shallow.module()["target"]) == repr(shallow.module()["q"])
    again = agent.with_state(shallow.state)
    assert torch.equal(output(again), output(shallow))


def test_a_width_written_in_forward_is_noticed_and_rebuild_mends_it() -> None:
    agent = from_module(Fixed(), env="CartPole-v1", head="logits")
    tensors = {n: t[:8] if n.startswith("first") else t for n, t in agent.state.tensors.items()}
    tensors["last.weight"] = tensors["last.weight"][:, :8]
    with pytest.raises(RemovalError, match=r"does not run at its new widths.*Give rebuild="):
        agent.with_state(prunerl.types.State(tensors))

    class Eight(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)))

    def rebuild(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        small = Eight()
        resize(small, shapes)
        return small

    mended = from_module(Fixed(), env="CartPole-v1", head="logits", rebuild=rebuild)
    assert output(mended.with_state(prunerl.types.State(tensors))).shape == (3, 2)


def test_a_module_that_computes_something_else_when_small_is_noticed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x))) / self.first.out_features

    agent = from_module(Scaled(), env="CartPole-v1", head="logits")
    with pytest.raises(RemovalError, match="computes something else at its new widths"):
        halved(agent)


@pytest.mark.parametrize("structure", ["units", "weights"])
def test_saved_is_loaded_again(tmp_path: Path, structure: str) -> None:
    module = ActorCritic(3, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    module.actor_mean(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    statistics = Normalizer(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]))
    agent = from_module(
        module,
        env=EnvSpec("Pendulum-v1", {"g": 9.0}),
        head="mean",
        forward=act,
        normalizer=statistics,
        optimizer=optimizer,
        stacks=("actor_mean",),
        std=[0.5],
    )
    smaller, _, _ = halved(agent, structure=structure)
    file = tmp_path / "small.safetensors"
    smaller.save(file)

    tensors = load_file(file)
    plain = ActorCritic(3, 1)
    resize(plain, {n: tuple(t.shape) for n, t in tensors.items()})
    plain.load_state_dict(tensors)
    assert torch.equal(plain.eval().actor_mean(smaller.adapter.example), output(smaller))

    fresh = ActorCritic(3, 1)
    again = load_module(file, fresh, forward=act, optimizer=torch.optim.Adam(fresh.parameters(), lr=1e-2))
    seen = observations(smaller)
    assert heads.act(again.policy, seen).tobytes() == heads.act(smaller.policy, seen).tobytes()
    assert again.env == smaller.env
    assert again.stacks == smaller.stacks
    assert again.policy.head.std is not None
    assert all(torch.equal(m, again.state.masks[n]) for n, m in smaller.state.masks.items())
    for name, entries in smaller.state.moments.items():
        assert all(torch.equal(m, again.state.moments[name][k]) for k, m in entries.items())
    first = file.read_bytes()
    again.save(file)
    assert file.read_bytes() == first


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    smaller, _, _ = halved(actor_critic())
    smaller.save(file)
    with pytest.raises(LoadError, match="which Linear does not have"):
        load_module(file, nn.Linear(4, 2))
    whole = file.read_bytes()
    for cut in range(0, len(whole), 97):
        file.write_bytes(whole[:cut])
        with pytest.raises(LoadError):
            module_file.read(file)
    generator = np.random.default_rng(0)
    for flip in range(500):
        bits = bytearray(whole)
        place = int(generator.integers(min(len(bits), 2500)))
        bits[place] ^= 1 << int(generator.integers(8))
        file.write_bytes(bytes(bits))
        with contextlib.suppress(PruneError):
            if flip % 50:
                module_file.read(file)
            else:
                load_module(file, ActorCritic(), forward=act)


def _half(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    return module


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not a module": (lambda: from_module(3, env="CartPole-v1", head="logits"), LoadError, "got a int"),  # type: ignore[arg-type]
    "unknown head": (
        lambda: from_module(nn.Linear(4, 2), env="CartPole-v1", head="logit"),  # type: ignore[arg-type]
        NameUnknownError,
        "Did you mean 'logits'",
    ),
    "head": (
        lambda: from_module(nn.Linear(4, 2), env="CartPole-v1", head="mean"),
        SpaceError,
        r"does not fit the actions of 'CartPole-v1'.*\['logits', 'q_values'\]",
    ),
    "width": (
        lambda: from_module(nn.Linear(4, 3), env="CartPole-v1", head="logits"),
        SpaceError,
        r"gives shape \(3, 3\) for 3 observations, but the head needs \(3, 2\)",
    ),
    "observations": (
        lambda: from_module(nn.Linear(5, 2), env="CartPole-v1", head="logits"),
        SpaceError,
        "does not take a batch of observations",
    ),
    "several outputs": (
        lambda: from_module(nn.Linear(4, 2), env="CartPole-v1", head="logits", forward=lambda m, o: (m(o), None)),  # type: ignore[arg-type, return-value]
        SpaceError,
        "gives a tuple, not a tensor.*forward=lambda",
    ),
    "device": (
        lambda: from_module(nn.Linear(4, 2, device="meta"), env="CartPole-v1", head="logits"),
        LoadError,
        r"device meta. Move the module first: module.cpu\(\)",
    ),
    "double": (
        lambda: from_module(nn.Linear(4, 2).double(), env="CartPole-v1", head="logits"),
        LoadError,
        r"module.float\(\)",
    ),
    "not finite": (
        lambda: from_module(_half(nn.Linear(4, 2)), env="CartPole-v1", head="logits"),
        LoadError,
        "'weight' holds numbers that are not finite",
    ),
    "target": (lambda: actor_critic(targets={"actor_mean": "critic"}), LoadError, "is not a copy of 'actor_mean'"),
    "no target": (lambda: actor_critic(targets={"actor": "critic"}), LoadError, "no tensor's name begins with 'actor"),
    "stack": (lambda: actor_critic(stacks=("actor",)), LoadError, r"Its Sequentials: \['critic', 'actor_mean'\]"),
    "no stack": (lambda: actor_critic(stacks=("critic.0",)), LoadError, "not a Sequential of Linear"),
    "optimizer": (
        lambda: actor_critic(optimizer=torch.optim.Adam(nn.Linear(2, 2).parameters())),
        LoadError,
        "does not have",
    ),
    "memory": (lambda: actor_critic(memory=lambda m: ((1, 4),)), LoadError, "both step= and memory="),
    "statistics": (
        lambda: actor_critic(normalizer=Normalizer(np.zeros(3), np.ones(3))),
        SpaceError,
        r"shape \(3,\), the environment's observations \(4,\)",
    ),
    "std": (
        lambda: from_module(nn.Linear(3, 1), env="Pendulum-v1", head="mean", std=[0.1, -1.0]),
        SpaceError,
        "must hold 1 positive",
    ),
    "no optimizer": (lambda: actor_critic().optimizer(ActorCritic()), LearnError, "0 were given"),
    "learn": (lambda: actor_critic().learn(100, seed=0), LearnError, "Leave 'finetune' out of repair"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_mend(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


class Upright(nn.Module):
    """Pushes the cart to where the pole falls; most units do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 2))
        with torch.no_grad():
            for parameter in self.actor.parameters():
                parameter.mul_(1e-4)
            self.actor[0].weight[0] = torch.tensor([0.0, 0.1, 1.0, 0.5])
            self.actor[2].weight[:, 0] = torch.tensor([-1.0, 1.0])


def steer(module: Any, observations: Tensor) -> Tensor:
    result: Tensor = module.actor(observations)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["units", "weights"])
def test_prune(tmp_path: Path, structure: str) -> None:
    torch.manual_seed(0)
    agent = from_module(Upright(), env="CartPole-v1", head="logits", forward=steer)
    run = tmp_path / "run"
    options: dict[str, Any] = {"structure": structure, "schedule": "one_shot", "sparsity": 0.7, "episodes": 10}
    result = prunerl.prune(agent, **options, repair=("least_squares",), compare=False, out=run)
    assert result.report.pruned.verdict.satisfied
    live: Any = result.agent.module()
    left = sum(int((p != 0).sum()) for p in live.actor.parameters())
    assert left <= 0.31 * sum(p.numel() for p in Upright().actor.parameters())
    again = load_module(run / "agent.safetensors", Upright(), forward=steer)
    assert torch.equal(output(again), output(result.agent))
    replayed = prunerl.prune(agent, **options, repair=("least_squares",), compare=False, out=run)
    assert torch.equal(output(replayed.agent), output(result.agent))
    with pytest.raises(LearnError, match="Leave 'finetune' out of repair"):
        prunerl.prune(agent, **options, repair=("finetune",), compare=False)
