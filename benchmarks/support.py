"""Take agents over, cut them, and let their own library load them and train on; print the table of docs/agents.md.

    python benchmarks/support.py --agents FOLDER > docs/agents.md

Every cell is measured in this run. What does not hold is printed as ✗ with the error's first line below the table. Rows
without a folder's name are agents that are trained for a moment, those of tests/agents/test_sb3_table.py; FOLDER holds
agents of DLR-RM/rl-trained-agents in their own layout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import prunerl
from prunerl import environments, heads, masks
from prunerl.agents.sb3_algorithms import ALGORITHMS
from prunerl.remove import remove
from prunerl.rollout import rollout
from prunerl.trace import masked_forward, unit_groups, weight_groups
from prunerl.types import Agent, EnvSpec
from prunerl.visits import inputs, trace_policy

TESTS = Path(__file__).parents[1] / "tests" / "agents"
TODAY = {"LunarLander-v2": "LunarLander-v3", "Hopper-v3": "Hopper-v5", "HalfCheetah-v3": "HalfCheetah-v5"}
CELLS = ("trace", "prune units", "prune weights", "save → load in its own library", "resume", "exactness")

ALONE = """
import importlib, json, sys
sys.modules["prunerl"] = None  # from here on its import fails
import gymnasium as gym, numpy as np, torch
torch.set_num_threads(1)
case = json.loads(sys.argv[1])
sys.path += case["path"]
for name in case["imports"]:
    importlib.import_module(name)
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
env = DummyVecEnv([lambda: gym.make(case["env"], **case["kwargs"])])
if case["statistics"]:
    env = VecNormalize.load(case["statistics"], env)
seen = np.load(case["seen"], allow_pickle=True).item()["seen"]
if case["statistics"]:
    seen = env.normalize_obs(seen)
cls = getattr(importlib.import_module(case["package"]), case["title"])
model = cls.load(case["zip"], env=env, device="cpu")
actions, state = [], None
for _ in range(case["turns"]):
    made, state = model.predict(seen, state=state, deterministic=True)
    actions.append(made)
np.save(case["actions"], np.stack(actions))
print("loads")
if hasattr(model, "batch_size") and hasattr(model, "replay_buffer"):
    model.learning_starts = min(model.learning_starts, 8)
    model.gradient_steps, model.train_freq = 2, type(model.train_freq)(4, model.train_freq.unit)
if hasattr(model, "target_update_interval"):
    model.target_update_interval = min(model.target_update_interval, 50)
before = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
model.learn(case["steps"], reset_num_timesteps=False)
still = [n for n, p in model.policy.named_parameters() if p.equal(before[n]) and p.requires_grad]
print("trains" if not still else f"does not move {still}")
"""


@dataclass
class Row:
    """One agent's cells, and what went wrong."""

    name: str
    policy: str
    cells: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def measure(self, cell: str, measured: Callable[[], str]) -> None:
        """Fill a cell; what raises is ✗."""
        try:
            self.cells[cell] = measured()
        except Exception as error:  # whatever fails is what the table is to show
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.cells[cell] = "✗"
            self.errors.append(f"{self.name}, {cell}: {type(error).__name__}: {first[:200]}")


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=Path, required=True, help="folder of the Zoo's trained agents")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(TESTS))
    start = time.perf_counter()
    rows = [row for row in (*zoo_rows(given.agents, given.only), *trained_rows(given.only), *others(given.only))]
    print((Path(__file__).with_suffix(".md")).read_text().rstrip() + "\n")
    print("| agent | policy | " + " | ".join(CELLS) + " |\n|" + "---|" * (len(CELLS) + 2))
    for row in rows:
        print(f"| {row.name} | {row.policy} | " + " | ".join(row.cells.get(c, "—") for c in CELLS) + " |")
    failed = [error for row in rows for error in row.errors]
    holds = sum(c not in ("✗", "—") for r in rows for c in r.cells.values())
    print(f"\n{len(rows)} agents, {holds} cells hold, {len(failed)} do not. {time.perf_counter() - start:.0f} s.")
    if failed:
        print("".join(f"\n- {error}" for error in failed))


