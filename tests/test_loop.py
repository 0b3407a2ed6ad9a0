"""A run ends at a small agent with its proof, in the same place every time, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import prunerl
from prunerl import files
from prunerl.agents.sb3 import SB3Agent
from prunerl.cost import size, stored
from prunerl.errors import BudgetError, LoadError, NameUnknownError, PruneError, RunError
from prunerl.heads import prepare
from prunerl.report import from_json, schema
from prunerl.trace import trace
from prunerl.types import Report, Round

NAME = "ppo/CartPole-v1"
BRIEFLY: dict[str, Any] = {"env": "CartPole-v1", "episodes": 20, "compare": False}

VOLATILE = {"seconds", "latency", "command"}


def essence(value: Any) -> Any:
    """Return plain data without what may differ between equal runs: times."""
    if isinstance(value, dict):
        return {key: essence(item) for key, item in value.items() if key not in VOLATILE}
    return [essence(item) for item in value] if isinstance(value, list | tuple) else value


def assert_equal(first: prunerl.Result, second: prunerl.Result) -> None:
    """Check that two runs ended with bit-equal tensors after the same rounds."""
    a, b = first.agent.state, second.agent.state
    assert list(a.tensors) == list(b.tensors)
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)
    assert list(a.moments) == list(b.moments)
    assert all(torch.equal(m, b.moments[n][k]) for n, entries in a.moments.items() for k, m in entries.items())
    assert list(a.masks) == list(b.masks)
    assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
    assert essence(schema.plain(first.report)) == essence(schema.plain(second.report))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def path(zip_of: Callable[[str], Path]) -> Path:
    return zip_of(NAME)


@pytest.fixture(scope="module")
def run(path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[prunerl.Result, Path]:
    """A run that nothing disturbed, and its folder."""
    out = tmp_path_factory.mktemp("loop") / "run"
    return prunerl.prune(path, out=out, **BRIEFLY), out


def test_cartpole_needs_at_most_twelve_parameters(run: tuple[prunerl.Result, Path]) -> None:
    report = run[0].report
    assert report.dense.size.parameters == 4610
    assert report.pruned.size.parameters <= 12
    assert report.pruned.verdict.satisfied
    assert report.pruned.verdict.tolerance == 0.05
    assert len(report.pruned.verdict.pruned) == 20


def test_the_report_is_true_of_the_agent(run: tuple[prunerl.Result, Path]) -> None:
    result = run[0]
    observations = prepare(result.agent.policy, np.zeros((3, 4), np.float32))
    traced = trace(result.agent.policy.network, observations)
    assert size(traced, result.agent.state.tensors) == result.report.pruned.size
    first, episodes = result.report.pruned.verdict.seeds
    again = prunerl.rollout.rollout(result.agent.policy, result.agent.env, range(first, first + episodes))
    assert again.returns == result.report.pruned.verdict.pruned
    passed = [r for r in result.report.rounds if r.satisfied]
    assert result.report.pruned.size in [r.size for r in passed]
    assert str(result.report.pruned.size.parameters) in str(result)


def test_the_result_is_a_plain_zip(run: tuple[prunerl.Result, Path]) -> None:
    result, out = run
    model = PPO.load(out / "agent.zip", device="cpu")
    observations = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    wanted = prunerl.heads.act(result.agent.policy, observations)
    assert np.array_equal(model.predict(observations, deterministic=True)[0], wanted)
    assert sum(p.numel() for p in model.policy.mlp_extractor.policy_net.parameters()) <= 12


def test_confirmation_never_sees_the_episodes_of_selection(run: tuple[prunerl.Result, Path]) -> None:
    report = run[0].report
    selected = {seed for r in report.rounds for s in r.stages for seed in spread(s.verdict.seeds)}
    assert selected
    assert not selected & set(spread(report.pruned.verdict.seeds))
    assert report.dense.verdict.seeds == report.pruned.verdict.seeds


def spread(seeds: tuple[int, int]) -> range:
    return range(seeds[0], seeds[0] + seeds[1])


def test_equal_seeds_give_equal_runs_with_and_without_a_folder(path: Path, run: tuple[prunerl.Result, Path]) -> None:
    before = torch.get_rng_state().clone()
    again = prunerl.prune(path, **BRIEFLY)
    assert_equal(run[0], again)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dense_agent_is_left_as_it_was(
    load_agent: Callable[[str], SB3Agent], run: tuple[prunerl.Result, Path]
) -> None:
    agent = load_agent(NAME)
    before = {n: t.clone() for n, t in agent.state.tensors.items()}
    result = prunerl.prune(agent, **{**BRIEFLY, "env": None})
    assert all(torch.equal(agent.state.tensors[n], t) for n, t in before.items())
    assert all(torch.equal(result.agent.state.tensors[n], t) for n, t in run[0].agent.state.tensors.items())
    assert len(result.report.agent) < 200  # a name, not the agent's contents


def test_a_finished_run_returns_its_report_and_computes_nothing(path: Path, run: tuple[prunerl.Result, Path]) -> None:
    result, out = run
    before, lines = files_in(out), []
    again = prunerl.prune(path, out=out, observer=lambda line, made: lines.append(line), **BRIEFLY)
    assert lines == []
    assert again.report == from_json((out / "report.json").read_text())
    assert again.report.pruned == result.report.pruned
    assert all(torch.equal(again.agent.state.tensors[n], t) for n, t in result.agent.state.tensors.items())
    assert files_in(out) == before


def test_an_interrupted_run_ends_as_if_it_had_not_stopped(
    path: Path, run: tuple[prunerl.Result, Path], tmp_path: Path
) -> None:
    seen: list[int] = []

    def interrupt(line: str, made: Round | None) -> None:
        if made is not None:
            seen.append(made.index)
            if made.index == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunerl.prune(path, out=tmp_path / "run", observer=interrupt, **BRIEFLY)
    assert seen == [1, 2]
    assert not (tmp_path / "run" / "report.json").exists()
    kept = files_in(tmp_path / "run")
    again = prunerl.prune(path, out=tmp_path / "run", **BRIEFLY)
    assert_equal(run[0], again)
    assert kept.items() <= files_in(tmp_path / "run").items()  # what was finished was not computed again


KILLED = """
import sys, prunerl
def observer(line, made):
    if made is not None:
        print("round", made.index, flush=True)
