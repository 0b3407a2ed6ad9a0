"""Steps are remembered exactly, whole or not at all, and only by the run that made them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from prunerl import files
from prunerl.errors import RunError
from prunerl.journal import Journal, open_journal, recall, record

SETTINGS = {"seed": 0, "tolerance": 0.05, "repair": ["distill"], "sparsity": None}


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_step_comes_back_bit_by_bit(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "run", SETTINGS)
    tensors = {
        "float": torch.tensor([0.1, -0.0, float("inf")]),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "whole": torch.tensor([2**62]),
        "none": torch.empty(0, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(10.0)[2:5],
    }
    data = {"returns": [0.1, 1 / 3, -1e300], "name": "→ é", "nothing": None, "deep": {"a": [1, True]}}
    assert recall(journal, "round-001") is None
    record(journal, "round-001", data, tensors)
    found = recall(journal, "round-001")
    assert found is not None
    assert found.data == data
    assert list(found.tensors) == list(tensors)  # the order of parameters is part of a state
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert recall(journal, "round-002") is None


def test_tensors_may_share_their_memory(tmp_path: Path) -> None:
    """The masks of a network and of its target are one tensor."""
    journal, mask = open_journal(tmp_path / "run", SETTINGS), torch.tensor([True, False, True])
    record(journal, "step", {}, {"network": mask, "target": mask, "part": mask[1:]})
    found = recall(journal, "step")
    assert found is not None
    assert {name: t.tolist() for name, t in found.tensors.items()} == {
        "network": [True, False, True],
        "target": [True, False, True],
        "part": [False, True],
    }


def test_without_a_folder_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = open_journal(None, SETTINGS)
    record(journal, "step", {}, {})
    assert recall(journal, "step") is None
    assert journal == Journal()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_opened_again_with_its_own_settings_alone(tmp_path: Path) -> None:
    record(open_journal(tmp_path / "run", SETTINGS), "step", {"a": 1}, {})
    again = open_journal(str(tmp_path / "run"), dict(reversed(SETTINGS.items())))
    found = recall(again, "step")
    assert found is not None
    assert found.data == {"a": 1}
    with pytest.raises(RunError, match=r"run' holds another run \(its seed is 0, now 1\)\. Choose another with --out"):
        open_journal(tmp_path / "run", {**SETTINGS, "seed": 1})
    with pytest.raises(RunError, match=r"its extra is None, now 'x'"):
        open_journal(tmp_path / "run", {**SETTINGS, "extra": "x"})
    assert recall(again, "step") is not None


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds other files \('thesis\.tex'\)\. Choose an empty one"):
        open_journal(tmp_path, SETTINGS)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Cannot use .*file' as a run folder.*--out"):
        open_journal(tmp_path / "file", SETTINGS)


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    open_journal(tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"its run\.json is damaged"):
        open_journal(tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "run.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"its run\.json is damaged"):
        open_journal(tmp_path / "run", SETTINGS)
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(RunError, match=r"its run\.json is damaged"):
        open_journal(tmp_path / "run", SETTINGS)


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_step_is_named(tmp_path: Path, damage: bytes | None) -> None:
    journal = open_journal(tmp_path / "run", SETTINGS)
    record(journal, "step", {"a": 1}, {"t": torch.ones(100)})
    [path] = (tmp_path / "run" / "steps").iterdir()
    path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    with pytest.raises(RunError, match=r"Step file .*step\.safetensors' is damaged.*Remove it"):
        recall(journal, "step")


def test_a_full_disk_leaves_earlier_steps_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(tmp_path / "run", SETTINGS)
    record(journal, "first", {"a": 1}, {"t": torch.ones(3)})
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr(files.os, "replace", full)
    for name in ("first", "second"):
        with pytest.raises(RunError, match=r"No space left.*Free some space"):
            record(journal, name, {"a": 2}, {"t": torch.zeros(3)})
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
