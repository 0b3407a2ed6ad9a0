"""The sections of ``docs/adapters.md`` are what these tests run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"

Between = Callable[[dict[str, Any]], None]


@pytest.fixture
def section() -> Callable[..., dict[str, Any]]:
    """From the heading of a section to the names that its code defines; ``trained`` is called after the first block."""

    def run(heading: str, trained: Between = lambda names: None) -> dict[str, Any]:
        text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        assert len(blocks) == 2, f"section {heading!r} has {len(blocks)} blocks of code"
        names: dict[str, Any] = {"__name__": "script"}
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, {heading}, block {number + 1}", "exec"), names)
            if number == 0:
                trained(names)
        return names

    return run
