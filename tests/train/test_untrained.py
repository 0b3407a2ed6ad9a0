"""Hyperparameters as the RL Zoo writes them, and the command that takes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from stable_baselines3 import SAC
from torch import nn

from prunerl.cli import main
from prunerl.commands.train import METHODS, SHRINKING
from prunerl.errors import LoadError, NameUnknownError
from prunerl.train.zoo import evaluated, read, untrained

FILE = """
default:
  n_timesteps: !!float 1e3
  policy: 'MlpPolicy'
  n_envs: 2
  learning_rate: lin_0.01
  ent_coef: 0.0
  n_steps: 32
  batch_size: 32
  normalize: true
  policy_kwargs: "dict(net_arch=[16, 16], activation_fn=nn.Tanh)"
Pendulum-v1:
  noise_type: 'normal'
  noise_std: 0.1
  train_freq: [1, step]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yml"
    path.write_text(FILE)
    return path


def test_hyperparameters_are_those_of_the_file(file: Path) -> None:
    model, steps = untrained("ppo", "CartPole-v1", file=file, seed=3)
    assert steps == 1000
    assert (model.n_envs, model.n_steps, model.seed) == (2, 32, 3)
    assert model.lr_schedule(0.5) == pytest.approx(0.005)
    assert isinstance(model.policy.mlp_extractor.policy_net[1], nn.Tanh)
    assert type(model.get_env()).__name__ == "VecNormalize"
    model, steps = untrained("td3", "Pendulum-v1", file=file)
    assert steps is None
    assert model.action_noise._sigma.tolist() == [0.1]


def test_texts_that_stand_for_values_are_read(file: Path) -> None:
    file.write_text(
        'train_freq: "(1, \'episode\')"\nreplay_buffer_kwargs: "dict(handle_timeout_termination=False)"\n'
        "optimize_memory_usage: true\nbuffer_size: 100\n"
    )
    model, _ = untrained("td3", "Pendulum-v1", file=file)
    assert (model.train_freq.frequency, model.train_freq.unit.value) == (1, "episode")
    assert model.replay_buffer.optimize_memory_usage
    assert not model.replay_buffer.handle_timeout_termination


def test_what_cannot_be_read_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(NameUnknownError, match=r"Unknown algorithm 'dqm'\. Did you mean 'dqn'"):
        untrained("dqm", "CartPole-v1")
    with pytest.raises(LoadError, match=r"nothing\.yml does not exist"):
        read(tmp_path / "nothing.yml", "CartPole-v1")
    file.write_text("a: [1\n")
    with pytest.raises(LoadError, match="cannot be read as YAML"):
        read(file, "CartPole-v1")
    file.write_text("lerning_rate: 0.1\n")
    with pytest.raises(LoadError, match=r"lerning_rate.*Mend .*settings\.yml"):
        untrained("dqn", "CartPole-v1", file=file)
    file.write_text("env_wrapper: a.B\nn_steps: 3\n")
    with pytest.raises(LoadError, match="env_wrapper cannot be used here"):
        read(file, "CartPole-v1")
    file.write_text("policy_kwargs: \"__import__('os').system('true')\"\n")
    with pytest.raises(LoadError, match="policy_kwargs is"):
        read(file, "CartPole-v1")
    with pytest.raises(ValueError, match="malformed"):
        evaluated(ast.parse("nn.init", mode="eval").body)


def test_the_command_trains_and_goes_on(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    common = ["train", "--out", out]
    given = ["--algo", "ppo", "--env", "CartPole-v1", "--hyperparameters", str(file), "--sparsity", "0.8"]
    assert main([*common, *given, "--every", "64", "--checkpoint-every", "256", "--steps", "640"]) == 0
    shown = capsys.readouterr().out
    assert "80." in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("step ")][-1] == "640"
    held = torch.load(tmp_path / "run" / "masks.pt")
    assert all(bool(mask.any()) for mask in held.values())
    assert main([*common, *given]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*common, "--resume", "--width", "8", "--sparsity", "0.8"]) == 2
    assert "Leave out --sparsity, --width" in capsys.readouterr().err
    assert main([*common, "--resume"]) == 0
    assert "step 640 of 640: return " in capsys.readouterr().out
    assert (tmp_path / "run" / "agent_vecnormalize.pkl").is_file()
    again = torch.load(tmp_path / "run" / "masks.pt")
    assert all(torch.equal(mask, again[name]) for name, mask in held.items())
    assert main(["train", "--out", str(tmp_path / "b"), *given[:4], "--method", "gradul"]) == 2
    assert "Did you mean 'gradual'" in capsys.readouterr().err


