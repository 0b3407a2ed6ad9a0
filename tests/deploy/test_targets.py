"""Profiles of devices: what a file may say, where it is found, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunerl.deploy import targets
from prunerl.deploy.targets import NUMBERS, load_target, names
from prunerl.errors import NameUnknownError, TargetError

GOOD = 'summary = "A board"\nformats = ["int8"]\nexports = ["c"]\nfpu = false\n'
BUILT_IN = sorted(path.stem for path in targets.BUILT_IN.glob("*.toml"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's profiles, the only one beside those built in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PRUNERL_TARGETS", str(tmp_path))
    return tmp_path


def test_the_profiles_that_are_there() -> None:
    assert BUILT_IN == [
        "cortex-m0", "cortex-m4", "edge-box", "industrial-controller", "medical-device", "phone", "vehicle-computer"
    ]  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_number_says_where_it_is_from(name: str) -> None:
    target = load_target(name)
    given = {key for key in NUMBERS if getattr(target, key) is not None}
    given -= {"lanes"} if target.lanes == 1 else set()
    assert set(target.sources) == given
    assert {"flash", "ram", "latency", "clock"} <= given


def test_a_number_is_read_as_its_type() -> None:
    target = load_target("cortex-m4")
    assert (target.flash, target.ram, target.clock, target.latency) == (524_288, 49_152, 168.0, 1000.0)
    assert isinstance(target.latency, float)
    assert (target.fpu, target.lanes, target.instructions) == (True, 1, None)


def test_what_is_left_out_is_no_limit(write: Path) -> None:
    (write / "board.toml").write_text(GOOD)
    target = load_target("board")
    assert (target.flash, target.ram, target.latency, target.instructions) == (None, None, None, None)
    assert target.formats == ("int8",)


def test_a_path_names_a_profile_too(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(GOOD)
    assert load_target(path).name == load_target(str(path)).name == "board"


def test_the_users_profile_goes_before_the_built_in_one(write: Path) -> None:
    (write / "phone.toml").write_text(GOOD)
    assert load_target("phone").summary == "A board"
    home = write / "config" / "prunerl" / "targets"
    home.mkdir(parents=True)
    (home / "phone.toml").write_text(GOOD.replace("A board", "Another"))
    (home / "second.toml").write_text(GOOD)
    assert load_target("phone").summary == "A board"
    assert {"phone", "second", "cortex-m4"} <= set(names())


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(NameUnknownError, match=r"Did you mean 'cortex-m4'.*phone"):
        load_target("cortex-m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "flsh = 10\n", "unknown key 'flsh'. Did you mean 'flash'"),
        (GOOD + "name = 'x'\n", "unknown key 'name'"),
        (GOOD.replace("fpu = false\n", ""), "lacks 'fpu'"),
        ("", "lacks 'summary', 'formats', 'exports', 'fpu'"),
        (GOOD + 'flash = "1 MB"\n', "'flash' must be a whole number above 0, got '1 MB'"),
        (GOOD + "flash = 1.5\n", "'flash' must be a whole number above 0, got 1.5"),
        (GOOD + "flash = true\n", "got True"),
        (GOOD + "ram = 0\n", "'ram' must be a whole number above 0, got 0"),
        (GOOD + "clock = nan\n", "'clock' must be a number above 0, got nan"),
        (GOOD + "cycles = -1\n", "'cycles' must be a number above 0, got -1"),
        (GOOD.replace('["int8"]', '["int7"]'), "'formats' must be a list of one or more of f32, int8, int4"),
        (GOOD.replace('["int8"]', "[]"), r"'formats' must be .* got \[\]"),
        (GOOD.replace('["c"]', '"c"'), "'exports' must be a list of texts, got 'c'"),
        (GOOD.replace("false", '"no"'), "'fpu' must be true or false, got 'no'"),
        (GOOD.replace('"A board"', "1"), "'summary' must be a text, got 1"),
        (GOOD + "latency = 5\n", "Add 'clock'"),
        (GOOD + '[sources]\nflash = "x"\n', "a source for 'flash'"),
        (GOOD + "[sources]\nflash = 1\n", "'sources' must be a table of texts"),
        ("summary = \n", "not valid TOML"),
    ],
)
def test_a_wrong_profile_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(TargetError, match=message) as refused:
        load_target(path)
    assert "board.toml" in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "none.toml")
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "raw.toml")
