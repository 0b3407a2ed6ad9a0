from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_sb3_table as table
import torch

from prunerl.agents.sb3 import SB3Agent
from prunerl.deploy.agreement import agreement
from prunerl.deploy.export import export, program_of
from prunerl.deploy.formats import FORMATS, Ask
from prunerl.deploy.play import Visit, agent_player, play
from prunerl.deploy.program import Program, Recurrent
from prunerl.deploy.tensors import load_program
from prunerl.errors import ExportError

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

FAMILIES = (
    "ppo-cnn", "a2c", "a2c-cnn-colour", "ppo-dict", "ppo_mask", "ppo_mask-cnn", "ppo_lstm", "ppo_lstm-two",
    "ppo_lstm-cnn", "sac-fixed", "td3-cnn", "crossq", "qrdqn", "ars-discrete",
)  # fmt: skip
SLOW = ("c", "h", "pt2")
"""Formats that are slow to write or to read back: C is compiled."""

REAL = ("ppo/CartPole-v1", "dqn/MountainCar-v0", "sac/Pendulum-v1", "ppo/Hopper-v3", "ddpg/Pendulum-v1")


@functools.cache
def of_family(name: str) -> tuple[SB3Agent, Program, tuple[Visit, ...]]:
    return visited(table.taken(name), range(12))


def visited(agent: SB3Agent, seeds: range) -> tuple[SB3Agent, Program, tuple[Visit, ...]]:
    played = play(agent_player(agent.policy), agent.env, seeds, masked=agent.policy.masked, keep=300)
    return agent, program_of(agent), played.visits


def assert_agrees(format: str, made: tuple[SB3Agent, Program, tuple[Visit, ...]], folder: Path) -> None:
    agent, program, visits = made
    ask, path = Ask("policy", 21 if format == "onnx" else None), folder / f"policy.{format}"
    path.write_bytes(FORMATS[format].write(program, ask))
    found = agreement(FORMATS[format].player(path, program, ask), program, agent.policy, visits)
    assert found.observations == len(visits) >= 100
    assert found.holds, found
    assert found.ties <= 1


@pytest.mark.parametrize("format", [f for f in FORMATS if f not in SLOW])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_format_acts_as_agents_of_each_family(name: str, format: str, tmp_path: Path) -> None:
    assert_agrees(format, of_family(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", SLOW)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_formats_act_as_agents_of_each_family(name: str, format: str, tmp_path: Path) -> None:
    assert_agrees(format, of_family(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_every_format_acts_as_real_agents(name: str, tmp_path: Path, load_agent: Callable[[str], SB3Agent]) -> None:
    made = visited(load_agent(name), range(3))
    for format in FORMATS:
        assert_agrees(format, made, tmp_path)


def test_families_use_what_they_are_here_for() -> None:
    assert of_family("a2c")[1].action_shape == (3,)
    assert of_family("ppo-cnn")[1].observation_dtype == "uint8"
    assert of_family("ppo_mask")[1].allowed == 4
    assert any(isinstance(o, Recurrent) for o in of_family("ppo_lstm")[1].operations)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_writes_a_file_and_its_figures(
    format: str, tmp_path: Path, load_agent: Callable[[str], SB3Agent]
) -> None:
    path = tmp_path / f"policy.{format}"
    exported = export(load_agent("ppo/CartPole-v1"), path, check_episodes=2)
    data = path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]
    assert (exported.bytes, exported.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert exported.proof.agreement.equal == exported.proof.agreement.observations == 1000
    assert exported.proof.verdict is not None
    assert exported.proof.verdict.interval == (0.0, 0.0)
    assert exported.proof.verdict.seeds[1] == 2
    told = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert told["sha256"] == exported.sha256
    assert told["path"] == path.name
    assert told["opset"] == (21 if format == "onnx" else None)
    assert told["proof"]["agreement"]["observations"] == 1000
    assert "actions equal in 1,000 of 1,000 visited states" in str(exported)
    assert f"{len(data):,} bytes" in str(exported)


def test_a_safetensors_file_holds_the_program(tmp_path: Path, load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    export(agent, tmp_path / "policy.safetensors", check_episodes=2)
    loaded = load_program(tmp_path / "policy.safetensors")
    assert [type(o) for o in loaded.operations] == [type(o) for o in program_of(agent).operations]


class Wrong:
    """An agent whose file is of another network."""

    def __init__(self, agent: SB3Agent, deployed: Any) -> None:
        self.policy, self.deployed, self.env, self.algorithm = agent.policy, deployed, agent.env, agent.algorithm


@pytest.mark.parametrize("name", ["ppo/CartPole-v1", "sac/Pendulum-v1"])
def test_a_file_that_does_not_act_as_the_agent_is_not_written(
    name: str, tmp_path: Path, load_agent: Callable[[str], SB3Agent]
) -> None:
    agent = load_agent(name)
    tensors = dict(agent.state.tensors)
    weight = next(n for n, p in agent.policy.network.named_parameters() if p.ndim == 2)
    tensors[weight] = tensors[weight] + 0.3 * torch.randn(tensors[weight].shape, generator=torch.manual_seed(0))
    other = agent.with_state(replace(agent.state, tensors=tensors)).policy
    with pytest.raises(ExportError, match=r"does not act as the agent.*actions equal in [\d,]+ of [\d,]+") as caught:
        export(Wrong(agent, other), tmp_path / "policy.safetensors", check_episodes=2)
    assert "return" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, load_agent: Callable[[str], SB3Agent]) -> None:
    agent = load_agent("ppo/CartPole-v1")
    weight = next(n for n, p in agent.policy.network.named_parameters() if p.ndim == 2)
    tensors = {n: torch.full_like(t, torch.nan) if n == weight else t for n, t in agent.state.tensors.items()}
    bad = agent.with_state(replace(agent.state, tensors=tensors))
    with pytest.raises(ValueError, match="not finite"):
        export(bad, tmp_path / "policy.onnx", check_episodes=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file", "options", "match"), [
    ("policy.doc", {}, r"no format 'doc'.*\.c, \.h, \.onnx, \.pt2, \.tflite, \.safetensors"),
    ("policy", {}, "no format ''"),
    ("policy.bin", {"format": "exe"}, "no format 'exe'"),
    ("policy.pt2", {"opset": 17}, "opset=17 is for ONNX files"),
    ("policy.onnx", {"opset": 3}, "opset 3 cannot be written"),
    ("policy.onnx", {"check_episodes": 1}, "check_episodes=1 are too few"),
    ("none/policy.onnx", {}, "There is no folder"),
    ("there.onnx", {}, "There is something at .* already"),
])  # fmt: skip
def test_what_cannot_be_done_says_so(
    file: str, options: dict[str, Any], match: str, tmp_path: Path, load_agent: Callable[[str], SB3Agent]
) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(ExportError, match=match):
        export(load_agent("ppo/CartPole-v1"), tmp_path / file, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_format_without_its_library_names_the_extra(
    tmp_path: Path, load_agent: Callable[[str], SB3Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    for suffix, extra in (("onnx", "onnx"), ("tflite", "tflite")):
        with pytest.raises(ExportError, match=rf"pip install 'prunerl\[{extra}\]'"):
            export(load_agent("ppo/CartPole-v1"), tmp_path / f"policy.{suffix}")


def test_an_existing_file_is_written_over_by_force(tmp_path: Path, load_agent: Callable[[str], SB3Agent]) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    exported = export(load_agent("ppo/CartPole-v1"), path, format="safetensors", check_episodes=2, force=True)
    assert exported.bytes == path.stat().st_size > 1000
    assert np.isfinite(exported.proof.returns)
