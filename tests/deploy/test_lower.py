"""A program acts as the policy that it was lowered from, for every family of policies; what cannot be says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import test_architectures as architectures
import test_keras
import test_module
import test_sb3_table as table
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

import prunerl
from prunerl import environments, heads
from prunerl.agents.module import from_module
from prunerl.deploy import interpret
from prunerl.deploy.lower import lower
from prunerl.deploy.program import (
    ALLOWED,
    Activation,
    Affine,
    Choose,
    Coding,
    Conv,
    Embedding,
    Normalize,
    Operation,
    Program,
    Recurrent,
    Squash,
)
from prunerl.errors import LowerError
from prunerl.types import Head, Normalizer, Policy

COUNT = 1000
TOLERANCE = 1e-5
"""Of continuous actions, relative to the largest."""


def assert_acts_like(
    program: Program,
    policy: Policy,
    observations: np.ndarray,
    *,
    allowed: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Compare the actions, of a recurrent policy over four steps."""
    memory, remembered = heads.empty_memory(policy, len(observations)), None
    for _ in range(4 if policy.memory else 1):
        wanted, memory = heads.step(policy, observations, memory, allowed)
        got, remembered = interpret.run(program, observations, remembered, allowed)
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if policy.head.kind == "gaussian":
            scale = float(np.abs(wanted).max())
            assert float(np.abs(got - wanted).max()) <= tolerance * scale
        else:
            assert np.array_equal(got, wanted)
        observations = observations[::-1].copy()


