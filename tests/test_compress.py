"""Compressions of real agents are judged on seeds that are apart, repaired, taken back where they fail, and saved."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunerl import heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.compress import compress
from prunerl.compressions.draft import Draft
from prunerl.compressions.repair import Repaired
from prunerl.deploy import interpret
from prunerl.deploy.tensors import load_program
from prunerl.errors import BudgetError, NameUnknownError, SpaceError
from prunerl.types import EnvSpec, Verdict

module = importlib.import_module("prunerl.compress")  # the package's attribute of this name is the function
Load = Callable[[str], SB3Agent]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"quantize": "int8"}, 0.31),
        ({"quantize": "int4"}, 0.18),
        ({"share": 4}, 0.16),
        ({"low_rank": 0.5}, 0.5),
        ({"low_rank": 0.5, "quantize": "int4", "inputs": True}, 0.12),
        ({"low_rank": 0.5, "share": 4}, 0.12),
    ],
    ids=str,
)
def test_a_ppo_agent_is_compressed_and_confirmed(options: dict[str, Any], most: float, load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")
    made = compress(agent, episodes=10, **options)
    reference, row = made.rows
    assert made.satisfied
    assert all(step.kept for step in made.stages)
    assert len(made.stages) == len(options) - ("inputs" in options)
    assert reference.bytes == 4 * reference.parameters == 18440
    assert row.bytes <= most * reference.bytes
    assert row.verdict.dense == reference.verdict.pruned
    assert row.name == "compressed"
    assert "not worse" in str(made)
    assert set(made.agent.codings) <= {n for n, _ in made.agent.policy.network.named_parameters()}


@pytest.mark.slow
def test_a_dqn_agent_is_compressed_and_confirmed(load_agent: Load) -> None:
    made = compress(load_agent("dqn/CartPole-v1"), quantize="int8", share=None, episodes=10)
    assert made.satisfied
    assert made.rows[-1].bytes < 0.27 * made.rows[0].bytes


def test_selection_and_confirmation_share_no_seed_with_each_other_or_with_pruning(load_agent: Load) -> None:
    made = compress(load_agent("ppo/CartPole-v1"), share=4, episodes=10, seed=3)
    chosen = {seed for step in made.stages for s in step.stages for seed in seeds_of(s.verdict)}
    confirmed = seeds_of(made.rows[-1].verdict)
    assert not chosen & confirmed
    assert min(confirmed) == 3 * 10_000_000 + 2_000_000 + 500_000


def seeds_of(verdict: Verdict) -> set[int]:
    first, count = verdict.seeds
    return set(range(first, first + count))


def test_equal_seeds_give_equal_results_and_leave_the_given_agent_as_it_was(load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")
    before = {n: t.clone() for n, t in agent.state.tensors.items()}
    first, second = (compress(agent, low_rank=0.4, share=3, episodes=10) for _ in range(2))
    one, other = (r.agent.policy.network.state_dict() for r in (first, second))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert first.rows == second.rows
    assert all(torch.equal(t, before[n]) for n, t in agent.state.tensors.items())


@pytest.mark.slow
def test_what_fails_is_repaired(load_agent: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that pushes one way only drops the pole; distillation brings the balance back, with shared weights."""
    agent = load_agent("ppo/CartPole-v1")
    spoil(monkeypatch)
    made = compress(agent, share=3, episodes=10)
    [step] = made.stages
    assert [s.name for s in step.stages] == ["as made", "distilled"]
    assert [s.verdict.satisfied for s in step.stages] == [False, True]
    assert step.stages[1].divergence < step.stages[0].divergence
    assert step.stages[1].env_steps > 0
    assert step.kept
    assert made.satisfied
    codebook = made.agent.codings["mlp_extractor.policy_net.2.weight"].codebook
    assert codebook is not None
    assert set(np.unique(made.agent.policy.network.state_dict()["mlp_extractor.policy_net.2.weight"])) <= set(codebook)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every draft push one way only, by its output layer's bias."""
    original = module._judged

    def judged(run: Any, name: str, draft: Draft, *others: Any) -> Any:
        tensors = {**draft.tensors, "action_net.bias": torch.tensor([50.0, -50.0])}
        return original(run, name, replace(draft, tensors=tensors), *others)

    monkeypatch.setattr(module, "_judged", judged)


