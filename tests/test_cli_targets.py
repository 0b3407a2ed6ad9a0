"""``prunerl targets``."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunerl.cli import main
from prunerl.deploy.targets import BUILT_IN

Capture = pytest.CaptureFixture[str]


def test_all_devices_are_listed(capsys: Capture) -> None:
    assert main(["targets"]) == 0
    shown = capsys.readouterr().out
    assert all(path.stem in shown for path in BUILT_IN.glob("*.toml"))


def test_one_is_shown_with_its_sources(capsys: Capture) -> None:
    assert main(["targets", "cortex-m4"]) == 0
    shown = capsys.readouterr().out
    assert "524,288 bytes Assumption: half of the 1 MiB" in " ".join(shown.split())
    assert "FPU: yes" in shown


def test_the_users_own_are_listed_and_a_wrong_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PRUNERL_TARGETS", str(tmp_path))
    (tmp_path / "board.toml").write_text('summary = "Mine"\nformats = ["int8"]\nexports = ["c"]\nfpu = false\n')
    assert main(["targets"]) == 0
    assert "Mine" in capsys.readouterr().out
    (tmp_path / "board.toml").write_text("flash = 1\n")
    assert main(["targets", "board"]) == 2
    assert "lacks 'summary'" in capsys.readouterr().err


def test_an_unknown_one_is_refused(capsys: Capture) -> None:
    assert main(["targets", "fone"]) == 2
    assert "Did you mean 'phone'?" in capsys.readouterr().err