def policy_of(network: nn.Module, shape: tuple[int, ...], **options: Any) -> Policy:
    """A policy whose action is the network's output as it is."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    with torch.no_grad():
        outputs = network(torch.zeros(1, *shape)).shape[1]
    return Policy(network, Head("gaussian", shape=(outputs,)), shape, **options)


def only(program: Program, kind: type[Any]) -> list[Any]:
    return [op for op in program.operations if isinstance(op, kind)]


def test_real_agents(real: Any, visit: Callable[..., np.ndarray]) -> None:
    observations = visit(real, COUNT)
    program = lower(real.policy, dtype=str(observations.dtype))
    assert_acts_like(program, real.policy, observations)
    assert program.observation_dtype == str(observations.dtype)


QUICK = (
    "ppo-gsde-half", "ppo-cnn", "ppo-dict", "a2c", "dqn", "sac-own", "td3", "ddpg", "trpo", "ars", "qrdqn", "tqc",
    "crossq", "ppo_mask", "ppo_lstm-two",
)  # fmt: skip
"""One of each algorithm, and of each kind of network."""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in table.CASES])
def test_every_algorithm_and_policy(name: str) -> None:
    agent = table.taken(name)
    observations = table.packed(agent, table.observed(agent, COUNT))
    assert_acts_like(lower(agent.policy, dtype=str(observations.dtype)), agent.policy, observations)
    if observations.dtype == np.uint8:  # images may come as floats as well
        assert_acts_like(lower(agent.policy), agent.policy, observations[:50].astype(np.float32))


@pytest.mark.parametrize("observes", ["discrete", "multi_discrete", "multi_binary"])
def test_observations_of_whole_numbers(observes: str) -> None:
    case = table.Case("ppo", observes)
    table.CASES[f"ppo-{observes}"] = case
    try:
        agent = table.taken(f"ppo-{observes}")
    finally:
        del table.CASES[f"ppo-{observes}"]
    observations = table.packed(agent, table.observed(agent, COUNT))
    for dtype in (str(observations.dtype), "float32"):
        program = lower(agent.policy, dtype=dtype)
        assert_acts_like(program, agent.policy, observations)


def test_masks_of_allowed_actions() -> None:
    agent = table.taken("ppo_mask")
    program = lower(agent.policy)
    observations = table.packed(agent, table.observed(agent, COUNT))
    allowed = np.random.default_rng(0).random((COUNT, 4)) < 0.5
    allowed[:, 0] |= ~allowed.any(1)
    assert program.allowed == 4
    assert_acts_like(program, agent.policy, observations, allowed=allowed)
    free = interpret.run(program, observations)[0]
    assert not np.array_equal(free, interpret.run(program, observations, None, allowed)[0])


def test_masks_of_bernoulli_and_multi_discrete_actions() -> None:
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((COUNT, 5)).astype(np.float32)
    heads_and_masks = (
        (Head("bernoulli", shape=(6,)), 12, [(i, i + 1) for i in range(0, 12, 2)]),
        (Head("categorical", sizes=(2, 4), shape=(2,)), 6, [(0, 1), (2, 3)]),
    )
    for head, width, needed in heads_and_masks:
        policy = Policy(nn.Linear(5, 6).requires_grad_(False), head, (5,), masked=True)
        program = lower(policy)
        allowed = generator.random((COUNT, width)) < 0.6
        for first, second in needed:  # one of each part is allowed
            allowed[:, first] |= ~allowed[:, second]
        assert program.allowed == width
        assert_acts_like(program, policy, observations, allowed=allowed)
        assert_acts_like(program, policy, observations)


@pytest.mark.parametrize("name", architectures.CASES)
def test_architectures(name: str) -> None:
    case = architectures.CASES[name]
    policy = policy_of(case.network, case.shape)
    observations = np.random.default_rng(0).standard_normal((COUNT, *case.shape)).astype(np.float32) * 2
    assert_acts_like(lower(policy), policy, observations)


class Functions(nn.Module):
    """All functions of single entries, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Callable[[Tensor], Tensor]] = [
            F.relu, torch.tanh, torch.sigmoid, F.elu, F.leaky_relu, F.gelu, F.silu, F.softplus, F.hardtanh, torch.exp,
            torch.abs, torch.neg, torch.square, F.softsign, F.mish, F.selu, F.relu6, F.hardsigmoid, F.hardswish,
            F.logsigmoid, F.tanhshrink, lambda x: F.gelu(x, approximate="tanh"), lambda x: F.elu(x, 0.5),
            lambda x: F.celu(x, 0.5), lambda x: F.softplus(x, 2.0, 3.0), lambda x: torch.log(x.abs() + 1),
            lambda x: torch.sqrt(x.abs()), lambda x: torch.rsqrt(x.abs() + 1), lambda x: 1 / (x.square() + 1),
            lambda x: (x.abs() + 1).reciprocal(), lambda x: x.clamp(-0.5, 0.7), lambda x: x.clamp(min=0.1),
            lambda x: x.clamp(max=0.1), lambda x: torch.maximum(x, -x / 2), lambda x: torch.minimum(x, x * 2),
            lambda x: 2.0 - x, lambda x: x**3, lambda x: x.abs() ** 0.5, lambda x: torch.add(x, x, alpha=0.3),
            lambda x: torch.where(torch.tensor([True, False, True]), x, 2 * x),
            lambda x: x.masked_fill(torch.tensor([True, False, True]), 3.0),
            lambda x: torch.full_like(x, 0.3) + x, lambda x: torch.addcmul(x, x, x), lambda x: F.threshold(x, -9, 0),
        ]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([function(x) for function in self.functions[:-1]], 1)


