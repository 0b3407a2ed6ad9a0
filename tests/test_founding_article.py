"""The founding article's recipe runs, and its runs are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes" / "founding_article.py"


def printed(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "--seeds", "1", "--episodes", "4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_recipe_prints_a_row_of_each_arm_and_repeats_nothing(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    first = printed("--arms", "dense", "linear", "--out", str(out))
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == [
        *("| dense", "| linear", "| dense, as published", "| pruned, as published")
    ]
    # 4·64 + 3·64² + 64·2 weights and 4·64 + 2 biases.
    assert "| dense | 12,930 |" in first
    assert [json.loads(line)["played"] for line in out.read_text().splitlines()] == [4, 4]
    assert printed("--arms", "dense", "linear", "--out", str(out)) == first
    assert len(out.read_text().splitlines()) == 2
