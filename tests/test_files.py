from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from prunerl.errors import RunError
from prunerl.files import digest, new_folder, write_atomically


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


def fill(path: Path, stop: Any = None) -> None:
    with new_folder(path) as folder:
        (folder / "inner").mkdir()
        write_atomically(folder / "inner" / "first", "1")
        if stop is not None:
            stop()
        write_atomically(folder / "second", "2")


def contents(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_new_folder_is_there_once_it_is_whole(tmp_path: Path) -> None:
    fill(tmp_path / "new", lambda: _absent(tmp_path / "new"))
    assert contents(tmp_path) == {"new/inner/first": "1", "new/second": "2"}


def _absent(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "full")])
def test_a_folder_that_fails_is_not_there(tmp_path: Path, error: Any) -> None:
    def fail() -> None:
        raise error

    with pytest.raises((RunError, KeyboardInterrupt, ValueError)):
        fill(tmp_path / "new", fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "link"])
def test_what_is_there_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("old")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "mine").write_text("old")
    before = contents(tmp_path)
    with pytest.raises(RunError, match=r"there': File exists\. Choose another path"):
        fill(path)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["there"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def appear() -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "theirs").write_text("old")

    with pytest.raises(RunError, match="Choose another path"):
        fill(tmp_path / "new", appear)
    assert contents(tmp_path) == {"new/theirs": "old"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("function", ["fsync", "replace", "rename"])
def test_a_kill_in_the_middle_leaves_the_old_or_the_new(tmp_path: Path, function: str) -> None:
    """A child kills itself at the n-th call of a function that writes, for each n, until it comes to the end."""
    for number in range(1, 10):
        parent = tmp_path / str(number)
        parent.mkdir()
        write_atomically(parent / "file", "old")
        child = os.fork()
        if child == 0:
            _die_at(function, number)
            write_atomically(parent / "file", "new")
            fill(parent / "new")
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found = {name: text for name, text in contents(parent).items() if ".tmp" not in name}
        assert found.pop("file") in ("old", "new")
        assert found in ({}, {"new/inner/first": "1", "new/second": "2"})
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert number > 1
    assert (status, len(found)) == (0, 2)


def _die_at(function: str, number: int) -> None:
    real, calls = getattr(os, function), iter(range(1, number + 1))

    def counted(*arguments: Any) -> Any:
        if next(calls, 0) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, function, counted)