class Dimensions(nn.Module):
    """All that moves, joins, takes apart or runs over dimensions; observations of shape (2, 3, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        a, b = x.chunk(2, 1)
        parts = [
            flat, x.transpose(1, 2), x.permute(0, 3, 1, 2), x.mean((1, 2)), x.sum(-1), x.amax((2, 3)), x.amin(1),
            x.max(2)[0], x.min(3).values, x.max(3, keepdim=True)[0], x.var(1), x.std((1, 2)), x.var(3, unbiased=False),
            torch.logsumexp(x, 2), torch.logsumexp(x, (1, 3), keepdim=True), x.norm(dim=1), x.norm(1, 2),
            F.normalize(x, dim=1), a, b * a, torch.stack([a, b], 2), x[:, 0, 1:], x[:, :, ::2], x[:, -1, :, 1:3],
            x.unbind(1)[1], x.split([1, 2], 2)[1], x.narrow(3, 1, 2), torch.roll(x, 1, 2), torch.roll(flat, -2),
            a.expand(-1, 3, -1, -1), a.repeat(1, 2, 1, 2), x.softmax(1), x.log_softmax(-1), flat.softmax(0),
            x.unsqueeze(2).squeeze(2), torch.cat([x, x * 2], 0).sum(0, keepdim=True), x.mean(0, keepdim=True),
            F.pad(x, (1, 0, 2, 1)), F.pad(x, (-1, 0)), F.pad(x, (0, 1), value=2.0), x @ x.transpose(2, 3),
            torch.bmm(x[0], x[0].transpose(1, 2)), (x[0, 0] @ torch.ones(4)), torch.ones(3) @ x[0, 1],
            x.unflatten(3, (2, 2)), torch.ones(5, 3) @ x, flat.mean() * torch.ones(1, 1), x.movedim(1, 3),
        ]  # fmt: skip
        return torch.cat([part.reshape(1, -1) if x.shape[0] == 1 else part.flatten(1) for part in parts], 1)


def assert_computes(network: nn.Module, observations: np.ndarray, tolerance: float = TOLERANCE) -> Program:
    """Compare with the network, one observation at a time."""
    policy = policy_of(network, observations.shape[1:])
    program = lower(policy)
    got = interpret.run(program, observations)[0]
    wanted = np.concatenate([heads.act(policy, one[None]) for one in observations])
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return program


def test_every_function() -> None:
    assert_computes(Functions(), np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32) * 3)


def test_every_change_of_dimensions() -> None:
    assert_computes(Dimensions(), np.random.default_rng(0).standard_normal((20, 2, 3, 4)).astype(np.float32))


class Places(nn.Module):
    """Convolutions and pooling of every kind over images of 12 by 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.same = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.over = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=1)
        self.norms = nn.Sequential(nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True), nn.BatchNorm2d(6))
        self.line, self.cube = nn.Conv1d(6, 2, 4), nn.Conv3d(1, 2, (2, 3, 3))
        self.back = nn.ConvTranspose1d(2, 3, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.over(F.relu(self.same(F.relu(self.first(x)))))
        x = self.norms(x)
        line = self.back(self.line(x.flatten(2)))
        parts = [
            F.max_pool2d(x, 3, 2, padding=1), F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool2d(x, 3, 2, 1), F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (2, 3)),
            F.adaptive_max_pool2d(x, 1), F.max_pool1d(line, 3), F.avg_pool1d(line, 2), F.adaptive_avg_pool1d(line, 1),
            self.cube(x.unsqueeze(1)), F.avg_pool3d(x.unsqueeze(1), 2),
        ]  # fmt: skip
        return torch.cat([part.flatten(1) for part in parts], 1)


def test_every_convolution_and_pooling() -> None:
    torch.manual_seed(0)
    assert_computes(Places(), np.random.default_rng(0).standard_normal((20, 3, 12, 10)).astype(np.float32), 1e-4)


class Picture(table.toy_env.Toy):
    """Small images in colour, of which three actions are chosen."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.fails = 0


gym.register("LoweredPicture-v0", Picture)


@pytest.mark.parametrize("build", [test_keras.article, test_keras.image_policy, test_keras.actor_critic])
def test_keras_files(tmp_path: Path, build: Callable[[], Any]) -> None:
    model = build()
    model.save(tmp_path / "policy.keras")
    env = "CartPole-v1" if model.input_shape == (None, 4) else "LoweredPicture-v0"
    agent = prunerl.load(tmp_path / "policy.keras", env=env)
    space = environments.make(agent.env).observation_space
    space.seed(0)
    observations = np.stack([environments.pack(space, space.sample()) for _ in range(COUNT)])
    observations = np.clip(observations, -10, 255).astype(observations.dtype)
    program = lower(agent.policy, dtype=str(observations.dtype))
    assert_acts_like(program, agent.policy, observations)
    for layer in only(program, Affine):
        assert layer.weight.values.ndim == 2
        assert layer.bias is not None  # the product and the sum are one layer


def test_modules() -> None:
    for module in (test_module.Noisy(4, 2), test_module.Fixed()):
        agent = from_module(module, env="CartPole-v1", head="logits")
        observations = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
        assert_acts_like(lower(agent.policy), agent.policy, observations)


def test_a_recurrent_module() -> None:
    torch.manual_seed(0)
    agent = from_module(
        test_module.Remembering(),
        env="CartPole-v1",
        head="logits",
        step=test_module.Remembering.step,
        memory=lambda m: ((1, m.gru.hidden_size),),
    )
    observations = np.random.default_rng(0).standard_normal((COUNT, 4)).astype(np.float32)
    program = lower(agent.policy)
    assert_acts_like(program, agent.policy, observations)
    (layer,) = only(program, Recurrent)
    assert program.memory == {"memory_0_0": layer.following[0]}
    assert program.shapes["memory_0_0"] == (10,)


class Delay(nn.Module):
    """Acts by what it saw one and two steps ago: one part of the memory moves into the other."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def step(self, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = memory
        return first[0] + 10 * second[0], (x.unsqueeze(0), first)