def zoo_rows(folder: Path, only: str) -> list[Row]:
    """Measure the trained agents of the Zoo."""
    rows = []
    for file in sorted(folder.glob("*/*_1/*.zip")):
        algorithm, env = file.parts[-3], file.stem
        name = f"{algorithm}/{env}"
        if only in name:
            agent = prunerl.load(file, env=TODAY.get(env, env))
            rows.append(measured(name, "MlpPolicy", agent, steps=300))
    return rows


def trained_rows(only: str) -> list[Row]:
    """Measure one agent of each algorithm and policy, trained for a moment."""
    import test_sb3_table as table

    rows = []
    for name, case in table.CASES.items():
        if only in name:
            rows.append(measured(name, case.name, table.taken(name), steps=case.steps))
    return rows


def measured(name: str, policy: str, agent: Any, *, steps: int) -> Row:
    """Cut a Stable-Baselines3 agent by units and by weights, and give it back to its library."""
    row, found = Row(name, policy), {}
    played = rollout(agent.policy, agent.env, range(4), record=True, workers=1)
    states = inputs(agent.policy, played)[:64]
    row.measure("trace", lambda: traced(agent, states, found))
    row.measure("prune units", lambda: cut_units(agent, states, found))
    row.measure("prune weights", lambda: cut_weights(agent, states, found, steps))
    with tempfile.TemporaryDirectory() as folder:
        row.measure("save → load in its own library", lambda: alone(found["small"], Path(folder), steps, found))
    row.measure("resume", lambda: resumed(found))
    row.measure("exactness", lambda: exact(found))
    print(name, row.cells, file=sys.stderr)
    return row


def traced(agent: Agent, states: torch.Tensor, found: dict[str, Any]) -> str:
    """Trace the policy."""
    found["trace"] = trace_policy(agent.policy, states)
    groups = unit_groups(found["trace"], agent.state.tensors)
    whole = sum("output" not in reason for reason in found["trace"].kept_whole.values())
    return f"{len(found['trace'].layers)} layers, {sum(g.units for g in groups)} units" + (
        f", {whole} kept whole" if whole else ""
    )


def cut_units(agent: Any, states: torch.Tensor, found: dict[str, Any]) -> str:
    """Remove half of the units of each group."""
    groups = unit_groups(found["trace"], agent.state.tensors)
    keep = {g.name: torch.arange(g.units) % 2 == 0 for g in groups}
    found["small"], found["states"] = agent, states
    if not groups:
        return "no hidden units"
    state = remove(found["trace"], agent.state, groups, keep, ties=agent.ties, observations=states)
    expected = masked_forward(found["trace"], agent.state.tensors, states, groups, keep)
    found["small"] = agent.with_state(state)
    gap = float((found["small"].policy.network(states) - expected).abs().max())
    before, after = (sum(t.numel() for t in a.state.tensors.values()) for a in (agent, found["small"]))
    return f"{before:,} → {after:,}, {gap:.0e} from masked"


