"""Run folders of the RL Zoo: what goes in is read as data, and the Zoo's own ``enjoy`` plays what comes out."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO
from torch import Tensor

import prunerl
from prunerl import environments, heads
from prunerl.agents import zoo, zoo_settings
from prunerl.agents.sb3 import SB3Agent
from prunerl.agents.zoo_yaml import dump, read
from prunerl.errors import EnvironmentFailure, LoadError, PruneError, RunError, TrustError
from prunerl.load import save_zoo_folder
from prunerl.remove import remove
from prunerl.trace import trace, unit_groups
from prunerl.types import EnvSpec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of a PPO agent with four hidden units."""
    path = tmp_path_factory.mktemp("made") / "made.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, n_steps=16, batch_size=16, device="cpu").save(path)
    return path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a Zoo folder of it, given the texts of its files."""

    def build(config: str | None = None, args: str | None = None, name: str = "CartPole-v1.zip") -> Path:
        run = tmp_path / "ppo" / "CartPole-v1_1"
        (run / "CartPole-v1").mkdir(parents=True)
        shutil.copy(made, run / name)
        for file, text in (("config.yml", config), ("args.yml", args)):
            if text is not None:
                (run / "CartPole-v1" / file).write_text(text)
        return run

    return build


@pytest.mark.parametrize(("name", "env"), [("ppo/CartPole-v1", None), ("sac/Pendulum-v1", None), ("ppo/Hopper-v3", 5)])
def test_a_folder_is_its_zip(zip_of: Callable[[str], Path], load_agent: Any, name: str, env: int | None) -> None:
    path = zip_of(name)
    agent = prunerl.load(path.parent, env=None if env is None else f"Hopper-v{env}")
    wanted = load_agent(name)
    assert isinstance(agent, SB3Agent)
    assert (agent.env, agent.algorithm) == (wanted.env, wanted.algorithm)
    assert all(torch.equal(t, wanted.state.tensors[n]) for n, t in agent.state.tensors.items())
    assert (agent.policy.normalizer is None) == (wanted.policy.normalizer is None) == (name != "ppo/Hopper-v3")


def test_an_environment_that_is_gone_is_named(zip_of: Callable[[str], Path]) -> None:
    with pytest.raises(EnvironmentFailure, match="'Hopper-v3'"):
        prunerl.load(zip_of("ppo/Hopper-v3").parent)


def test_the_folder_says_how_the_environment_is_made(folder: Callable[..., Path]) -> None:
    run = folder(
        config="frame_stack: 1\nenv_wrapper:\n- gymnasium.wrappers.TimeLimit: {max_episode_steps: 7}\n"
        "- gym.wrappers.ClipReward: {min_reward: 0}\nenv_kwargs: {sutton_barto_reward: false}\n",
        args="env: CartPole-v1\nenv_kwargs: {sutton_barto_reward: true}\n",
    )
    agent = prunerl.load(run)
    limit = ("gymnasium.wrappers.TimeLimit", {"max_episode_steps": 7})
    clip = ("gymnasium.wrappers.ClipReward", {"min_reward": 0})
    assert agent.env == EnvSpec("CartPole-v1", {"sutton_barto_reward": True}, (limit, clip))
    assert prunerl.load(run, env="CartPole-v0").env.id == "CartPole-v0"
    other = prunerl.load(run, env=EnvSpec("CartPole-v1", {"sutton_barto_reward": False}, (limit,)))
    assert other.env == EnvSpec("CartPole-v1", {"sutton_barto_reward": False}, (limit,))
    with_more = prunerl.load(run / "CartPole-v1.zip", env="CartPole-v1", env_kwargs={"sutton_barto_reward": False})
    assert with_more.env.kwargs == {"sutton_barto_reward": False}


def test_frames_are_stacked(tmp_path: Path) -> None:
    path = tmp_path / "CartPole-v1_3" / "CartPole-v1.zip"
    path.with_suffix("").mkdir(parents=True)
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    stacked = VecFrameStack(make_vec_env("CartPole-v1"), 4)
    PPO("MlpPolicy", stacked, policy_kwargs={"net_arch": [4]}, n_steps=16, batch_size=16, device="cpu").save(path)
    (path.with_suffix("") / "config.yml").write_text("frame_stack: 4\n")
    agent = prunerl.load(path.parent)
    assert agent.env == EnvSpec("CartPole-v1", frame_stack=4)
    assert agent.policy.observation_shape == (16,)
    assert isinstance(agent, SB3Agent)
    again = prunerl.load(zoo.save_folder(agent, tmp_path / "logs"))
    assert again.env == agent.env


def test_the_best_agent_is_taken_where_the_last_is_not_there(folder: Callable[..., Path]) -> None:
    run = folder(config="normalize: false\n", args="env: CartPole-v1\nenv_kwargs: null\n", name="best_model.zip")
    assert prunerl.load(run).env.id == "CartPole-v1"
    assert prunerl.load(run / "best_model.zip").env.id == "CartPole-v1"


def test_a_folder_without_files_is_named_after_its_environment(folder: Callable[..., Path]) -> None:
    assert prunerl.load(folder()).env.id == "CartPole-v1"


def test_a_folder_without_an_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError):
        prunerl.load(tmp_path)
    with pytest.raises(LoadError, match="is a folder"):
        prunerl.load(tmp_path, env="CartPole-v1")


def test_normalised_without_statistics_is_refused(folder: Callable[..., Path], tmp_path: Path) -> None:
    run = folder(args="env: CartPole-v1\n")
    for text in ("true", "\"{'norm_obs': True, 'norm_reward': False}\"", '"dict(norm_reward=True)"', "{gamma: 0.9}"):
        (run / "CartPole-v1" / "config.yml").write_text(f"normalize: {text}\n")
        with pytest.raises(LoadError, match=r"config\.yml: observations were normalised, but there is no vecnormalize"):
            prunerl.load(run)
    for text in ("false", "\"{'norm_obs': False, 'norm_reward': True}\"", '"dict(norm_obs=False)"', "null"):
        (run / "CartPole-v1" / "config.yml").write_text(f"normalize: {text}\n")
        prunerl.load(run)


# Untrusted


MODULE = "import pathlib\npathlib.Path({witness!r}).touch()\nfrom gymnasium.wrappers import TimeLimit\n"


@pytest.mark.parametrize("where", ["wrapper", "environment"])
def test_modules_that_a_folder_names_are_not_imported_without_trust(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    witness, module = tmp_path / "witness", f"zoo_module_{where}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(witness=str(witness)))
    monkeypatch.syspath_prepend(tmp_path)
    if where == "wrapper":
        config = f"env_wrapper:\n- {module}.TimeLimit: {{max_episode_steps: 5}}\n"
        run = folder(config=config, args="env: CartPole-v1\n")
        other: Any = EnvSpec("CartPole-v1", wrappers=(("gymnasium.wrappers.Autoreset", {}),))
    else:
        run = folder(args=f"env: {module}:CartPole-v1\n")
        other = "CartPole-v1"
    with pytest.raises(TrustError, match=rf"{module}.*--trust.*--(wrapper|env)"):
        prunerl.load(run)
    assert prunerl.load(run, env=other).env.id == "CartPole-v1"
    assert not witness.exists()
    prunerl.load(run, trust=True)
    assert witness.exists()


@pytest.mark.parametrize("file", ["config", "args"])
@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [{witness!r}]",
        "a: !!python/object/new:os.mkdir [{witness!r}]",
        "!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/object/apply:os.mkdir [{witness!r}]\n",
        "a: !!python/name:os.mkdir",
        "!!python/object/apply:collections.OrderedDict\n- 3",
        "!!python/object/apply:collections.OrderedDict 3",
        "!!python/tuple 3",
        "a: !!float x",
        "a: !!bool x",
        "a: !!timestamp 2001-99-99",
        "? [a]\n: b",
        "a: " + "9" * 5000,
        "a: [",
        "\x00",
        "[" * 3000 + "]" * 3000,
        "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)),
        "a: &a [*a]",
        "a: " + "x" * 2**19,
        "--- 1\n--- 2\n",
    ],
    ids=range(19),
)
def test_hostile_yaml_is_refused(folder: Callable[..., Path], tmp_path: Path, file: str, text: str) -> None:
    witness = tmp_path / "witness"
    run = folder(**{file: text.replace("{witness!r}", repr(str(witness)))})
    began = time.process_time()
    with pytest.raises(LoadError, match=rf"{file}\.yml is not a Zoo configuration .*Mend or remove it"):
        prunerl.load(run / "CartPole-v1.zip", env="CartPole-v1")
    assert time.process_time() - began < 5
    assert not witness.exists()


JUNK: tuple[Any, ...] = (
    3,
    -1,
    1e308,
    True,
    "",
    "text",
    [],
    [[]],
    [None],
    {},
    {"a": {"b": 1}},
    [{"a": 1, "b": 2}],
    None,
)


def test_settings_of_any_type_load_or_end_in_one_error(folder: Callable[..., Path]) -> None:
    run = folder()
    for file, keys in (("config", ("normalize", "env_wrapper", "frame_stack")), ("args", ("env", "env_kwargs"))):
        for key in (*keys, "vec_env_wrapper", "policy"):
            for junk in JUNK:
                (run / "CartPole-v1" / f"{file}.yml").write_text(yaml.safe_dump({key: junk}))
                try:
                    prunerl.load(run)
                except PruneError as error:
                    assert len(str(error)) < 1000  # noqa: PT017  either outcome is right
        (run / "CartPole-v1" / f"{file}.yml").unlink()


def test_yaml_comes_back_as_it_was(tmp_path: Path) -> None:
    values = {"a": (1, "episode"), "b": [1.5, None, True], "c": {"d": "lin_0.2"}, "e": "dict(net_arch=[64])"}
    (tmp_path / "x.yml").write_text(dump(values))
    assert read(tmp_path / "x.yml") == values
    with pytest.raises(RunError, match="cannot be written as YAML"):
        dump({"a": object()})


# Written


def test_a_folder_comes_out_as_it_went_in(folder: Callable[..., Path], tmp_path: Path) -> None:
    config = {"gamma": 0.9, "policy": "MlpPolicy", "train_freq": (1, "episode"), "vec_env_wrapper": None}
    wrapper = [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 7}}]
    run = folder(
        config=dump({**config, "env_wrapper": wrapper, "normalize": "__import__('os').abort()  # norm_obs=False"}),
        args="env: CartPole-v0\nenv_kwargs: {sutton_barto_reward: true}\nseed: 7\n",
    )
    agent = prunerl.load(run, env="CartPole-v1")
    written = save_zoo_folder(agent, tmp_path, source=run)
    assert written == tmp_path / "ppo" / "CartPole-v1_2"
    found = zoo_settings.settings(written / "CartPole-v1.zip")
    kwargs = {"sutton_barto_reward": True}
    del config["vec_env_wrapper"]
    own = {"env_wrapper": wrapper, "normalize": False, "env_kwargs": kwargs, "n_timesteps": 0}
    assert found.config == {**config, **own}
    assert found.arguments == {"algo": "ppo", "env": "CartPole-v1", "env_kwargs": kwargs, "seed": 7}
    again = prunerl.load(written)
    assert again.env == agent.env
    assert all(torch.equal(t, agent.state.tensors[n]) for n, t in again.state.tensors.items())


def test_the_next_free_number_is_taken(made: Path, tmp_path: Path) -> None:
    agent = prunerl.load(made, env="CartPole-v1")
    names = ["CartPole-v1_10", "CartPole-v1_2", "CartPole-v1_best", "CartPole-v1_x_99", "Other-CartPole-v1_70"]
    for name in names:
        (tmp_path / "ppo" / name).mkdir(parents=True)
        (tmp_path / "ppo" / name / "mine").write_text(name)
    assert save_zoo_folder(agent, tmp_path).name == "CartPole-v1_11"
    assert save_zoo_folder(agent, tmp_path).name == "CartPole-v1_12"
    assert sorted(p.read_text() for p in (tmp_path / "ppo").glob("*/mine")) == names


def test_a_folder_that_cannot_be_finished_is_not_there(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    agent = prunerl.load(made, env="CartPole-v1")

    def full(path: Path, text: str) -> None:
        raise RunError("No space left")

    monkeypatch.setattr(zoo, "write_atomically", full)
    with pytest.raises(RunError, match="No space left"):
        save_zoo_folder(agent, tmp_path)
    assert os.listdir(tmp_path / "ppo") == []


def test_what_the_zoo_cannot_run_is_refused(made: Path, tmp_path: Path) -> None:
    agent = prunerl.load(made, env="CartPole-v1")
    assert isinstance(agent, SB3Agent)
    with pytest.raises(RunError, match="has no ppo_mask"):
        save_zoo_folder(replace(agent, algorithm="ppo_mask"), tmp_path)
    with pytest.raises(RunError, match="cannot name a folder"):
        save_zoo_folder(replace(agent, env=EnvSpec("../..")), tmp_path)
    stacked = replace(
        agent, env=EnvSpec("CartPole-v1", frame_stack=2), settings=replace(agent.settings, normalization={})
    )
    with pytest.raises(RunError, match="normalises before it stacks"):
        save_zoo_folder(stacked, tmp_path)
    with pytest.raises(RunError, match=r"Zoo has no .*agent\.save"):
        save_zoo_folder(object(), tmp_path)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


ENJOY = """
import sys
import torch
torch.set_num_threads(1)
from rl_zoo3.enjoy import enjoy
folder, cases = sys.argv[1], sys.argv[2:]
for case in cases:
    algo, env, steps = case.split()
    sys.argv = f"enjoy --algo {algo} --env {env} -f {folder} --no-render -n {steps} --seed 0".split()
    enjoy()