def test_a_part_of_the_memory_never_is_another_part() -> None:
    policy = Policy(Delay().eval(), Head("gaussian", shape=(2,)), (2,), memory=((1, 2), (1, 2)))
    program = lower(policy)
    assert not set(program.memory) & set(program.memory.values())
    memory, actions = None, []
    for step in (1.0, 2.0, 3.0):
        action, memory = interpret.run(program, np.full((1, 2), step, np.float32), memory)
        actions.append(action[0, 0])
    assert actions == [0.0, 1.0, 12.0]


def test_layers_of_one_memory_are_values_of_their_own() -> None:
    program = lower(table.taken("ppo_lstm-two").policy)
    assert set(program.memory) == {"memory_0_0", "memory_0_1", "memory_1_0", "memory_1_1"}
    assert [op.kind for op in only(program, Recurrent)] == ["lstm", "lstm"]
    assert all(program.shapes[name] == (8,) for name in program.memory)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_normalised_observations(scale: float) -> None:
    generator = np.random.default_rng(0)
    normalizer = Normalizer(
        generator.standard_normal(6) * 3, scale * generator.uniform(0.1, 2, 6), 1e-8, 5.0, np.arange(6) != 2
    )
    policy = policy_of(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), (6,), normalizer=normalizer)
    observations = (generator.standard_normal((COUNT, 6)) * 4).astype(np.float32)
    program = lower(policy)
    (normalize,) = only(program, Normalize)
    np.testing.assert_allclose(normalize.factor, 1 / np.sqrt(normalizer.var + 1e-8), rtol=1e-6)
    assert_acts_like(program, policy, observations)
    assert_acts_like(program, policy, observations.astype(np.float64))


def test_a_small_policy_is_these_operations() -> None:
    first, last = nn.Linear(3, 2), nn.Linear(2, 2)
    network = nn.Sequential(first, nn.Tanh(), last).requires_grad_(False)
    program = lower(Policy(network, Head("q_values", sizes=(2,)), (3,)))
    assert [type(op) for op in program.operations] == [Affine, Activation, Affine, Choose]
    affine = program.operations[0]
    assert isinstance(affine, Affine)
    np.testing.assert_array_equal(affine.weight.values, first.weight.numpy())
    assert (program.action_dtype, program.action_shape, program.allowed) == ("int64", (), 0)
    bounds = np.array([[-1.0, -2.0]]), np.array([[3.0, 4.0]])
    head = Head("gaussian", low=bounds[0], high=bounds[1], squashed=True, shape=(1, 2))
    squash = lower(Policy(network, head, (3,))).operations[-1]
    assert isinstance(squash, Squash)
    assert (squash.low.tolist(), squash.high.tolist()) == ([-1, -2], [3, 4])


def quantized(weight: Tensor, bits: int = 8, input_scale: float | None = None) -> Coding:
    """Round a weight to codes and return how it is stored."""
    most = 2 ** (bits - 1) - 1
    scale = (weight.flatten(1).abs().amax(1) / most).numpy()
    by_output = torch.from_numpy(scale).reshape(-1, *[1] * (weight.dim() - 1))
    weight.copy_(torch.round(weight / by_output.clamp_min(1e-9)) * by_output)
    return Coding("quantized", bits, scale=scale, input_scale=input_scale)


