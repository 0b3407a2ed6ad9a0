"""Zips are data: whatever they hold, reading one runs no code of theirs and fails, if at all, with a clear error."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from torch import Tensor, nn

import prunerl
from prunerl.agents import inert, sb3_zip
from prunerl.errors import EnvironmentFailure, LoadError, PruneError, SpaceError, TrustError

TINY: dict[str, Any] = {"device": "cpu", "seed": 0}


class Cubed(nn.Module):
    """An activation that PyTorch does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x * x


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of a PPO agent of today with four hidden units."""
    path = tmp_path_factory.mktemp("small") / "small.zip"
    model = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, policy_kwargs={"net_arch": [4]}, **TINY
    )
    model.learn(16).save(path)
    return path


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, contents: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def changed(source: Path, target: Path, **settings: Any) -> Path:
    """Write the zip anew with other JSON settings."""
    contents = entries(source)
    data = {**json.loads(contents["data"]), **settings}
    return written(target, {**contents, "data": json.dumps(data).encode()})


def with_tensors(
    source: Path, target: Path, change: Callable[[dict[str, Any]], Any], entry: str = "policy.pth"
) -> Path:
    contents = entries(source)
    tensors = torch.load(io.BytesIO(contents[entry]), weights_only=True)
    buffer = io.BytesIO()
    torch.save(change(tensors), buffer)
    return written(target, {**contents, entry: buffer.getvalue()})


def pickled(value: Any) -> dict[str, str]:
    return {":type:": "<class 'function'>", ":serialized:": base64.b64encode(pickle.dumps(value)).decode()}


@pytest.mark.parametrize(("made", "asked"), [(PPO, "a2c"), (PPO, "dqn"), (A2C, "ppo"), (DQN, "ppo")])
def test_another_algorithm_than_asked_for_is_refused(tmp_path: Path, made: Any, asked: str) -> None:
    path = tmp_path / "agent.zip"
    made("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, **TINY).save(path)
    name = made.__name__
    with pytest.raises(LoadError, match=rf"agent\.zip is a {name} agent, but .*'{asked}'.*--algo {name.lower()}"):
        prunerl.load(path, env="CartPole-v1", algorithm=asked)
    assert prunerl.load(path, env="CartPole-v1", algorithm=name).algorithm == name.lower()
    with pytest.raises(LoadError, match="'reinforce' is not supported"):
        prunerl.load(path, env="CartPole-v1", algorithm="reinforce")


def nothing(tmp_path: Path, small: Path) -> Path:
    return tmp_path / "bad.zip"


def folder(tmp_path: Path, small: Path) -> Path:
    (tmp_path / "bad.zip").mkdir()
    return tmp_path / "bad.zip"


def text(tmp_path: Path, small: Path) -> Path:
    (tmp_path / "bad.zip").write_text("not a zip")
    return tmp_path / "bad.zip"


def truncated(tmp_path: Path, small: Path) -> Path:
    data = small.read_bytes()
    (tmp_path / "bad.zip").write_bytes(data[: len(data) // 2])
    return tmp_path / "bad.zip"


def without(entry: str) -> Callable[[Path, Path], Path]:
    return lambda tmp_path, small: written(
        tmp_path / "bad.zip", {n: d for n, d in entries(small).items() if n != entry}
    )


def with_entry(entry: str, data: bytes) -> Callable[[Path, Path], Path]:
    return lambda tmp_path, small: written(tmp_path / "bad.zip", {**entries(small), entry: data})


def diverged(tmp_path: Path, small: Path) -> Path:
    return with_tensors(small, tmp_path / "bad.zip", lambda t: {**t, "action_net.bias": torch.tensor([0.0, torch.nan])})


def another_layer(tmp_path: Path, small: Path) -> Path:
    return with_tensors(small, tmp_path / "bad.zip", lambda t: {**t, "extra.weight": torch.zeros(2)})


def no_layers(tmp_path: Path, small: Path) -> Path:
    return with_tensors(small, tmp_path / "bad.zip", lambda t: {"features_extractor.cnn.0.weight": torch.zeros(2)})


def misshapen(tmp_path: Path, small: Path) -> Path:
    return with_tensors(small, tmp_path / "bad.zip", lambda t: {**t, "value_net.weight": torch.zeros(1, 3)})


def flat_weight(tmp_path: Path, small: Path) -> Path:
    return with_tensors(
        small, tmp_path / "bad.zip", lambda t: {**t, "mlp_extractor.policy_net.0.weight": torch.zeros(3)}
    )


def a_list(tmp_path: Path, small: Path) -> Path:
    return with_tensors(small, tmp_path / "bad.zip", lambda t: [1, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"No file at .*bad\.zip\. Give the path"),
        (folder, r"bad\.zip is a folder.*Give the zip inside"),
        (text, r"bad\.zip is not a readable zip.*Save the agent again"),
        (truncated, r"bad\.zip .*copy it again"),
        (without("data"), r"bad\.zip has no entry 'data'.*model\.save"),
        (without("policy.pth"), r"bad\.zip has no entry 'policy\.pth'.*model\.save"),
        (with_entry("data", b"{"), r"bad\.zip: entry 'data' is not JSON.*Save the agent again"),
        (with_entry("data", b"[" * 100_000), r"bad\.zip: entry 'data' is not JSON.*Save the agent again"),
        (with_entry("data", b"\xff\xfe"), r"bad\.zip: entry 'data' is not JSON.*Save the agent again"),
        (with_entry("data", b"[]"), r"bad\.zip: entry 'data' is not a JSON object.*Save the agent again"),
        (with_entry("data", b"{}"), r"bad\.zip is not an agent of Stable-Baselines3"),
        (
            with_entry("policy.pth", b"no"),
            r"bad\.zip: entry 'policy\.pth' does not hold plain tensors.*Save the agent again",
        ),
        (a_list, r"bad\.zip: entry 'policy\.pth' is not a state dict.*Save the agent again"),
        (diverged, r"bad\.zip: tensor 'action_net\.bias' holds 1 NaN.*checkpoint from before"),
        (another_layer, r"bad\.zip: tensor 'extra\.weight' does not fit"),
        (no_layers, r"bad\.zip: no tensors action_net"),
        (misshapen, r"bad\.zip: tensor 'value_net\.weight' does not fit"),
        (flat_weight, r"bad\.zip"),
    ],
)
def test_a_damaged_zip_is_refused(
    tmp_path: Path, small: Path, make: Callable[[Path, Path], Path], message: str
) -> None:
    path = make(tmp_path, small)
    with pytest.raises(LoadError, match=message):
        prunerl.load(path, env="CartPole-v1")


def test_an_entry_that_would_fill_the_memory_is_not_read(tmp_path: Path, small: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**entries(small), "data": b" " * (sb3_zip.MAX_JSON + 1)}.items():
            archive.writestr(name, data)
    with pytest.raises(LoadError, match=r"bomb\.zip: entry 'data' claims"):
        prunerl.load(path, env="CartPole-v1")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Acrobot-v1", "takes 4 inputs, but 'Acrobot-v1' observes 6. Give the env"),
        ("MountainCar-v0", "takes 4 inputs, but 'MountainCar-v0' observes 2"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(small: Path, env: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        prunerl.load(small, env=env)


def test_an_environment_that_is_not_there_is_named(small: Path) -> None:
    with pytest.raises(EnvironmentFailure, match=r"Environment 'CartPole-v99'.*cannot be made.*Check the id"):
        prunerl.load(small, env="CartPole-v99")
    with pytest.raises(EnvironmentFailure, match=r"'no_such_argument'.*Check the id and --env-kwargs"):
        prunerl.load(small, env="CartPole-v1", env_kwargs={"no_such_argument": 1})
    with pytest.raises(LoadError, match=r"the environment is not known\. Give its Gymnasium id"):
        prunerl.load(small)


def test_a_custom_activation_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "custom.zip"
    kwargs = {"net_arch": [4], "activation_fn": Cubed}
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=kwargs, **TINY)
    model.save(path)
    with pytest.raises(TrustError, match=r"custom\.zip: policy_kwargs\['activation_fn'\].*Cubed.*--trust"):
        prunerl.load(path, env="CartPole-v1")
    agent = prunerl.load(path, env="CartPole-v1", trust=True)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(prunerl_actions(agent, observations), model.predict(observations, deterministic=True)[0])


def prunerl_actions(agent: prunerl.Agent, observations: np.ndarray) -> np.ndarray:
    from prunerl.heads import act

    return act(agent.policy, observations)


SERIALIZED = (
    "policy_class",
    "learning_rate",
    "lr_schedule",
    "clip_range",
    "observation_space",
    "action_space",
    "_last_obs",
    "ep_info_buffer",
)


@pytest.mark.parametrize("key", [*SERIALIZED, "policy_kwargs", "policy_kwargs.activation_fn", "rollout_buffer_class"])
def test_pickles_in_the_settings_are_not_run(tmp_path: Path, small: Path, key: str) -> None:
    witness = tmp_path / "witness"
    value: Any = pickled(Harmful(witness))
    outer, _, inner = key.partition(".")
    path = changed(small, tmp_path / "harmful.zip", **{outer: {inner: value} if inner else value})
    try:
        prunerl.load(path, env="CartPole-v1").learn(16, seed=0)
    except TrustError as error:
        assert "--trust" in str(error)  # noqa: PT017  either outcome is right
    assert not witness.exists()


@pytest.mark.parametrize(
    "entry",
    ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", "_stable_baselines3_version", "system_info.txt"],
)
def test_pickles_in_place_of_tensors_are_not_run(tmp_path: Path, small: Path, entry: str) -> None:
    witness, buffer = tmp_path / "witness", io.BytesIO()
    torch.save(Harmful(witness), buffer)
    path = written(tmp_path / "harmful.zip", {**entries(small), entry: buffer.getvalue()})
    if entry.endswith(".pth"):
        with pytest.raises(LoadError, match=f"entry '{entry}' does not hold plain tensors"):
            prunerl.load(path, env="CartPole-v1")
    else:
        prunerl.load(path, env="CartPole-v1")
    assert not witness.exists()


def test_pickles_in_statistics_are_not_run(tmp_path: Path, small: Path) -> None:
    witness, statistics = tmp_path / "witness", tmp_path / "statistics.pkl"
    statistics.write_bytes(pickle.dumps({"obs_rms": Harmful(witness)}))
    with pytest.raises(LoadError, match=r"statistics\.pkl holds no observation statistics.*VecNormalize\.save"):
        prunerl.load(small, env="CartPole-v1", vec_normalize=statistics)
    assert not witness.exists()


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_read_from_every_pickle_protocol_of_python_3(protocol: int) -> None:
    values = {"array": np.arange(6.0).reshape(2, 3), "scalar": np.float64(2.5), "plain": [1, "a", None]}
    read = inert.read(pickle.dumps(values, protocol=protocol), "this")
    assert np.array_equal(read["array"], values["array"])
    assert read["scalar"] == 2.5
    assert read["plain"] == [1, "a", None]


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1])[:-2], b"\x80\x05h\x00."])
def test_a_broken_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError, match=r"statistics.pkl cannot be read as plain data.*trust=True"):
        inert.read(data, "statistics.pkl")


def attempt(path: Path) -> None:
    """Load, or raise what a user can be shown."""
    try:
        prunerl.load(path, env="CartPole-v1")
    except PruneError as error:
        assert str(path) in str(error)  # noqa: PT017  either outcome is right


def test_flipped_bytes_raise_nothing_else(tmp_path: Path, small: Path) -> None:
    original, path = small.read_bytes(), tmp_path / "flipped.zip"
    generator = np.random.default_rng(0)
    directory = original.rindex(b"PK\x01\x02", 0, original.index(b"PK\x01\x02") + 4)
    places = [*generator.integers(len(original), size=150), *generator.integers(directory, len(original), size=50)]
    for place in places:
        data = bytearray(original)
        data[place] ^= int(generator.integers(1, 256))
        path.write_bytes(data)
        attempt(path)


def test_flipped_bytes_in_entries_raise_nothing_else(tmp_path: Path, small: Path) -> None:
    contents, path = entries(small), tmp_path / "flipped.zip"
    generator = np.random.default_rng(1)
    for entry in ("data", "policy.pth", "policy.optimizer.pth"):
        for place in generator.integers(len(contents[entry]), size=40):
            data = bytearray(contents[entry])
            data[place] ^= int(generator.integers(1, 256))
            attempt(written(path, {**contents, entry: bytes(data)}))


JUNK = (None, "x", -1, 0, 1.5, [], {}, [1, 2, 3], {":serialized:": "x"}, True, 10**400)


def test_settings_of_the_wrong_kind_raise_nothing_else(tmp_path: Path, small: Path) -> None:
    path, keys = tmp_path / "junk.zip", json.loads(entries(small)["data"])
    for number, key in enumerate(keys):
        for junk in (
            (JUNK[number % len(JUNK) :] + JUNK)[:2] if key not in ("policy_kwargs", "n_envs", "n_steps") else JUNK
        ):
            attempt(changed(small, path, **{key: junk}))
    for key in (
        "net_arch",
        "activation_fn",
        "optimizer_class",
        "optimizer_kwargs",
        "ortho_init",
        "log_std_init",
        "use_sde",
    ):
        for junk in JUNK:
            attempt(changed(small, path, policy_kwargs={key: junk}))


OPTIMIZERS: tuple[Any, ...] = (
    {},
    [],
    {"state": {}},
    {"state": []},
    {"state": {0: {}}},
    {"state": {0: {"exp_avg": 1.0}}},
    {"param_groups": []},
    {"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{}]},
    {"state": {99: {}}, "param_groups": [{"lr": "x"}]},
    {"state": {"a": {}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    {"state": {0: []}, "param_groups": [[]]},
    {"state": {0: {"exp_avg": "x"}}, "param_groups": {"lr": 1}},
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_optimizer_states_of_the_wrong_kind_raise_nothing_else(tmp_path: Path, small: Path, optimizer: Any) -> None:
    attempt(with_tensors(small, tmp_path / "junk.zip", lambda _: optimizer, entry="policy.optimizer.pth"))


def test_schedules_that_are_plain_are_read() -> None:
    assert sb3_zip.schedule(0.25) == 0.25
    assert sb3_zip.schedule({"value_schedule": "ConstantSchedule(val=0.2)"}) == 0.2
    assert sb3_zip.schedule({":serialized:": "x"}) is None
    assert sb3_zip.schedule(None) is None
    assert sb3_zip.schedule(True) is None
    assert sb3_zip.schedule({"value_schedule": "ConstantSchedule(val=1-1)"}) is None