"""


def narrowed(agent: SB3Agent, observations: Tensor) -> SB3Agent:
    """Return the agent with the three quarters of its actor's units whose incoming weights are the largest."""
    traced = trace(agent.policy.network, observations[:3])
    groups = unit_groups(traced, agent.state.tensors)
    keep = {}
    for group in groups:
        weights = next(s for s in group.slices if s.dim == 0 and agent.state.tensors[s.tensor].dim() == 2)
        norms = agent.state.tensors[weights.tensor].norm(dim=1)
        keep[group.name] = norms >= norms.sort().values[group.units // 4]
    return agent.with_state(remove(traced, agent.state, groups, keep, ties=agent.ties, observations=observations))


def played(agent: SB3Agent, steps: int) -> float:
    """Return the mean return over the episodes that end within so many steps, as ``enjoy`` plays them."""
    env = environments.make(agent.env)
    observation, _ = env.reset(seed=0)
    returns, total = [], 0.0
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(heads.act(agent.policy, observation[None])[0])
        total += float(reward)
        if terminated or truncated:
            returns.append(total)
            total = 0.0
            observation, _ = env.reset()
    env.close()
    return float(np.mean(returns))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")
def test_the_zoo_plays_smaller_agents(
    tmp_path: Path, load_agent: Callable[[str], SB3Agent], zip_of: Callable[[str], Path], inputs: Any
) -> None:
    """The mean reward that ``rl_zoo3.enjoy`` prints is what the agent earns here in the same episodes."""
    cases, wanted = [], []
    for name, steps in (("ppo/CartPole-v1", 1100), ("ppo/Hopper-v3", 1100), ("dqn/CartPole-v1", 1100)):
        dense = load_agent(name)
        small = narrowed(dense, inputs(dense))
        assert sum(t.numel() for t in small.state.tensors.values()) < sum(
            t.numel() for t in dense.state.tensors.values()
        )
        written = save_zoo_folder(small, tmp_path, source=zip_of(name).parent)
        assert written.name == f"{small.env.id}_1"
        cases.append(f"{small.algorithm} {small.env.id} {steps}")
        wanted.append(played(small, steps))
    command = [sys.executable, "-c", ENJOY, str(tmp_path), *cases]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = [float(match) for match in re.findall(r"Mean reward: (-?[\d.]+)", done.stdout)]
    assert printed == pytest.approx(wanted, abs=0.006)
