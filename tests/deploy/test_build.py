"""Libraries are built once, whole, and by content."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunerl.deploy import build
from prunerl.errors import BuildError

SEVEN = build.Unit("seven", "int seven(void) { return 7; }\n")


@pytest.fixture(scope="module")
def compiler() -> build.Compiler:
    found = build.find()
    if found is None:
        pytest.skip("no C compiler")
    return found


def test_equal_content_has_equal_names() -> None:
    assert build.key("a", b"b") == build.key("a", b"b")
    assert build.key("a", "b") != build.key("ab")
    assert build.key("a", "b") != build.key("b", "a")


def test_a_library_is_built_once(compiler: build.Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library([SEVEN], compiler, tmp_path)
    assert ctypes.CDLL(str(path)).seven() == 7
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("built again"))
    assert build.library([SEVEN], compiler, tmp_path) == path
    assert list(tmp_path.iterdir()) == [path]


def test_another_library_has_another_place(compiler: build.Compiler, tmp_path: Path) -> None:
    first = build.library([SEVEN], compiler, tmp_path)
    assert build.library([SEVEN], compiler, tmp_path, flags=("-DX",)) != first
    assert build.library([SEVEN], compiler, tmp_path, about="another Python") != first


def test_several_processes_build_the_same_library_at_once(compiler: build.Compiler, tmp_path: Path) -> None:
    code = (
        "import sys, ctypes; from pathlib import Path; from prunerl.deploy import build; "
        "u = build.Unit('seven', 'int seven(void) { return 7; }'); "
        "p = build.library([u], build.find(), Path(sys.argv[1])); sys.exit(ctypes.CDLL(str(p)).seven() - 7)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_compiler_that_fails_says_why(compiler: build.Compiler, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nonsense"):
        build.library([build.Unit("bad", "nonsense here;\n")], compiler, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_machine_is_named(compiler: build.Compiler) -> None:
    with pytest.raises(BuildError, match="pdp11"):
        build.macros(compiler, "pdp11")


def test_the_machine_is_described(compiler: build.Compiler) -> None:
    assert any(line.startswith("#define __STDC__") for line in build.macros(compiler, "native"))


def test_a_named_compiler_that_is_absent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match="no-such-compiler"):
        build.find()


def test_no_compiler_is_found_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    build._started.cache_clear()
    try:
        assert build.find() is None
    finally:
        build._started.cache_clear()


def test_the_folder_is_the_one_given_and_private(tmp_path: Path) -> None:
    assert build.folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o77 == 0


def test_the_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.folder(None) == tmp_path / "prunerl"


def test_a_given_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cache="):
        build.folder(tmp_path / "file")


def test_a_default_folder_that_cannot_be_written_is_replaced_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prunerl").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        made = build.folder(None)
    assert os.access(made, os.W_OK)
    made.rmdir()
