"""``prunerl export``, ``compress`` and ``bench``: the files they write, what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunerl.cli import main

Capture = pytest.CaptureFixture[str]

INTEGERS = 'summary = "Integers alone"\nformats = ["int8"]\nexports = ["safetensors", "c"]\nfpu = false\n'


@pytest.fixture
def cartpole(agents: Path) -> list[str]:
    """Path of a real PPO agent, and its environment."""
    return [str(agents / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip"), "--env", "CartPole-v1"]


def refusal(arguments: list[str], capsys: Capture) -> str:
    """Run a command that must fail and return its one line."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("prunerl: error: ")
    return printed.err


def test_export_writes_a_checked_file(cartpole: list[str], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "cart.safetensors"
    command = ["export", *cartpole, "--to", str(path), "--check-episodes", "3"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "actions equal in 1,500 of 1,500 visited states" in shown
    assert "return 500, the agent's 500" in shown
    assert json.loads((tmp_path / "cart.safetensors.json").read_text())["bytes"] == path.stat().st_size
    assert "already" in refusal(command, capsys)


def test_export_for_a_device_says_what_was_chosen(cartpole: list[str], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "cart.c"
    target = ["--target", "cortex-m4", "--name", "cart"]
    assert main(["export", *cartpole, "--to", str(path), "--check-episodes", "3", *target]) == 0
    shown = capsys.readouterr().out
    assert "Chosen: f32 dense" in shown
    assert "Not int8 dense" in shown
    assert "void cart(const float *obs, float *action)" in path.read_text()


@pytest.mark.slow
def test_export_quantises_for_a_device_that_needs_it(cartpole: list[str], tmp_path: Path, capsys: Capture) -> None:
    profile = tmp_path / "integers.toml"
    profile.write_text(INTEGERS)
    path = tmp_path / "cart.safetensors"
    options = ["--check-episodes", "3", "--episodes", "10", "--target", str(profile)]
    assert main(["export", *cartpole, "--to", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert "to be quantised first" in shown
    assert "not worse" in shown
    assert path.stat().st_size < 4 * 4610 / 2  # a byte a weight, with what lies beside


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--to", "policy.exe"], "no format 'exe'"),
        (["--to", "policy.onnx", "--target", "cortex-m4"], "takes .c, .h, not 'policy.onnx'"),
        (["--to", "policy.c", "--target", "cortex-m5"], "Did you mean 'cortex-m4'?"),
        (["--to", "policy.c", "--target", "tiny.toml"], "of 10,000 allowed (estimated). In int4 dense it would fit"),
        (["--to", "policy.c", "--share", "9"], "9"),
        (["--to", "policy.c", "--opset", "17"], "opset"),
        (["--to", "nowhere/policy.c"], "nowhere"),
    ],
)
def test_export_names_what_is_wrong(
    options: list[str],
    expected: str,
    cartpole: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(INTEGERS.replace("int8", "f32") + "flash = 10_000\n")
    assert expected in refusal(["export", *cartpole, *options], capsys)
    assert [path.name for path in Path().iterdir()] == ["tiny.toml"]


def test_what_was_asked_for_is_not_replaced_by_what_a_device_needs(
    cartpole: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from prunerl.commands import export

    profile = tmp_path / "integers.toml"
    profile.write_text(INTEGERS)
    # The compression itself is not what this is about; that it was asked for is.
    monkeypatch.setattr(export, "compressed", lambda args, agent: _Kept(agent))
    command = ["export", *cartpole, "--to", str(tmp_path / "a.c"), "--target", str(profile), "--share", "4"]
    assert "only in int8. Give --quantize int8 alone." in refusal(command, capsys)


class _Kept:
    def __init__(self, agent: object) -> None:
        self.agent = agent


def test_compress_needs_to_be_told_how(cartpole: list[str], capsys: Capture) -> None:
    assert "Nothing to compress by" in refusal(["compress", *cartpole], capsys)


@pytest.mark.slow
def test_compress_prints_the_table_and_writes_the_file(cartpole: list[str], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "cart.safetensors"
    options = ["--quantize", "int4", "--episodes", "10", "--no-repair", "--tolerance", "0.5"]
    assert main(["compress", *cartpole, *options, "--to", str(path)]) == 0
    shown = capsys.readouterr()
    assert "int4" in shown.out
    assert "reference" in shown.out
    assert "confirming" in shown.err
    assert path.is_file()


def test_bench_prints_every_runtime(cartpole: list[str], capsys: Capture) -> None:
    from prunerl.deploy.runtimes import RUNTIMES

    assert main(["bench", *cartpole, "--blocks", "20"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RUNTIMES)
    assert "ppo on CartPole-v1" in shown
    assert "64 visited states, 20 interleaved blocks each" in shown


def test_bench_of_too_few_blocks_is_refused(cartpole: list[str], capsys: Capture) -> None:
    assert "got 1" in refusal(["bench", *cartpole, "--blocks", "1"], capsys)
