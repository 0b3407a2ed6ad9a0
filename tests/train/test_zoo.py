"""Hyperparameters as the RL Zoo writes them, and the command that takes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

from prunerl.cli import main
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


def test_what_cannot_be_read_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(NameUnknownError, match=r"Unknown algorithm 'dqm'\. Did you mean 'dqn'"):
        untrained("dqm", "CartPole-v1")
    with pytest.raises(LoadError, match="cannot be read as YAML"):
        read(tmp_path / "nothing.yml", "CartPole-v1")
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
    assert "80." in capsys.readouterr().out
    held = torch.load(tmp_path / "run" / "masks.pt")
    assert all(bool(mask.any()) for mask in held.values())
    assert main([*common, *given]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*common, "--resume"]) == 0
    again = torch.load(tmp_path / "run" / "masks.pt")
    assert all(torch.equal(mask, again[name]) for name, mask in held.items())
    assert main(["train", "--out", str(tmp_path / "b"), *given[:4], "--method", "gradul"]) == 2
    assert "Did you mean 'gradual'" in capsys.readouterr().err
