"""The command line: what it prints, and how it fails: one line that names the fix, and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prunerl.cli import COMMANDS, main
from prunerl.commands import prune, source
from prunerl.types import EnvSpec

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cartpole(agents: Path) -> str:
    """Path of a real PPO agent."""
    return str(agents / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip")


def refusal(arguments: list[str], capsys: Capture) -> str:
    """Run a command that must fail and return its one line."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("prunerl: error: ")
    assert "Traceback" not in printed.err + printed.out
    return printed.err


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_names_the_command(command: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert " ".join(["prunerl", *command]) in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["shrink"],
        ["prune"],
        ["report"],
        ["prune", "a.zip", "--tolerance", "much"],
        ["evaluate", "a.zip", "--sparsity", "1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prune", "evaluate", "inspect"])
def test_a_missing_file_is_refused(command: str, tmp_path: Path, capsys: Capture) -> None:
    line = refusal([command, str(tmp_path / "none.zip"), "--env", "CartPole-v1"], capsys)
    assert "No file at" in line
    assert "none.zip" in line


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "agent.zip"
    path.write_text("not a zip")
    assert "not a readable zip" in refusal(["inspect", str(path), "--env", "CartPole-v1"], capsys)


def test_a_zip_of_something_else_is_refused(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "agent.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a Stable-Baselines3 agent" in refusal(["inspect", str(path), "--env", "CartPole-v1"], capsys)


def test_the_environment_must_be_given_for_a_zip(cartpole: str, capsys: Capture) -> None:
    assert "--env" in refusal(["evaluate", cartpole], capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--criterion", "magnitud"], "Did you mean 'magnitude'?"),
        (["--schedule", "qubic", "--sparsity", "0.5"], "Did you mean 'cubic'?"),
        (["--structure", "unit"], "Did you mean 'units'?"),
        (["--repair", "distil"], "Did you mean 'distill'?"),
        (["--sparsity", "1.5"], "got 1.5"),
        (["--tolerance", "0"], "got 0"),
        (["--episodes", "1"], "got 1"),
        (["--seed", "-1"], "got -1"),
        (["--schedule", "one_shot"], "needs a sparsity"),
        (["--algo", "dqn"], "--algo ppo"),
        (["--algo", "sarsa"], "'sarsa'"),
        (["--env-kwargs", "gravity"], "key=value"),
        (["--env-kwargs", "wind=5"], "cannot be made"),
        (["--wrapper", "nowhere:Nothing"], "package.module:Class"),
        (["--vec-normalize", "nowhere.pkl"], "nowhere.pkl"),
        (["--frame-stack", "0"], "got 0"),
        (["--frame-stack", "2"], "takes 4 inputs, but 'CartPole-v1' observes 8"),
    ],
)
def test_prune_names_what_is_wrong(
    options: list[str], expected: str, cartpole: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    assert expected in refusal(["prune", cartpole, "--env", "CartPole-v1", "--out", str(out), *options], capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--tolerance", "0"], "got 0"), (["--episodes", "0"], "got 0"), (["--seed", "-1"], "got -1")],
)
def test_evaluate_names_what_is_wrong(options: list[str], expected: str, cartpole: str, capsys: Capture) -> None:
    assert expected in refusal(["evaluate", cartpole, "--env", "CartPole-v1", *options], capsys)


def test_an_environment_that_does_not_fit_is_refused(cartpole: str, capsys: Capture) -> None:
    assert "takes 4 inputs" in refusal(["inspect", cartpole, "--env", "Acrobot-v1"], capsys)
    line = refusal(["inspect", cartpole, "--env", "MountainCar-v0"], capsys)
    assert line.endswith("observes 2. Give the env it was trained in, or with --frame-stack 2.\n")


def test_an_unknown_environment_is_refused(cartpole: str, capsys: Capture) -> None:
    assert "CartPole-v99" in refusal(["inspect", cartpole, "--env", "CartPole-v99"], capsys)


def test_a_folder_with_other_files_is_left_alone(cartpole: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    line = refusal(["prune", cartpole, "--env", "CartPole-v1", "--out", str(tmp_path)], capsys)
    assert "thesis.tex" in line
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_report_of_a_folder_without_one_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "No report" in refusal(["report", str(tmp_path)], capsys)


def test_report_that_is_not_json_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "report.json").write_text("{")
    assert "not valid JSON" in refusal(["report", str(tmp_path)], capsys)


def test_debug_shows_the_traceback_too(tmp_path: Path, capsys: Capture) -> None:
    assert main(["report", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_tells_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(args: prune.Arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prune, "run", interrupted)
    assert main(["prune", "agent.zip"]) == 130
    assert capsys.readouterr().err == ("prunerl: interrupted. The same command goes on from the last finished round.\n")


def test_inspect_shows_layers_groups_and_what_is_kept(cartpole: str, capsys: Capture) -> None:
    assert main(["inspect", cartpole, "--env", "CartPole-v1"]) == 0
    shown = capsys.readouterr().out
    # 4·64 + 64 + 64·64 + 64 + 64·2 + 2 parameters, of which 192 + 2 are biases.
    assert "4,610 parameters act, 4,480 multiply–accumulates" in shown
    assert "64 → 64" in shown
    assert "mlp_extractor.policy_net.2.weight[1]" in shown
    assert "actions" in next(line for line in shown.splitlines() if line.startswith("action_net "))


def test_evaluate_against_itself_passes_exactly(cartpole: str, capsys: Capture) -> None:
    command = ["evaluate", cartpole, "--env", "CartPole-v1", "--episodes", "4", "--against", cartpole]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "normalised return 1.000" in shown
    assert "interval of the difference [0.000, 0.000]" in shown
    assert "verdict at tolerance 0.05 passes" in shown


@pytest.fixture(scope="module")
def run(agents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: half of the units of a real agent, in one shot."""
    out = tmp_path_factory.mktemp("runs") / "half"
    agent = agents / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip"
    options = "--env CartPole-v1 --schedule one-shot --sparsity 0.5 --repair none --episodes 10 --no-compare"
    assert main(["prune", str(agent), "--out", str(out), *options.split()]) == 0
    return out


def test_prune_writes_the_agent_and_the_report(run: Path) -> None:
    assert {"agent.zip", "report.json", "report.md", "return.png", "events"} <= {p.name for p in run.iterdir()}
    body = json.loads((run / "report.json").read_text())
    assert body["pruned"]["parameters"] <= 0.5 * body["dense"]["parameters"]
    assert body["settings"]["repair"] == []


def test_report_prints_what_prune_printed(run: Path, capsys: Capture) -> None:
    from prunerl.report import from_json, render

    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == render(from_json((run / "report.json").read_text())) + "\n"


def test_the_folder_of_a_run_knows_its_environment(run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert "ppo on CartPole-v1" in capsys.readouterr().out


def test_a_run_goes_to_a_folder_of_the_zoo(run: Path, cartpole: str, tmp_path: Path, capsys: Capture) -> None:
    options = "--env CartPole-v1 --schedule one-shot --sparsity 0.5 --repair none --episodes 10 --no-compare"
    assert main(["prune", cartpole, "--out", str(run), *options.split(), "--zoo", str(tmp_path)]) == 0
    folder = tmp_path / "ppo" / "CartPole-v1_1"
    assert f"Written to {folder}" in capsys.readouterr().out
    assert "n_steps" in (folder / "CartPole-v1" / "config.yml").read_text()  # of the folder that the agent came from
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--against", str(run), "--env", "CartPole-v1", "--episodes", "2"]) == 0
    assert "interval of the difference [0.000, 0.000]" in " ".join(capsys.readouterr().out.split())


def test_what_the_zoo_cannot_run_is_refused_before_the_run(
    cartpole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("prunerl.agents.zoo._MISSING", {"ppo"})
    command = ["prune", cartpole, "--env", "CartPole-v1", "--out", str(tmp_path / "run"), "--zoo", str(tmp_path)]
    assert "The RL Zoo has no ppo" in refusal(command, capsys)
    assert not (tmp_path / "run").exists()


def test_options_of_the_environment_add_to_what_a_folder_says(run: Path, agents: Path) -> None:
    stacked = source.environment(source.Source(agent=str(run), frame_stack=3, env_kwargs=("a=1",)))
    assert stacked == EnvSpec("CartPole-v1", {"a": 1}, frame_stack=3)
    folder = str(agents / "ppo" / "CartPole-v1_1")
    assert source.environment(source.Source(agent=folder)) is None
    assert source.environment(source.Source(agent=folder, env_kwargs=("a=1",))) == EnvSpec("", {"a": 1})
    loaded = source.load(source.Source(agent=folder, wrapper=("gymnasium.wrappers:Autoreset",)))
    assert loaded.env == EnvSpec("CartPole-v1", {}, (("gymnasium.wrappers:Autoreset", {}),))


def test_a_finished_run_is_shown_again(run: Path, cartpole: str, capsys: Capture) -> None:
    before = (run / "report.json").read_bytes()
    options = "--env CartPole-v1 --schedule one-shot --sparsity 0.5 --repair none --episodes 10 --no-compare"
    assert main(["prune", cartpole, "--out", str(run), *options.split()]) == 0
    assert "finished before" in capsys.readouterr().out
    assert (run / "report.json").read_bytes() == before


def test_another_run_is_not_overwritten(run: Path, cartpole: str, capsys: Capture) -> None:
    assert "another run" in refusal(["prune", cartpole, "--env", "CartPole-v1", "--out", str(run)], capsys)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=1", 1),
        ("x=-5.5", -5.5),
        ("x=true", True),
        ('x={"a": [1]}', {"a": [1]}),
        ("x=human", "human"),
        ("x=a=b", "a=b"),
    ],
)
def test_environment_arguments_are_json_where_they_can_be(text: str, value: object) -> None:
    assert source._pair(text) == ("x", value)


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "prunerl", "report", "nowhere"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("prunerl: error: No report at nowhere/report.json.")
    assert failed.stderr.count("\n") == 1