def test_what_fails_is_taken_back_and_said(load_agent: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = load_agent("ppo/CartPole-v1")
    spoil(monkeypatch)
    made = compress(agent, share=3, episodes=10, repair=False)
    [step] = made.stages
    assert [s.name for s in step.stages] == ["as made"]
    assert not step.kept
    assert made.rows[-1].name == "not compressed"
    assert made.agent.codings == {}
    assert made.rows[-1].bytes == made.rows[0].bytes
    assert "taken back" in str(made)
    own = made.agent.policy.network.state_dict()
    assert all(torch.equal(t, agent.state.tensors[n]) for n, t in own.items() if n in agent.state.tensors)


def test_what_the_confirmation_refuses_is_taken_back_on_other_seeds(
    load_agent: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The selection is made to pass an agent that pushes one way only; the confirmation plays it on fresh seeds."""
    agent = load_agent("ppo/CartPole-v1")
    spoil(monkeypatch)
    real = module.judge

    def lenient(yard: Any, policy: Any) -> tuple[Verdict, int]:
        verdict, steps = real(yard, policy)
        return replace(verdict, satisfied=True), steps

    monkeypatch.setattr(module, "judge", lenient)
    made = compress(agent, share=3, episodes=10)
    [step] = made.stages
    assert step.stages[0].verdict.satisfied
    assert not step.kept
    assert step.refused is not None
    assert not step.refused.satisfied
    assert "by the confirmation" in str(step)
    assert made.rows[-1].name == "not compressed"
    assert not seeds_of(step.refused) & seeds_of(made.rows[-1].verdict)


@pytest.mark.slow
def test_auto_halves_the_numbers_as_long_as_the_agent_passes(load_agent: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def unrepaired(draft: Draft, reference: Any, visited: Any, training: Any, generator: Any) -> Repaired:
        return Repaired(draft, module.judge(reference.yard, module.deployed(draft))[0], 0, visited)

    monkeypatch.setattr(module, "repaired", unrepaired)
    made = compress(load_agent("ppo/CartPole-v1"), low_rank="auto", episodes=10)
    assert [s.name for s in made.stages] == [f"low rank {0.5 ** (i + 1):g}" for i in range(len(made.stages))]
    assert all(s.kept for s in made.stages[:-1])
    kept = [s for s in made.stages if s.kept]
    assert kept
    assert made.rows[-1].parameters == kept[-1].parameters
    assert all(s.parameters <= 0.5 ** (i + 1) * 4610 for i, s in enumerate(made.stages))


def test_a_pruned_agent_is_measured_against_its_reference_and_keeps_its_zeros(load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")
    name = "mlp_extractor.policy_net.2.weight"
    mask = agent.state.tensors[name].abs() > 0.02
    pruned = agent.with_state(
        replace(
            agent.state, tensors={**agent.state.tensors, name: agent.state.tensors[name] * mask}, masks={name: mask}
        )
    )
    made = compress(pruned, quantize="int4", reference=agent, episodes=10)
    assert [r.name for r in made.rows] == ["reference", "given", "compressed"]
    assert made.satisfied
    assert bool((made.agent.policy.network.state_dict()[name][~mask] == 0).all())
    assert 0.02 < float((~mask).float().mean()) < 0.98


def test_a_saved_agent_acts_the_same_in_fewer_bytes(
    load_agent: Load, visit: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    agent = load_agent("ppo/CartPole-v1")
    made = compress(agent, quantize="int4", inputs=True, episodes=10, repair=False)
    made.agent.save(tmp_path / "small.safetensors")
    program = load_program(tmp_path / "small.safetensors")
    seen = visit(agent, 100)
    actions, _ = interpret.run(program, seen)
    assert np.mean(actions == heads.act(made.agent.deployed, seen)) >= 0.99
    size = (tmp_path / "small.safetensors").stat().st_size
    assert made.rows[-1].bytes < size < made.rows[-1].bytes + 6000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "Nothing to compress by"),
        ({"low_rank": 0.0}, r"low_rank must be in \(0, 1\], got 0"),
        ({"low_rank": 1.5}, r"low_rank must be in \(0, 1\], got 1.5"),
        ({"share": 1}, "share must be from 2 to 8 bits, got 1"),
        ({"share": 9}, "share must be from 2 to 8 bits, got 9"),
        ({"share": 4, "quantize": "int8"}, "cannot both share values and be quantised"),
        ({"share": 4, "tolerance": 0.0}, "tolerance must be above 0"),
        ({"share": 4, "episodes": 5}, "episodes must be at least 10"),
    ],
)
def test_amounts_out_of_range_are_errors(options: dict[str, Any], said: str, load_agent: Load) -> None:
    with pytest.raises(BudgetError, match=said):
        compress(load_agent("ppo/CartPole-v1"), **options)


@pytest.mark.parametrize("options", [{"quantize": "int3"}, {"low_rank": "automatic"}], ids=str)
def test_unknown_names_are_errors(options: dict[str, Any], load_agent: Load) -> None:
    with pytest.raises(NameUnknownError):
        compress(load_agent("ppo/CartPole-v1"), **options)


def test_a_reference_in_another_environment_is_an_error(load_agent: Load) -> None:
    agent = load_agent("ppo/CartPole-v1")
    other = replace(agent, env=EnvSpec("CartPole-v0"))
    with pytest.raises(SpaceError, match="Give one of the same"):
        compress(agent, share=4, reference=other)
