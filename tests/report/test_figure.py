from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunerl.errors import RunError
from prunerl.report import save_figure
from prunerl.types import Report, Size


def _check(path: Path) -> None:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1200, 750)
    assert data.endswith(b"IEND\xaeB`\x82")


def test_writes_a_whole_png(report: Report, tmp_path: Path) -> None:
    save_figure(report, tmp_path / "return.png")
    _check(tmp_path / "return.png")


def test_extreme_reports_are_drawn(report: Report, tmp_path: Path) -> None:
    bad = replace(
        report.rounds[2].stages[2], verdict=replace(report.pruned.verdict, normalized=-40.0, interval=(-42, -39))
    )
    rounds = (replace(report.rounds[2], structure="weights", stages=(bad,), best=0),)
    empty = replace(report.pruned, size=Size(0, 0, 0, ()))
    save_figure(replace(report, rounds=rounds, pruned=empty, baselines=report.baselines * 4), tmp_path / "a.png")
    save_figure(replace(report, rounds=(), pruned=report.dense, baselines=()), tmp_path / "b.png")
    _check(tmp_path / "a.png")
    _check(tmp_path / "b.png")


def test_a_full_disk_leaves_the_old_picture(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "return.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"return\.png"):
        save_figure(report, tmp_path / "return.png")
    assert (tmp_path / "return.png").read_bytes() == b"old"


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, prunerl.report; print({'matplotlib', 'stable_baselines3', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
