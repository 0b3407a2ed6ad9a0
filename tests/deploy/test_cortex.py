from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from small_programs import PROGRAMS

from prunerl.deploy import interpret

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cortex.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cortex", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cortex"] = module  # a dataclass looks its own module up by name
    spec.loader.exec_module(module)
    return module


cortex = script()
ABSENT = [tool for tool in cortex.NEEDED if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")


def net(kind: str, share: float, function: str = "relu") -> Any:
    return cortex.random_net(cortex.NETS["S"], kind=kind, share=share, function=function)


@pytest.mark.parametrize("board", ["M4F", "M0"])
@pytest.mark.parametrize("name", ["mlp", "mlp int8 inputs", "mlp int4", "mlp shared", "conv 2d int8 inputs", "softmax"])
def test_a_policy_acts_on_the_board_as_here(name: str, board: str) -> None:
    assert cortex.count(PROGRAMS[name], cortex.BOARDS[board]).wrong == 0


@pytest.mark.parametrize("board", ["M4F", "M0"])
def test_a_wrong_action_is_found_on_the_board(board: str) -> None:
    made = net("int8", 0.0)
    observations = cortex.examples(made)
    actions = np.array(interpret.run(made, observations)[0])
    actions[:3] += 0.01
    assert cortex.counted(made, cortex.BOARDS[board], observations, actions).wrong == 3


@pytest.mark.parametrize(("kind", "share", "flash", "ram", "instructions"), [
    ("f32", 0.0, 19_866, 512, 15_100),
    ("int8", 0.0, 6_700, 576, 17_800),
    ("f32", 0.9, 3_380, 512, 5_600),
    ("int8", 0.9, 2_900, 576, 10_200),
])  # fmt: skip
def test_kernels_are_no_slower_than_those_they_came_from(
    kind: str, share: float, flash: int, ram: int, instructions: int
) -> None:
    found = cortex.count(net(kind, share), cortex.BOARDS["M4F"])
    assert found.wrong == 0
    assert (found.flash <= flash, found.ram <= ram, found.instructions <= instructions) == (True, True, True)


def test_instructions_are_counted_as_they_are_executed() -> None:
    dense, wide = net("f32", 0.0), cortex.random_net((4, 128, 64, 2), kind="f32", share=0.0, function="relu")
    few, many = (cortex.count(made, cortex.BOARDS["M4F"]).instructions for made in (dense, wide))
    macs = 128 * 4 + 64 * 128 - 64 * 4 - 64 * 64
    assert 2.0 < (many - few) / macs < 3.0