def test_what_training_warns_of_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Box2D")
    run = tmp_path / "run"
    for left in ("tensorboard", "checkpoints/.1.tmp"):  # by a run that ended before its first checkpoint
        (run / left).mkdir(parents=True)
    given = ["train", "--algo", "ppo", "--env", "LunarLander-v3", "--steps", "2048", "--method", "static"]
    assert main([*given, "--out", str(run)]) == 0
    assert "prunerl: warning: LunarLander cannot be saved in the middle" in capsys.readouterr().err
    assert main([*given[:-2], "--method", "shrink-adaptive", "--width", "8", "--out", str(tmp_path / "b")]) == 0
    assert "No unit was removed" in capsys.readouterr().out
    assert main([*given, "--out", str(tmp_path / "settings" / "x"), "--steps", "-5"]) == 2
    assert "to take -5 steps" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*given, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "file")]) == 2
    assert "is a file. Choose a folder" in capsys.readouterr().err
    assert main([*given[:3], "--out", str(tmp_path / "c")]) == 2
    assert "--env is missing" in capsys.readouterr().err


OFF = """
policy_kwargs: "dict(net_arch=[24, 24])"
learning_starts: 40
buffer_size: 1000
batch_size: 32
env_kwargs: "dict(max_episode_steps=5)"
"""


@pytest.mark.parametrize("method", ["dense", *METHODS, *SHRINKING])
def test_the_command_takes_every_method(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, out = tmp_path / "off.yml", tmp_path / "run"
    settings.write_text(OFF)
    given = ["--algo", "sac", "--env", "Pendulum-v1", "--hyperparameters", str(settings), "--steps", "120"]
    given += ["--method", method, "--out", str(out), "--tensorboard"]
    if method in SHRINKING:
        given += ["--start", "0.5", *(["--sparsity", "0.75"] if method == "shrink" else ["--width", "12"])]
    elif method != "dense":
        given += ["--sparsity", "0.5", "--end", "0.8", *(["--every", "10"] if method != "lottery" else [])]
    assert main(["train", *given]) == 0
    shown = capsys.readouterr().out
    assert "Trained 120 steps" in shown
    widths = SAC.load(out / "agent.zip").policy_kwargs["net_arch"]
    if method in SHRINKING:
        assert widths == {"pi": [12, 12], "qf": [12, 12]}
    else:
        assert widths == [24, 24]
    assert (out / "masks.pt").is_file() == (method in METHODS)
    logged = next((out / "tensorboard").rglob("events*")).read_bytes()
    tags = {"prune/sparsity", "prune/units", "prune/sparsity_actor"} if method in METHODS else set()
    tags |= {"shrink/parameters", "shrink/time_share"} if method in SHRINKING else set()
    if method in ("gradual", "lottery", "movement", "rigl", "rlx2", "set", "surgery"):
        tags.add("prune/changes")
    assert [tag for tag in tags if tag.encode() not in logged] == []


@pytest.mark.parametrize("more", [["--width", "12"], ["--sparsity", "0.75"]])
def test_the_command_removes_layers(more: list[str], tmp_path: Path) -> None:
    settings, out = tmp_path / "off.yml", tmp_path / "run"
    settings.write_text(OFF)
    given = ["--algo", "sac", "--env", "Pendulum-v1", "--hyperparameters", str(settings), "--steps", "120"]
    given += ["--method", "shrink", "--depth", "1", "--ridge", "0.1", "--distill", "2"]
    given += ["--start", "0.5", "--out", str(out), *more]
    assert main(["train", *given]) == 0
    assert SAC.load(out / "agent.zip").policy_kwargs["net_arch"] == {"pi": [12], "qf": [12]}


def test_settings_of_another_method_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", "--algo", "sac", "--env", "Pendulum-v1", "--steps", "100", "--out", str(tmp_path / "run")]
    for more, message in (
        (["--method", "shrink", "--distribution", "erk"], "shrink does not take --distribution"),
        (["--method", "set", "--depth", "1"], "set does not take --depth"),
        (["--method", "shrink", "--depth", "3"], "got depth=3"),
        (["--method", "set", "--ridge", "0.1"], "set does not take --ridge"),
        (["--method", "shrink-adaptive", "--ridge", "0"], "got ridge=0"),
        (["--method", "set", "--rule", "best"], "set does not take --rule"),
        (["--method", "dense", "--sparsity", "0.5"], "dense does not take --sparsity. It takes: none"),
        (["--method", "shrink", "--width", "8", "--sparsity", "0.5"], "Give one of them"),
        (["--method", "shrink", "--sparsity", "1"], "sparsity of 1.0"),
        (["--method", "gradual", "--start", "0.8", "--end", "0.2"], "starts at 0.8 and ends at 0.2"),
        (["--method", "gradual", "--sparsity", "0.99999"], "Lower the sparsity or choose another distribution"),
        (["--method", "shrink", "--width", "512"], "cannot shrink to (512, 512)"),
        (["--algo", "ppo", "--method", "gradual", "--steps", "10000", "--critic-sparsity", "1"], "critic_sparsity=1.0"),
        (["--algo", "dqn", "--env", "CartPole-v1", "--method", "set", "--critic-sparsity", "0.5"], "of a critic"),
        (
            ["--algo", "dqn", "--env", "CartPole-v1", "--method", "shrink", "--critic-sparsity", "0.5"],
            "There is no critic network, so --critic-sparsity is not used",
        ),
        (["--algo", "ars", "--method", "gradual"], "ARS does not train its policy with an optimizer"),
        (["--algo", "ars", "--method", "shrink"], "ARS has no optimizer"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