def cut_weights(agent: Any, states: torch.Tensor, found: dict[str, Any], steps: int) -> str:
    """Remove half of the single weights, train on, and count what is still zero."""
    groups = weight_groups(found["trace"], agent.state)
    keep = {g.name: agent.state.tensors[g.name].abs().flatten().argsort().argsort() >= g.units // 2 for g in groups}
    masked = agent.with_state(remove(found["trace"], agent.state, groups, keep, ties=agent.ties, observations=states))
    after = masked.learn(min(steps, 64), seed=0)
    gone = sum(int((~m).sum()) for m in after.state.masks.values())
    alive = sum(int((after.state.tensors[n] * ~m).count_nonzero()) for n, m in after.state.masks.items())
    if alive or not gone:
        raise AssertionError(f"{alive} of {gone} removed weights came back in training")
    return f"{gone:,} held at 0"


def alone(small: Any, folder: Path, steps: int, found: dict[str, Any]) -> str:
    """Save an agent, and load it in a process that cannot import this package."""
    algorithm = ALGORITHMS[small.algorithm]
    small.save(folder / "agent.zip")
    env = environments.make(small.env)
    env.observation_space.seed(0)
    seen = [env.observation_space.sample() for _ in range(9)]
    env.close()
    batch = {k: np.stack([o[k] for o in seen]) for k in seen[0]} if isinstance(seen[0], dict) else np.stack(seen)
    np.save(folder / "seen.npy", np.array({"seen": batch}, dtype=object), allow_pickle=True)
    statistics = folder / "agent_vecnormalize.pkl"
    case = {
        "zip": str(folder / "agent.zip"),
        "package": algorithm.package,
        "title": algorithm.title,
        "env": small.env.id,
        "kwargs": dict(small.env.kwargs),
        "statistics": str(statistics) if statistics.is_file() else "",
        "seen": str(folder / "seen.npy"),
        "actions": str(folder / "actions.npy"),
        "turns": 3 if small.policy.memory else 1,
        "steps": steps,
        "path": [str(TESTS)],
        "imports": ["toy_env"],
    }
    script = [sys.executable, "-W", "ignore", "-c", ALONE, json.dumps(case)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder, env=os.environ, check=False)
    found["printed"], found["error"] = done.stdout, done.stderr.strip().splitlines()[-1:]
    if "loads" not in done.stdout:
        raise AssertionError(f"{algorithm.title}.load fails: {found['error']}")
    packed = np.stack([environments.pack(small.spaces[0], one) for one in seen])
    memory = heads.empty_memory(small.policy, len(seen))
    equal = []
    for wanted in np.load(folder / "actions.npy"):
        got, memory = heads.step(small.policy, packed, memory)
        equal.append(np.array_equal(got, wanted))
    found["equal"] = all(equal)
    return f"{algorithm.title}.load"


def resumed(found: dict[str, Any]) -> str:
    """Say whether ``learn`` went on and moved every parameter."""
    if "trains" not in found["printed"]:
        raise AssertionError(found["printed"].replace("loads", "").strip() or str(found["error"]))
    return "learn() moves every parameter"


def exact(found: dict[str, Any]) -> str:
    """Say whether the library's actions are ours."""
    if not found["equal"]:
        raise AssertionError("the library acts differently")
    return "bit-equal actions"


def others(only: str) -> list[Row]:
    """Measure a plain PyTorch module and the Keras network of the founding article."""
    rows = []
    if only in "torch.nn.Module":
        rows.append(module_row())
    if only in "Keras":
        rows.append(keras_row())
    return rows


def module_row() -> Row:
    """Measure a module with the two-line adapter."""
    from safetensors.torch import load_file

    from prunerl.agents.resize import resize

    row, found = Row("torch.nn.Module", "MLP 64 × 64, logits"), {}
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    agent = prunerl.from_module(net, env="CartPole-v1", head="logits", optimizer=optimizer)
    states = inputs(agent.policy, rollout(agent.policy, agent.env, range(4), record=True, workers=1))[:64]
    row.measure("trace", lambda: traced(agent, states, found))
    row.measure("prune units", lambda: cut_units(agent, states, found))

    def weights() -> str:
        groups = weight_groups(found["trace"], agent.state)
        keep = {g.name: agent.state.tensors[g.name].abs().flatten().argsort().argsort() >= g.units // 2 for g in groups}
        masked = agent.with_state(remove(found["trace"], agent.state, groups, keep, ties=(), observations=states))
        live = masked.module()
        again = masked.optimizer(live)
        held = masks.hold(again, dict(live.named_parameters()), masked.state.masks)
        for _ in range(5):
            again.zero_grad()
            live(states).square().sum().backward()
            again.step()
        held.remove()
        gone = sum(int((~m).sum()) for m in masked.state.masks.values())
        alive = sum(int((dict(live.named_parameters())[n] * ~m).count_nonzero()) for n, m in masked.state.masks.items())
        if alive:
            raise AssertionError(f"{alive} of {gone} removed weights came back in training")
        return f"{gone:,} held at 0"

    def load_plainly() -> str:
        with tempfile.TemporaryDirectory() as folder:
            found["small"].save(Path(folder) / "small.safetensors")
            tensors = load_file(Path(folder) / "small.safetensors")
        other = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        resize(other, {n: tuple(t.shape) for n, t in tensors.items()})
        other.load_state_dict(tensors)
        found["equal"] = torch.equal(other(states), found["small"].policy.network(states))
        return "load_state_dict after resize"

    def resume() -> str:
        live = found["small"].module()
        again = found["small"].optimizer(live)
        before = {n: p.detach().clone() for n, p in live.named_parameters()}
        live(states).square().sum().backward()
        again.step()
        still = [n for n, p in live.named_parameters() if p.equal(before[n])]
        if still:
            raise AssertionError(f"does not move {still}")
        return "one update moves every parameter"

    row.measure("prune weights", weights)
    row.measure("save → load in its own library", load_plainly)
    row.measure("resume", resume)
    row.measure("exactness", lambda: exact(found).replace("actions", "outputs"))
    return row


KERAS = """
import os, sys
sys.modules["prunerl"] = None
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
seen = np.load(sys.argv[2])
np.save(sys.argv[3], np.argmax(np.asarray(model.predict(seen, verbose=0)), axis=1))
print("loads")
before = [np.array(w) for w in model.get_weights()]
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(seen, np.arange(len(seen)) % 2, verbose=0)
print("trains" if all((a != b).any() for a, b in zip(before, model.get_weights())) else "a weight does not move")
"""


HELD = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
from prunerl.agents.keras_masks import hold_zeros
model = keras.saving.load_model(sys.argv[1])
seen = np.load(sys.argv[2])
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(seen, np.arange(len(seen)) % 2, epochs=5, verbose=0, callbacks=[hold_zeros(model)])
print(sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim == 2))
"""


def keras_row() -> Row:
    """Measure the founding article's network, written and loaded by Keras."""
    row, found = Row("Keras 3", "4-64-64-64-64-2, ReLU, softmax"), {}
    with tempfile.TemporaryDirectory() as folder:
        dense, small, seen, actions = (str(Path(folder) / n) for n in ("a.keras", "b.keras", "seen.npy", "actions.npy"))
        make = (
            "import os, sys; os.environ['KERAS_BACKEND'] = 'torch'; import keras; keras.utils.set_random_seed(0); "
            "d = keras.layers.Dense; keras.Sequential([keras.Input((4,)), *[d(64, 'relu') for _ in range(4)], "
            "d(2, 'softmax')]).save(sys.argv[1])"
        )
        subprocess.run([sys.executable, "-W", "ignore", "-c", make, dense], check=True, capture_output=True)
        agent = prunerl.load(dense, env=EnvSpec("CartPole-v1"))
        states = inputs(agent.policy, rollout(agent.policy, agent.env, range(4), record=True, workers=1))[:64]
        row.measure("trace", lambda: traced(agent, states, found))
        row.measure("prune units", lambda: cut_units(agent, states, found))

        def weights() -> str:
            groups = weight_groups(found["trace"], agent.state)
            keep = {
                g.name: agent.state.tensors[g.name].abs().flatten().argsort().argsort() >= g.units // 2 for g in groups
            }
            masked = agent.with_state(remove(found["trace"], agent.state, groups, keep, ties=(), observations=states))
            masked.save(small)
            np.save(seen, states.numpy())
            script = [sys.executable, "-W", "ignore", "-c", HELD, small, seen]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            gone = sum(int((~m).sum()) for m in masked.state.masks.values())
            if done.stdout.split() != [str(gone)]:
                raise AssertionError(f"{gone} removed, {done.stdout.strip()} are zero {done.stderr.strip()[-200:]}")
            return f"{gone:,} held at 0"

        row.measure("prune weights", weights)

        def load_plainly() -> str:
            found["small"].save(small)
            np.save(seen, states.numpy())
            script = [sys.executable, "-W", "ignore", "-c", KERAS, small, seen, actions]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            found["printed"], found["error"] = done.stdout, done.stderr.strip().splitlines()[-1:]
            if "loads" not in done.stdout:
                raise AssertionError(f"Keras does not load it: {found['error']}")
            found["equal"] = np.array_equal(np.load(actions), heads.act(found["small"].policy, states.numpy()))
            return "keras.saving.load_model"

        row.measure("save → load in its own library", load_plainly)
        row.measure("resume", lambda: resumed(found).replace("learn()", "fit()"))
        row.measure("exactness", lambda: exact(found))
    return row


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