prunerl.prune(sys.argv[1], out=sys.argv[2], env="CartPole-v1", episodes=20, compare=False, observer=observer)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX process groups")
def test_a_killed_run_ends_as_if_it_had_not_stopped(
    path: Path, run: tuple[prunerl.Result, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), str(out)]
    # A session of its own, so that its workers die with it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"round 1\n"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    assert_equal(run[0], prunerl.prune(path, out=out, **BRIEFLY))


def test_a_full_disk_leaves_what_was_finished_and_the_run_goes_on_later(
    path: Path, run: tuple[prunerl.Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls, out = os.replace, [0], tmp_path / "run"

    def filling(*paths: Any) -> None:
        calls[0] += 1
        if calls[0] > 3:  # the settings, the dense agent and the first round fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", filling)
        with pytest.raises(RunError, match=r"Cannot write .*: No space left on device\. Free some space"):
            prunerl.prune(path, out=out, **BRIEFLY)
    kept = files_in(out)
    assert len(kept) == 3
    assert not any(name.endswith(".tmp") for name in kept)
    assert_equal(run[0], prunerl.prune(path, out=out, **BRIEFLY))
    assert kept.items() <= files_in(out).items()


def test_the_folder_of_a_run_loads_with_its_environment(run: tuple[prunerl.Result, Path]) -> None:
    result, folder = run
    again = prunerl.load(folder)
    assert again.env == result.agent.env
    assert all(torch.equal(t, again.state.tensors[n]) for n, t in result.agent.state.tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"its seed is 0, now 1"),
        ({"tolerance": 0.1}, r"its tolerance is 0\.05, now 0\.1"),
        ({"env": "CartPole-v1", "sparsity": 0.5}, r"its sparsity is None, now 0\.5"),
    ],
)
def test_the_folder_of_another_run_is_refused(
    path: Path, run: tuple[prunerl.Result, Path], change: dict[str, Any], message: str
) -> None:
    before = files_in(run[1])
    with pytest.raises(RunError, match=rf"holds another run \({message}\)\. Choose another with --out"):
        prunerl.prune(path, out=run[1], **{**BRIEFLY, **change})
    assert files_in(run[1]) == before