def test_codes_of_every_layer() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 2))
    network.requires_grad_(False)
    network[2].weight[0] = 0  # whose scale is 0
    codings = {
        "0.weight": quantized(network[0].weight, 4),
        "2.weight": quantized(network[2].weight, 8, input_scale=0.05),
        "4.weight": Coding("shared", 2, codebook=np.array([0.5, 0.0, -0.25, 1.5], np.float32)),
    }
    network[4].weight.copy_(torch.tensor([0.5, 0.0, -0.25, 1.5])[torch.randint(0, 4, (2, 6))])
    program = lower(policy_of(network, (2, 4)), codings)
    conv, middle, last = (op for op in program.operations if isinstance(op, Conv | Affine))
    assert [op.weight.bits for op in (conv, middle, last)] == [4, 8, 2]
    assert [op.input_scale for op in (conv, middle, last)] == [None, 0.05, None]
    for op in (conv, middle):
        codes, scale = op.weight.codes, op.weight.scale
        assert codes.dtype == np.int8
        assert np.abs(codes).max() == 2 ** (op.weight.bits - 1) - 1
        np.testing.assert_array_equal(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)), op.weight.values)
    np.testing.assert_array_equal(last.weight.codebook[last.weight.codes], network[4].weight.numpy())


def test_codes_of_a_weight_that_is_turned_over_masked_or_shared() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4))
            self.again = self.kernel
            self.register_buffer("mask", torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(x, self.kernel) + F.linear(x, self.kernel * self.mask)

    network = Turned().requires_grad_(False)
    book = np.array([-1.0, 0.0, 2.0], np.float32)
    network.kernel.copy_(torch.from_numpy(book)[torch.randint(0, 3, (4, 4))])
    program = lower(policy_of(network, (4,)), {"again": Coding("shared", 2, codebook=book)})
    first, second = (op.weight for op in only(program, Affine))
    np.testing.assert_array_equal(first.values, network.kernel.numpy().T)
    np.testing.assert_array_equal(second.values, network.kernel.numpy())
    for weight in (first, second):
        np.testing.assert_array_equal(book[weight.codes], weight.values)


def test_a_weight_that_is_used_twice_is_stored_once() -> None:
    program = lower(policy_of(architectures.CASES["shared weight"].network, (20,)))
    _, a, b, _ = only(program, Affine)
    assert a.weight is b.weight
    steps = only(lower(policy_of(architectures.CASES["RNN"].network, (20,))), Recurrent)
    assert len(steps) == 5
    assert len({id(step.inner) for step in steps}) == 1


def test_a_table_is_picked_from_by_numbers_whose_fractions_are_cut_off() -> None:
    policy = policy_of(architectures.CASES["table"].network, (20,))
    program = lower(policy)
    (table_of,) = only(program, Embedding)
    observations = np.full((1, 20), 2.9, np.float32)
    picked = interpret.values(program, observations)[table_of.result]
    np.testing.assert_array_equal(picked[0, 0], table_of.table.values[2])


class Odd(nn.Module):
    """A linear layer, and then something."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.function = nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.body(x))


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[misc]
        return x[:, :2] + self.calls


def not_finite() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 2))
    nn.init.constant_(network[0].bias, float("nan"))
    return network


REFUSED: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "an operator": (lambda: Odd(torch.sin), r"aten\.sin\.default.*no such operation"),
    "a condition": (lambda: Odd(lambda y: torch.where(y > 0, y, 2 * y)), r"aten\.gt.*no such operation"),
    "rounding": (lambda: Odd(lambda y: torch.div(y, 2, rounding_mode="floor")), "no such operation|rounds a quotient"),
    "fractions": (lambda: Odd(lambda y: y.long().float()), "whole numbers that were cut out of fractions"),
    "places": (lambda: Odd(lambda y: y.max(1, keepdim=True)[1].float() + y), "places of the largest entries"),
    "noise": (lambda: Odd(lambda y: y + torch.randn(2)), "draws at random"),
    "half precision": (lambda: Odd(lambda y: y.half().float()), "float16"),
    "a shape": (lambda: Odd(lambda y: y.unsqueeze(2)), r"shape \(1, 2, 1\) for one observation"),
    "control flow": (lambda: Odd(lambda y: y if y.sum() > 0 else -y), "torch.export cannot read Odd"),
    "a padding": (lambda: Odd(lambda y: F.pad(y, (1, 1), mode="reflect")), "no such operation|pads by"),
    "a buffer": (Counting, "changes 'calls' while it acts"),
    "no number": (not_finite, "'0.bias' holds numbers that are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_does_not_have_is_refused_by_name(name: str) -> None:
    build, why = REFUSED[name]
    network = build().eval().requires_grad_(False)
    policy = Policy(network, Head("gaussian", shape=(2,)), (4,))
    with pytest.raises(LowerError, match=why):
        lower(policy)


def test_the_layer_is_named() -> None:
    network = nn.Sequential(nn.Linear(4, 2), Odd(torch.sin), nn.Linear(2, 2)).eval()
    network[1].body = nn.Linear(2, 2)
    with pytest.raises(LowerError, match=r"aten\.sin\.default in layer '1'"):
        lower(policy_of(network, (4,)))


def test_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    with pytest.raises(LowerError, match=r"evaluation mode"):
        lower(Policy(network, Head("gaussian", shape=(2,)), (4,)))
    assert lower(policy_of(network, (4,))).operations


def linear_codings(coding: Coding, name: str = "0.weight", last: nn.Module | None = None) -> Callable[[], Program]:
    network = nn.Sequential(nn.Linear(4, 2), *([] if last is None else [last])).requires_grad_(False)
    network[0].weight.copy_(torch.tensor([[1.0, 0.5, 0.0, -1.0], [2.0, 1.0, 0.0, 0.25]]))
    return lambda: lower(policy_of(network, (4,)), {name: coding})


GRID = np.array([0.5, 0.25], np.float32)
WRONG_CODES: Mapping[str, tuple[Callable[[], Program], str]] = {
    "too large": (linear_codings(Coding("quantized", 4, scale=GRID)), r"entry \(1, 0\) is .*2\.0.*within ±7"),
    "off the grid": (linear_codings(Coding("quantized", 8, scale=GRID * 0.7)), r"entry \(0, 0\)"),
    "shape of scale": (linear_codings(Coding("quantized", 8, scale=np.ones(4, np.float32))), "one scale for each"),
    "no scale": (linear_codings(Coding("quantized", 8)), "one scale for each output"),
    "codebook": (linear_codings(Coding("shared", 2, codebook=np.ones(2, np.float32))), "not in its codebook"),
    "codebook's length": (linear_codings(Coding("shared", 1, codebook=np.ones(3, np.float32))), "1 to 2 entries"),
    "name": (linear_codings(Coding("quantized", 8, scale=GRID), "0.wait"), "no parameter"),
    "a bias": (linear_codings(Coding("quantized", 8, scale=GRID), "0.bias"), "no layer's weight"),
}


@pytest.mark.parametrize("name", WRONG_CODES)
def test_codes_that_do_not_say_the_weight_are_refused(name: str) -> None:
    build, why = WRONG_CODES[name]
    with pytest.raises(LowerError, match=why):
        build()
    assert isinstance(linear_codings(Coding("quantized", 8, scale=GRID))(), Program)


def test_codes_of_a_computed_weight_are_refused() -> None:
    network = copy.deepcopy(architectures.CASES["weight norm"].network)
    with torch.no_grad():
        network.get_parameter("0.parametrizations.weight.original0").mul_(2)
    name = next(n for n in network.state_dict() if n.endswith("original1"))
    scale = np.ones(len(network.state_dict()[name]), np.float32)
    with pytest.raises(LowerError, match=f"computed from '{name}'"):
        lower(policy_of(network, (20,)), {name: Coding("quantized", 8, scale=scale)})


def test_an_unknown_type_of_observations_is_refused() -> None:
    with pytest.raises(LowerError, match="'complex64' cannot be lowered"):
        lower(policy_of(nn.Linear(4, 2), (4,)), dtype="complex64")
    assert lower(policy_of(nn.Linear(4, 2), (4,)), dtype="float64").observation_dtype == "float64"


def test_every_value_is_made_once_and_before_it_is_read() -> None:
    from prunerl.deploy.program import OBSERVATION, makes, reads

    for name in ("attention", "both directions", "LSTM by hand", "GLU", "branches"):
        case = architectures.CASES[name]
        program = lower(policy_of(case.network, case.shape))
        there = {OBSERVATION, ALLOWED, *program.memory}
        operation: Operation
        for operation in program.operations:
            assert set(reads(operation)) <= there
            assert not set(makes(operation)) & there
            there.update(makes(operation))
        computed = interpret.values(program, np.zeros((3, *case.shape), np.float32))
        assert {n: v.shape[1:] for n, v in computed.items()} == dict(program.shapes)
