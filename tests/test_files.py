from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from prunerl.errors import RunError
from prunerl.files import digest, write_atomically


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("data", "written"), [(b"\x00\xff", b"\x00\xff"), ("→ é", "→ é".encode()), ("", b"")])
def test_writes_bytes_and_text(tmp_path: Path, data: bytes | str, written: bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old contents")
    write_atomically(path, data)
    assert path.read_bytes() == written
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, function, _full)
    with pytest.raises(RunError, match=r"file'.*No space left.*Free some space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"missing/file'.*Create the folder first"):
        write_atomically(tmp_path / "missing" / "file", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="not a folder"):
        write_atomically(tmp_path / "folder", "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_the_file_is_as_readable_as_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("x")
    write_atomically(tmp_path / "ours", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")}
    assert len(modes) == 1


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_digest_is_sha256_of_what_is_written() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest("é") == digest("é".encode())
    assert digest("\udc80") == digest(b"\\udc80")