def test_the_folder_of_another_agent_is_refused(
    zip_of: Callable[[str], Path], run: tuple[prunerl.Result, Path]
) -> None:
    with pytest.raises(RunError, match=r"holds another run \(its agent is"):
        prunerl.prune(zip_of("a2c/CartPole-v1"), out=run[1], **BRIEFLY)


@pytest.mark.parametrize("schedule", ["one_shot", "linear", "cubic"])
@pytest.mark.parametrize("structure", ["units", "weights"])
def test_fixed_schedules_reach_their_sparsity(path: Path, schedule: str, structure: str) -> None:
    options: dict[str, Any] = {**BRIEFLY, "episodes": 10, "repair": ()}
    result = prunerl.prune(path, schedule=schedule, structure=structure, sparsity=0.8, rounds=3, **options)
    rounds = result.report.rounds
    assert len(rounds) == (1 if schedule == "one_shot" else 3)
    assert [r.target for r in rounds] == sorted({r.target for r in rounds})
    assert rounds[-1].target == pytest.approx(0.8)
    state = result.agent.state
    traced = trace(result.agent.policy.network, torch.zeros(3, 4))
    dense, left = result.report.dense.size.parameters, stored(traced, state)
    assert left <= 0.2 * dense  # of single weights less may be left: units that die by it are folded away
    if structure == "weights":
        assert set(state.masks) >= {layer.weight for layer in traced.layers}
        assert all(bool((state.tensors[n][~mask] == 0).all()) for n, mask in state.masks.items())
        assert result.report.pruned.size.nonzeros <= left
    else:
        assert left > 0.17 * dense
        assert result.report.pruned.size == rounds[-1].size
        assert state.masks == {}
        assert left == result.report.pruned.size.parameters


def test_a_floor_under_every_layer_holds_or_is_an_error(path: Path) -> None:
    options: dict[str, Any] = {**BRIEFLY, "episodes": 10, "repair": (), "schedule": "one_shot", "structure": "units"}
    result = prunerl.prune(path, sparsity=0.6, ranking="local", count="units", min_units=40, **options)
    assert result.report.pruned.size.units[:2] == (40, 40)
    assert result.report.settings["min_units"] == 40
    with pytest.raises(BudgetError, match=r"With 40 units in each group the network has .* Set the target to"):
        prunerl.prune(path, sparsity=0.9, min_units=40, **options)


