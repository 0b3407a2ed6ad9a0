"""Compressions of real and of odd networks: codes say the values, zeros hold, training keeps what is held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl import from_module, heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.compressions import draft as drafts
from prunerl.compressions.codes import axis_of, codes_of
from prunerl.compressions.draft import Draft
from prunerl.deploy import interpret
from prunerl.deploy.lower import lower
from prunerl.deploy.program import matrices
from prunerl.errors import BudgetError
from prunerl.repair.distill import Lessons, answers, distill
from prunerl.trace import forward, trace
from prunerl.types import State
from prunerl.visits import trace_policy

Make = Callable[[Draft, Tensor], Draft]
MAKERS: dict[str, Make] = {
    "int8": lambda d, x: drafts.with_quantized(d, x, 8, inputs=True),
    "int4": lambda d, x: drafts.with_quantized(d, x, 4, inputs=False),
    "shared": lambda d, x: drafts.with_shared(d, x, 4),
    "low rank, int4": lambda d, x: drafts.with_quantized(drafts.with_low_rank(d, x, 0.5), x, 4, inputs=True),
    "low rank, shared": lambda d, x: drafts.with_shared(drafts.with_low_rank(d, x, 0.5), x, 3),
}


def sparse(agent: SB3Agent) -> SB3Agent:
    """Return the agent with 80 % of its hidden weights held at zero."""
    generator = torch.Generator().manual_seed(0)
    tensors, masks = dict(agent.state.tensors), {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and min(tensor.shape) > 8:
            masks[name] = torch.rand(tensor.shape, generator=generator) > 0.8
            tensors[name] = tensor * masks[name]
    return agent.with_state(State(tensors, agent.state.moments, masks))


def check_codes(draft: Draft) -> None:
    """Check that values are bit for bit what the codes say."""
    axes = {e.weight: axis_of(e) for e in draft.traced.layers}
    for name, coding in draft.codings.items():
        values = draft.tensors[name]
        codes = codes_of(values, coding, axis=axes[name])
        if coding.codebook is not None:
            assert len(coding.codebook) <= 2**coding.bits
            assert np.array_equal(coding.codebook[codes], values.numpy())
        else:
            assert coding.scale is not None
            assert np.abs(codes).max() <= 2 ** (coding.bits - 1) - 1
            scale = np.expand_dims(coding.scale, tuple(d for d in range(values.dim()) if d != axes[name]))
            assert np.array_equal(codes.astype(np.float32) * scale, values.numpy())


def trained(draft: Draft, x: Tensor, *, updates: int = 20) -> Draft:
    policy = draft.agent.policy
    wanted = answers(trace_policy(policy, x), draft.agent.state.tensors, x)
    lessons = Lessons(x, wanted, heads.q_scale(policy.head, wanted), len(x))
    [tensors] = distill(
        drafts.computed_by(draft),
        [draft.tensors],
        draft.masks,
        policy.head,
        lessons,
        updates=updates,
        learning_rate=1e-2,
        generator=torch.Generator().manual_seed(0),
        project=drafts.projection(draft),
    )
    return drafts.with_trained(draft, tensors)


@pytest.fixture(params=["ppo/CartPole-v1", "dqn/LunarLander-v2", "sac/Pendulum-v1"])
def started(
    request: pytest.FixtureRequest, load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> tuple[Draft, Tensor]:
    agent = load_agent(request.param)
    x = inputs(agent, 300)
    return drafts.draft_of(agent, trace_policy(agent.policy, x)), x


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_values_are_what_the_codes_say_before_and_after_training(started: tuple[Draft, Tensor], make: Make) -> None:
    first, x = started
    made = make(first, x)
    check_codes(made)
    after = trained(made, x)
    check_codes(after)
    assert any(not torch.equal(made.tensors[n], after.tensors[n]) for n in made.codings)
    assert drafts.bytes_of(made) < drafts.bytes_of(first)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_policy_has_the_values_and_the_deployed_one_rounds_inputs(
    started: tuple[Draft, Tensor], make: Make
) -> None:
    first, x = started
    made = make(first, x)
    policy, deployed = drafts.policy_of(made), drafts.deployed(made)
    own = policy.network.state_dict()
    assert all(torch.equal(own[n], t) for n, t in made.tensors.items())
    with torch.no_grad():
        torch.testing.assert_close(policy.network(x), forward(made.traced, made.tensors, x))
        torch.testing.assert_close(deployed.network(x), forward(drafts.computed_by(made), made.tensors, x))
        rounds = any(c.input_scale is not None for c in made.codings.values())
        assert torch.equal(policy.network(x), deployed.network(x)) != rounds


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_lowered_program_acts_as_the_deployed_policy(
    make: Make, load_agent: Callable[[str], SB3Agent], visit: Callable[..., np.ndarray]
) -> None:
    """Integers are summed exactly in the program and as floats by the policy: the rest is rounding."""
    agent = load_agent("sac/Pendulum-v1")
    seen = visit(agent, 200)
    x = heads.prepare(agent.policy, seen)
    made = make(drafts.draft_of(agent, trace_policy(agent.policy, x)), x)
    program = lower(drafts.policy_of(made), made.codings)
    actions, _ = interpret.run(program, seen)
    wanted = heads.act(drafts.deployed(made), seen)
    np.testing.assert_allclose(actions, wanted, rtol=1e-4, atol=1e-4)
    coded = [m for o in program.operations for m in matrices(o) if m.codes is not None]
    assert len(coded) == len(made.codings)


@pytest.mark.parametrize("make", list(MAKERS.values())[:3], ids=list(MAKERS)[:3])
def test_zeros_held_by_masks_stay_zeros(
    make: Make, load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = sparse(load_agent("ppo/CartPole-v1"))
    x = inputs(agent, 300)
    made = make(drafts.draft_of(agent, trace_policy(agent.policy, x)), x)
    assert made.masks
    for draft in (made, trained(made, x)):
        check_codes(draft)
        for name, mask in made.masks.items():
            assert bool((draft.tensors[name][~mask] == 0).all())
            assert bool((draft.tensors[name][mask] != 0).any())


def test_training_brings_a_coarse_network_nearer(started: tuple[Draft, Tensor]) -> None:
    first, x = started
    made = drafts.with_shared(first, x, 2)
    wanted = forward(first.traced, first.tensors, x)

    def gap(draft: Draft) -> float:
        output = forward(draft.traced, draft.tensors, x)
        head = draft.agent.policy.head
        return float(heads.divergence(head, wanted, output, scale=heads.q_scale(head, wanted)).mean())

    assert gap(trained(made, x, updates=300)) < 0.7 * gap(made)


class Pixels(nn.Module):
    """A convolution, one the other way round, and a linear layer, as of a small image policy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # for the layers' initial weights, which take no generator
        self.down, self.up = nn.Conv1d(1, 8, 2), nn.ConvTranspose1d(8, 12, 2)
        self.head = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.down(x.unsqueeze(1)))
        return self.head(torch.relu(self.up(hidden)).flatten(1))


