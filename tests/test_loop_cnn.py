"""An agent that sees images goes all the way: cut, repaired, saved, and used where this package is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from loky import get_reusable_executor
from stable_baselines3 import PPO
from torch import nn

import prunerl
from prunerl import decide, heads
from prunerl.cost import size
from prunerl.task import LESSON_BYTES, LESSONS, latest
from prunerl.trace import trace, unit_groups

ENV = "catch:Catch-v0"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ALONE = """
import sys
sys.modules["prunerl"] = None
import numpy as np
from stable_baselines3 import PPO
model = PPO.load(sys.argv[1], device="cpu")
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), deterministic=True)[0])
"""


def taught(env: gym.Env[Any, Any]) -> PPO:
    """Show an agent which way the ball is, which takes seconds; to find out for itself would take minutes."""
    model = PPO("CnnPolicy", env, n_steps=64, learning_rate=1e-3, seed=0, device="cpu")
    images, moves = [], []
    env.action_space.seed(0)
    for seed in range(20):
        image, over = env.reset(seed=seed)[0], False
        while not over:
            images.append(image)
            moves.append(1 + np.sign(env.unwrapped.column - env.unwrapped.paddle - 1))  # type: ignore[attr-defined]
            image, _, over, _, _ = env.step(env.action_space.sample())
    seen, wanted = torch.as_tensor(np.stack(images)), torch.as_tensor(np.stack(moves))
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = torch.randint(len(seen), (128,), generator=generator)
        _, log_probability, _ = model.policy.evaluate_actions(seen[batch], wanted[batch])
        model.policy.optimizer.zero_grad()
        (-log_probability.mean()).backward()
        model.policy.optimizer.step()
    return model


@pytest.mark.slow
def test_a_convolutional_agent_is_pruned_and_acts_alike_in_plain_sb3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    get_reusable_executor().shutdown(wait=True, kill_workers=True)  # workers that run already have the old path
    env = gym.make(ENV, disable_env_checker=True)
    taught(env).save(tmp_path / "dense.zip")
    dense = prunerl.load(tmp_path / "dense.zip", env=ENV)
    result = prunerl.prune(
        dense,
        structure="units",
        schedule="one_shot",
        sparsity=0.5,
        repair=("least_squares",),
        episodes=10,
        compare=False,
        out=tmp_path / "run",
    )
    before, after = result.report.dense.size, result.report.pruned.size
    assert after.parameters <= 0.5 * before.parameters
    assert after.macs < before.macs
    assert all(0 < now < then for now, then in zip(after.units, before.units, strict=True))
    assert [s.name for s in result.report.rounds[0].stages][:2] == ["cut", "least_squares"]

    images = np.stack([env.observation_space.sample() for _ in range(100)] + [env.reset(seed=s)[0] for s in range(50)])
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("run/agent.zip", "images.npy", "actions.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True, cwd=tmp_path)
    actions = np.load(tmp_path / "actions.npy")
    assert len(set(actions.tolist())) > 1
    np.testing.assert_array_equal(actions, heads.act(result.agent.policy, images))


def test_macs_of_a_convolution_count_every_place() -> None:
    """The first kernel is applied at 16 places, the second at 4, the third at one."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2))
    x = torch.zeros(2, 1, 6, 6)
    traced, tensors = trace(network, x), network.state_dict()
    assert size(traced, tensors).macs == 4 * 9 * 16 + 4 * 4 * 9 * 4 + 4 * 2 * 4
    groups = [g for g in unit_groups(traced, tensors) if g.units == 4]
    assert len(groups) == 2
    ranked = [torch.tensor([8.0, 6.0, 4.0, 2.0]), torch.tensor([7.0, 5.0, 3.0, 1.0])]
    first = {s.tensor: g for g in groups for s in g.slices}["0.weight"]
    scores = {g.name: ranked[0 if g is first else 1] for g in groups}
    decision = decide.by_sparsity(groups, scores, 0.5, count="macs", traced=traced, tensors=tensors)
    # Of 1184 at most 592: 2 and 2 channels cost 448, 3 and 2 would cost 664.
    assert {name: int(keep.sum()) for name, keep in decision.items()} == {g.name: 2 for g in groups}


def test_remembered_states_are_bounded_in_number_and_images_in_bytes() -> None:
    flat, images = torch.zeros(2 * LESSONS, 1), torch.zeros(6000, 4, 84, 84, dtype=torch.uint8)
    flat[-1] = 1.0
    kept = latest(flat)
    assert len(kept) == LESSONS
    assert kept[-1] == 1.0
    assert LESSON_BYTES - images[0].nbytes < latest(images).nbytes <= LESSON_BYTES
    assert len(latest(images[:0])) == 0