def test_a_run_of_single_weights_is_remembered_too(zip_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The network and its target share masks, also on disk."""
    options: dict[str, Any] = {**BRIEFLY, "episodes": 10, "repair": (), "structure": "weights", "schedule": "one_shot"}
    first = prunerl.prune(zip_of("dqn/CartPole-v1"), sparsity=0.3, out=tmp_path / "run", **options)
    (tmp_path / "run" / "report.json").unlink()
    again = prunerl.prune(zip_of("dqn/CartPole-v1"), sparsity=0.3, out=tmp_path / "run", **options)
    assert_equal(first, again)
    masks = again.agent.state.masks
    assert torch.equal(masks["q_net.q_net.2.weight"], masks["q_net_target.q_net.2.weight"])


def test_a_sparsity_is_the_end_of_the_adaptive_search(path: Path) -> None:
    report: Report = prunerl.prune(path, sparsity=0.5, structure="units", **{**BRIEFLY, "episodes": 10}).report
    assert report.pruned.verdict.satisfied
    assert 0.45 * 4610 < report.pruned.size.parameters <= 0.55 * 4610
    assert all(r.size.parameters >= 0.45 * 4610 for r in report.rounds)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "magnitud"}, NameUnknownError, "Unknown criterion 'magnitud'. Did you mean 'magnitude'?"),
        ({"schedule": "cubik"}, NameUnknownError, "Unknown schedule 'cubik'. Did you mean 'cubic'?"),
        ({"structure": "unit"}, NameUnknownError, "Unknown structure 'unit'. Did you mean 'units'?"),
        ({"repair": ("destill",)}, NameUnknownError, "Unknown repair 'destill'. Did you mean 'distill'?"),
        ({"criterion": "?"}, NameUnknownError, "Choose from:"),
        ({"sparsity": 1.5}, BudgetError, "sparsity must be in [0, 1), got 1.5"),
        ({"sparsity": 1.0}, BudgetError, "sparsity must be in [0, 1), got 1.0"),
        ({"sparsity": -0.1}, BudgetError, "sparsity must be in [0, 1), got -0.1"),
        ({"sparsity": float("nan")}, BudgetError, "sparsity must be in [0, 1), got nan"),
        ({"schedule": "linear"}, BudgetError, "needs a sparsity"),
        ({"tolerance": 0.0}, BudgetError, "tolerance must be above 0, got 0.0"),
        ({"tolerance": float("nan")}, BudgetError, "tolerance must be above 0, got nan"),
        ({"rounds": 0}, BudgetError, "rounds must be at least 1, got 0"),
        ({"finetune_steps": 0}, BudgetError, "finetune_steps must be at least 1, got 0"),
        ({"min_units": 0}, BudgetError, "min_units must be at least 1, got 0"),
        (
            {"schedule": "linear", "sparsity": 0.5, "rule": "probability", "min_units": 2},
            BudgetError,
            "knows no min_units",
        ),
        ({"seed": -1}, BudgetError, "seed must be at least 0, got -1"),
        ({"episodes": 3}, BudgetError, "episodes must be at least 10"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_before_anything_is_written(
    path: Path, tmp_path: Path, options: dict[str, Any], error: type[PruneError], message: str
) -> None:
    with pytest.raises(error) as raised:
        prunerl.prune(path, out=tmp_path / "run", **{**BRIEFLY, **options})
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_agent_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"No file at .*missing\.zip"):
        prunerl.prune(tmp_path / "missing.zip", out=tmp_path / "run", **BRIEFLY)
    assert list(tmp_path.iterdir()) == []


def test_counted_states_go_all_the_way() -> None:
    """FrozenLake observes a number, which the network sees as one-hot."""
    from stable_baselines3 import DQN

    model = DQN("MlpPolicy", "FrozenLake-v1", policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", buffer_size=100)
    agent = prunerl.load(model, env=prunerl.EnvSpec("FrozenLake-v1", {"is_slippery": False}))
    state = agent.state
    table = {n: t.clone() for n, t in state.tensors.items()}
    # A policy made by hand that reaches the goal: one hidden unit for each action, on in the states that want it.
    moves = torch.tensor([1, 2, 1, 0, 1, 0, 1, 0, 2, 1, 1, 0, 0, 2, 2, 0])
    first, last = torch.zeros(8, 16), torch.zeros(4, 8)
    for action in range(4):
        first[action] = (moves == action).float()
        last[action, action] = 1.0
    for prefix in ("q_net", "q_net_target"):
        table |= {f"{prefix}.q_net.0.weight": first.clone(), f"{prefix}.q_net.0.bias": torch.zeros(8)}
        table |= {f"{prefix}.q_net.2.weight": last.clone(), f"{prefix}.q_net.2.bias": torch.zeros(4)}
    skilled = agent.with_state(dataclasses.replace(state, tensors=table, moments={}))
    result = prunerl.prune(skilled, episodes=20)
    assert result.report.pruned.verdict.satisfied
    assert result.report.pruned.size.parameters < result.report.dense.size.parameters