@pytest.mark.parametrize("make", list(MAKERS.values())[:3], ids=list(MAKERS)[:3])
def test_convolutions_are_coded_by_output_channel(make: Make) -> None:
    agent = from_module(Pixels(), env="CartPole-v1", head="logits")
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    first = drafts.draft_of(agent, trace(agent.policy.network, x))
    made = make(first, x)
    check_codes(made)
    scale = made.codings["up.weight"].scale if "up.weight" in made.codings else None
    assert scale is None or scale.shape == (12,)
    assert trained(made, x).codings.keys() == made.codings.keys()


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # for the layers' initial weights, which take no generator
        self.lstm, self.head = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.lstm(x)[0])
        return output


def recurrent() -> tuple[Draft, Tensor]:
    def step(module: Remembering, x: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, (hidden, cell) = module.lstm(x.unsqueeze(1), (memory[0], memory[1]))
        return module.head(output[:, 0]), (hidden, cell)

    agent = from_module(
        Remembering(), env="CartPole-v1", head="logits", step=step, memory=lambda module: ((1, 16), (1, 16))
    )
    x = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))
    return drafts.draft_of(agent, trace_policy(agent.policy, x)), x


@pytest.mark.parametrize("kind", ["int8", "shared"])
def test_recurrent_layers_are_coded_and_step_with_the_coded_values(kind: str) -> None:
    first, x = recurrent()
    made = MAKERS[kind](first, x)
    check_codes(made)
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0"} <= set(made.codings)
    assert all(c.input_scale is None for c in made.codings.values())
    policy = drafts.deployed(made)
    memory = heads.empty_memory(policy, 8)
    with torch.no_grad():
        whole = policy.network(x)
        for t in range(x.shape[1]):
            output, memory = policy.network.step(x[:, t], memory)  # type: ignore[operator]
            torch.testing.assert_close(output, whole[:, t], rtol=1e-4, atol=1e-5)
        assert not torch.equal(whole, first.agent.policy.network(x))
    assert trained(made, x, updates=3).codings.keys() == made.codings.keys()


def test_a_recurrent_network_is_not_factorised() -> None:
    with pytest.raises(BudgetError, match="recurrent"):
        drafts.with_low_rank(*recurrent(), 0.5)


def test_nothing_to_compress_is_an_error(started: tuple[Draft, Tensor]) -> None:
    first, x = started
    coded = drafts.with_quantized(first, x, 8, inputs=False)
    with pytest.raises(BudgetError, match="Nothing to compress"):
        drafts.with_shared(coded, x, 4)
    narrow = replace(first, traced=replace(first.traced, layers=()))
    with pytest.raises(BudgetError, match="Nothing to factorise"):
        drafts.with_low_rank(narrow, x, 0.5)


def test_all_numbers_leave_every_layer_whole_and_say_so(started: tuple[Draft, Tensor]) -> None:
    first, x = started
    made = drafts.with_low_rank(first, x, 1.0)
    assert not made.factorized
    assert "all are whole" in made.notes[-1]


def test_too_small_a_budget_is_an_error(started: tuple[Draft, Tensor]) -> None:
    with pytest.raises(BudgetError, match="rank 1 keeps 0"):
        drafts.with_low_rank(*started, 0.001)
