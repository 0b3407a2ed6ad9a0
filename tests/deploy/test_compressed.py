"""Pruned, factorised and coded one after another: each format holds what was judged, in the bytes that were counted."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prunerl.agents.sb3 import SB3Agent
from prunerl.compress import compress
from prunerl.compressions.result import CompressResult
from prunerl.deploy.export import export
from prunerl.deploy.formats import FORMATS
from prunerl.remove import remove
from prunerl.trace import unit_groups
from prunerl.types import Agent
from prunerl.visits import trace_policy

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

FILLED = 3 * 48
"""Rows of int8 are filled up to whole words: 13 columns of 48 rows to 16."""

GRAPH = {"c": 32 + FILLED, "h": 32 + FILLED, "onnx": 3000, "safetensors": 4000, "tflite": 8000, "pt2": 60_000}
"""Bytes that a file may hold beside the tensors; of C its constants are counted, not its text."""

SMALLER = 150
"""Bytes that a file may lack: units that do nothing are not written, nor are scales that nothing multiplies by."""

CODED: dict[str, dict[str, Any]] = {"int8": {"quantize": "int8"}, "int4": {"quantize": "int4"}, "shared": {"share": 4}}


@pytest.fixture(scope="module")
def small(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> Callable[[str], tuple[Agent, CompressResult]]:
    """From a coding to an agent without a quarter of its units, and what compressing it gave."""
    agent = load_agent("ppo/CartPole-v1")
    seen = inputs(agent)
    traced = trace_policy(agent.policy, seen)
    groups = unit_groups(traced, agent.state.tensors)
    decision = {}
    for group in groups:
        first = group.slices[0]
        norms = agent.state.tensors[first.tensor].movedim(first.dim, 0).flatten(1).norm(dim=1)
        decision[group.name] = norms.argsort().argsort() >= group.units // 4
    pruned = agent.with_state(remove(traced, agent.state, groups, decision, ties=agent.ties, observations=seen))

    @functools.cache
    def made(coded: str) -> tuple[Agent, CompressResult]:
        return pruned, compress(pruned, low_rank=0.6, reference=agent, episodes=10, **CODED[coded])

    return made


@pytest.mark.slow
@pytest.mark.parametrize("coded", CODED)
def test_compressions_compose(coded: str, small: Callable[[str], tuple[Agent, CompressResult]]) -> None:
    _, made = small(coded)
    assert [row.name for row in made.rows] == ["reference", "given", "compressed"]
    assert [step.kept for step in made.stages] == [True, True]
    assert made.satisfied
    reference, given, row = made.rows
    assert reference.bytes > given.bytes > made.stages[0].bytes > made.stages[1].bytes == row.bytes
    assert any("left" in name for name in made.agent.codings)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("coded", CODED)
def test_a_file_holds_as_many_bytes_as_were_counted(
    coded: str, format: str, tmp_path: Path, small: Callable[[str], tuple[Agent, CompressResult]]
) -> None:
    _, made = small(coded)
    path = tmp_path / f"policy.{format}"
    exported = export(made.agent, path, check_episodes=2)
    assert exported.proof.holds
    assert exported.proof.agreement.equal >= exported.proof.agreement.observations - 1 >= 999
    size = exported.bytes
    if format in ("c", "h"):
        found = re.search(r"Flash: ([\d,]+) bytes of constants", path.read_text())
        assert found is not None
        size = int(found[1].replace(",", ""))
    assert made.rows[-1].bytes - SMALLER <= size <= made.rows[-1].bytes + GRAPH[format]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["c", "onnx", "safetensors"])
def test_a_pruned_agent_is_written_as_it_is(
    format: str, tmp_path: Path, small: Callable[[str], tuple[Agent, CompressResult]]
) -> None:
    pruned, _ = small("int8")
    assert export(pruned, tmp_path / f"policy.{format}", check_episodes=2).proof.holds
