"""A run that is killed and resumed ends bit for bit where the uninterrupted one does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.utils import EzPickle
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, HerReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, StopTrainingOnMaxEpisodes
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy import MODELS, Follow

from prunerl import masks, train
from prunerl.errors import BudgetError, LearnWarning, RunError
from prunerl.train.checkpoint import _restore, newest

SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from stable_baselines3.common.callbacks import BaseCallback
from toy import MODELS
from prunerl import train

class Kill(BaseCallback):
    def _on_step(self):
        if self.num_timesteps >= int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
        return True

pruning = eval(sys.argv[3], vars(train))
checkpoint = train.Checkpoint(sys.argv[4], pruning, every=100)
MODELS[sys.argv[2]]().learn(int(sys.argv[6]), callback=[checkpoint, Kill()])
"""


OFTEN = "sparsity=0.8, every=20, end=0.8"


def everything(model: Any, held: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return all that training leads to."""
    found = {f"parameter {n}": p.detach() for n, p in model.policy.named_parameters()}
    found |= {f"mask {n}": m for n, m in held.items()}
    for i, optimizer in enumerate(masks.optimizers_of(model.policy)):
        for j, state in enumerate(optimizer.state.values()):
            found |= {f"moment {i} {j} {k}": torch.as_tensor(v) for k, v in state.items()}
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        arrays = {n: v for n, v in vars(buffer).items() if isinstance(v, np.ndarray) and v.dtype != object}
        found |= {n: torch.as_tensor(v) for n, v in arrays.items()}
    return found


def assert_equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "killed", "steps"),
    [
        ("ppo", f"RigL({OFTEN})", 330, 512),
        ("dqn", f"RigL({OFTEN})", 250, 320),
        ("sac", f"Surgery({OFTEN})", 250, 320),
        ("td3", f"RLx2({OFTEN})", 250, 320),
        ("ppo", "Shrink(at=(0.3, 0.8), width=(12, 8), distill=5)", 330, 512),
        ("sac", "Shrink(at=(0.4, 0.8), width=(12, 8), distill=5)", 250, 320),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(name: str, method: str, killed: int, steps: int, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    here = str(Path(__file__).parent)
    arguments = [sys.executable, str(script), here, name, method, str(tmp_path / "run"), str(killed), str(steps)]
    path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ended = subprocess.run(arguments, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resumed = train.resume(tmp_path / "run")
    assert 100 <= resumed.model.num_timesteps <= killed
    resumed.learn()
    whole, pruning = MODELS[name](), eval(method, dict(vars(train)))
    whole.learn(steps, callback=train.Checkpoint(tmp_path / "whole", pruning, every=100))
    held = [getattr(callback, "masks", {}) for callback in (pruning, resumed.callback.callback)]
    assert_equal(everything(whole, held[0]), everything(resumed.model, held[1]))
    assert resumed.model.num_timesteps == whole.num_timesteps


@pytest.mark.parametrize("name", ["a2c", "dqn"])
def test_a_run_that_stops_at_a_checkpoint_goes_on_as_if_it_had_not(name: str, tmp_path: Path) -> None:
    plain, pruning = MODELS[name](), train.Gradual(sparsity=0.8, every=20)
    plain.learn(320, callback=train.Checkpoint(tmp_path / "a", pruning, every=160))
    resumed = train.resume(tmp_path / "a")
    assert resumed.model.num_timesteps == 160
    resumed.learn()
    assert_equal(everything(plain, pruning.masks), everything(resumed.model, resumed.callback.callback.masks))


def test_callbacks_beside_the_pruning_are_saved_without_the_model(tmp_path: Path) -> None:
    pruning = train.Gradual(sparsity=0.8, every=20)
    model = MODELS["dqn"]()
    model.learn(
        320, callback=train.Checkpoint(tmp_path, CallbackList([pruning, StopTrainingOnMaxEpisodes(1000)]), every=160)
    )
    resumed = train.resume(tmp_path)
    assert (newest(tmp_path) or tmp_path).joinpath("state.pkl").stat().st_size < 50_000
    resumed.learn()
    assert_equal(
        everything(model, pruning.masks), everything(resumed.model, resumed.callback.callback.callbacks[0].masks)
    )


def test_statistics_and_state_dependent_exploration_are_kept(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Follow(True)] * 2))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, use_sde=True, sde_sample_freq=-1, seed=0)
    pruning = train.SET(sparsity=0.8, every=20)
    model.learn(320, callback=train.Checkpoint(tmp_path, pruning, every=128))
    resumed = train.resume(tmp_path)
    assert resumed.model.num_timesteps == 256
    resumed.learn()
    assert_equal(everything(model, pruning.masks), everything(resumed.model, resumed.callback.callback.masks))
    assert np.array_equal(model.get_env().obs_rms.mean, resumed.model.get_env().obs_rms.mean)


def test_only_the_newest_is_kept_and_another_run_is_not_mixed_in(tmp_path: Path) -> None:
    MODELS["dqn"]().learn(250, callback=train.Checkpoint(tmp_path, train.Gradual(sparsity=0.8), every=100))
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000200"]
    assert newest(tmp_path) == tmp_path / "step_000000000200"
    with pytest.raises(RunError, match="holds checkpoints of another run"):
        MODELS["dqn"]().learn(50, callback=train.Checkpoint(tmp_path, train.Gradual(sparsity=0.8)))
    (tmp_path / "step_000000000200" / "state.pkl").write_bytes(b"half")
    with pytest.raises(RunError, match="cannot be read"):
        train.resume(tmp_path)


def test_half_a_file_says_which_checkpoint_is_damaged(tmp_path: Path) -> None:
    MODELS["dqn"]().learn(250, callback=train.Checkpoint(tmp_path, train.Gradual(sparsity=0.8), every=100))
    for file in (tmp_path / "step_000000000200").iterdir():
        whole = file.read_bytes()
        for part in (b"", whole[: len(whole) // 2]):
            file.write_bytes(part)
            with pytest.raises(RunError, match="step_000000000200 cannot be read"):
                train.resume(tmp_path)
        file.write_bytes(whole)
    train.resume(tmp_path)


class Unpicklable(Follow):
    """Holds what no pickle can."""

    def __init__(self) -> None:
        super().__init__()
        self.world = (number for number in range(3))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="every=0"):
        train.Checkpoint(tmp_path, every=0)
    with pytest.raises(RunError, match="holds no checkpoint"):
        train.resume(tmp_path / "nowhere")
    env: gym.Env[Any, Any] = Unpicklable()
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32)
    with pytest.raises(RunError, match="Environments must be picklable"):
        model.learn(128, callback=train.Checkpoint(tmp_path / "run", train.Static(sparsity=0.5), every=32))
    assert not (tmp_path / "run").exists()  # refused before the first step


def held_at_500(env: str, folder: Path) -> Any:
    """Train a small model for 500 steps with checkpoints."""
    model = PPO("MlpPolicy", env, n_steps=100, batch_size=50, n_epochs=1, seed=0, policy_kwargs={"net_arch": [16]})
    model.learn(500, callback=train.Checkpoint(folder, train.Static(sparsity=0.5), every=250))
    return model


@pytest.mark.parametrize("env", ["Hopper-v5", "Ant-v5"])
def test_a_simulation_of_mujoco_goes_on_in_the_middle_of_an_episode(env: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    model = held_at_500(env, tmp_path)
    resumed = train.resume(tmp_path)
    assert resumed.model.num_timesteps == 300
    resumed.learn()
    assert_equal(everything(model, {}), everything(resumed.model, {}))


def test_what_cannot_be_saved_within_an_episode_begins_new_ones_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    with pytest.warns(LearnWarning, match="LunarLander cannot be saved in the middle of an episode"):
        held_at_500("LunarLander-v3", tmp_path)
    beginning, _ = gym.make("LunarLander-v3").reset(seed=0)
    found = []
    for folder in ("a", "b"):
        shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}_{folder}"))
        resumed = train.resume(tmp_path.with_name(f"{tmp_path.name}_{folder}"))
        resumed.learn()
        assert resumed.model.num_timesteps == 500
        found.append(everything(resumed.model, resumed.callback.callback.masks))
    assert_equal(*found)
    resumed = train.resume(tmp_path)
    _restore(resumed.model, resumed.callback.live or {})
    assert not np.allclose(resumed.model._last_obs, beginning)  # another episode than the run's first


def test_no_target_reaches_over_an_episode_that_was_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    for optimized in (False, True):
        options = {"handle_timeout_termination": False} if optimized else {}
        model = DQN(
            "MlpPolicy", "LunarLander-v3", learning_starts=10, buffer_size=500, batch_size=8, seed=0,
            optimize_memory_usage=optimized, replay_buffer_kwargs=options, policy_kwargs={"net_arch": [16]},
        )  # fmt: skip
        folder = tmp_path / str(optimized)
        with pytest.warns(LearnWarning, match="LunarLander cannot be saved"):
            model.learn(120, callback=train.Checkpoint(folder, train.Static(sparsity=0.5), every=100))
        resumed = train.resume(folder)
        at = resumed.model.replay_buffer.pos - 1
        resumed.learn()
        buffer = resumed.model.replay_buffer
        assert at == 99
        assert bool((buffer.dones if optimized else buffer.timeouts)[at])


class Counting(gym.Wrapper[Any, Any, Any, Any], EzPickle):
    """A wrapper whose pickle forgets what it counts."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        EzPickle.__init__(self, env)
        super().__init__(env)


class Heavier(HopperEnv):
    """Changes its model when an episode begins."""

    def reset_model(self) -> Any:
        self.model.body_mass[1] = self.np_random.uniform(3.0, 9.0)
        self.itself = self.reset_model
        return super().reset_model()


def test_a_model_of_mujoco_that_changes_is_kept(tmp_path: Path) -> None:
    model = PPO(
        "MlpPolicy", Heavier(), n_steps=100, batch_size=50, n_epochs=1, seed=0, policy_kwargs={"net_arch": [16]}
    )
    model.learn(500, callback=train.Checkpoint(tmp_path, every=250))
    resumed = train.resume(tmp_path)
    simulation = resumed.model.env.envs[0].unwrapped
    assert simulation.mujoco_renderer.data is simulation.data
    resumed.learn()
    assert_equal(everything(model, {}), everything(resumed.model, {}))


def test_a_wrapper_that_forgets_is_told_of(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Counting(Follow()), n_steps=32, batch_size=32, seed=0)
    with pytest.warns(LearnWarning, match="Counting cannot be saved in the middle of an episode"):
        model.learn(96, callback=train.Checkpoint(tmp_path, every=64))
    assert train.resume(tmp_path).learn().num_timesteps == 96


class Short(CartPoleEnv, EzPickle):
    """Ends after every fifth step, and forgets its state in a pickle."""

    def __init__(self) -> None:
        EzPickle.__init__(self)
        super().__init__()
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.steps == 5, False, info


def test_an_episode_that_was_over_stays_over(tmp_path: Path) -> None:
    options = {"learning_starts": 10, "batch_size": 8, "buffer_size": 500, "policy_kwargs": {"net_arch": [8]}}
    for every, over in ((100, True), (104, False)):
        model = DQN("MlpPolicy", Monitor(Short(), allow_early_resets=False), **options)
        folder = tmp_path / str(every)
        with pytest.warns(LearnWarning, match="Short cannot be saved"):
            model.learn(110, callback=train.Checkpoint(folder, every=every))
        resumed = train.resume(folder)
        last = resumed.model.replay_buffer.pos - 1
        was = float(resumed.model.replay_buffer.dones[last, 0])
        resumed.learn()
        buffer = resumed.model.replay_buffer
        assert was == float(over)
        assert float(buffer.timeouts[last, 0]) == 1.0 - was
        assert float(buffer.dones[last, 0]) == was


def test_a_recurrent_run_goes_on(tmp_path: Path) -> None:
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=0)
    model.learn(256, callback=train.Checkpoint(tmp_path, train.Static(sparsity=0.5), every=128))
    resumed = train.resume(tmp_path)
    resumed.learn()
    assert_equal(everything(model, {}), everything(resumed.model, {}))


def test_hindsight_goes_on(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=False, max_steps=3)
    model = DQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=20, batch_size=8, seed=0,
        policy_kwargs={"net_arch": [16, 16]},
    )  # fmt: skip
    model.learn(150, callback=train.Checkpoint(tmp_path, train.Static(sparsity=0.5), every=100))
    resumed = train.resume(tmp_path)
    resumed.learn()
    assert_equal(everything(model, {}), everything(resumed.model, {}))
