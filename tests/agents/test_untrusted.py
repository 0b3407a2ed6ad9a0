"""Files of strangers: none of their code runs, and reading one takes bounded time and memory or ends in one error."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import prunerl
from prunerl import cli
from prunerl.agents import inert, pickle_bounds, sb3_zip, torch_file
from prunerl.errors import LoadError, PruneError, RunError, TrustError
from prunerl.journal import Journal, open_journal, recall, record

SECONDS = 10.0
"""No file of a few megabytes may take longer."""
EXTRA = 600 * 2**20
"""How much address space a load may take on top of what the libraries have."""


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of a PPO agent with four hidden units."""
    path = tmp_path_factory.mktemp("small") / "small.zip"
    options: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu", "seed": 0}
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, **options).learn(16).save(path)
    return path


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ``vecnormalize.pkl`` for it."""
    import gymnasium as gym

    path = tmp_path_factory.mktemp("statistics") / "vecnormalize.pkl"
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    env.reset()
    env.save(str(path))
    return path.read_bytes()


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(contents: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def attempt(path: Path, **arguments: Any) -> bool:
    """Load, or get an error that a user can be shown; says whether it loaded."""
    try:
        agent = prunerl.load(path, env="CartPole-v1", **arguments)
    except PruneError as error:
        assert len(str(error)) < 2000  # noqa: PT017  either outcome is right
        return False
    assert all(bool(t.isfinite().all()) for t in agent.state.tensors.values())
    assert all(bool(t.isfinite().all()) for m in agent.state.moments.values() for t in m.values())
    return True


@pytest.fixture
def bounded() -> Iterator[None]:
    """Let a test fail where it takes long, or more address space than there is plus ``EXTRA``."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA, before[1]))
    began = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < SECONDS


def refused(data: bytes, folder: Path, message: str, error: type[LoadError] = LoadError, **arguments: Any) -> None:
    """Check that a zip is refused for the stated reason, and not since memory ran out on the way."""
    path = folder / "bad.zip"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        prunerl.load(path, env="CartPole-v1", **arguments)
    assert not isinstance(caught.value.__cause__, MemoryError)


# Damage


def test_a_truncated_zip_is_refused_at_any_length(small: Path, tmp_path: Path) -> None:
    data, path = small.read_bytes(), tmp_path / "cut.zip"
    for length in {*range(0, len(data), max(len(data) // 150, 1)), *range(len(data) - 60, len(data)), *range(40)}:
        path.write_bytes(data[:length])
        assert not attempt(path), length


def flipped(data: bytes, generator: random.Random) -> bytes:
    """Flip one to eight bits."""
    result = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        result[generator.randrange(len(result))] ^= 1 << generator.randrange(8)
    return bytes(result)


def test_500_flips_of_bits_end_in_finite_tensors_or_one_error(small: Path, tmp_path: Path) -> None:
    """Of 600 damaged zips most are caught by checksums, so as many again are damaged within, under right ones."""
    generator, original, contents = random.Random(0), small.read_bytes(), entries(small)
    path, loaded = tmp_path / "flipped.zip", 0
    names = ["data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"]
    for number in range(1200):
        if number % 2:
            path.write_bytes(flipped(original, generator))
        else:
            name = names[number // 2 % len(names)]
            path.write_bytes(archive_of({**contents, name: flipped(contents[name], generator)}))
        try:
            sb3_zip.read_zip(path)
        except PruneError as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is right
        else:
            loaded += attempt(path)
    assert loaded > 20, "none of the damage passed the first checks, so what comes after them was not tried"


@pytest.mark.parametrize("entry", ["policy.pth", "policy.optimizer.pth"])
def test_damage_within_the_pickle_of_tensors(small: Path, tmp_path: Path, entry: str) -> None:
    """Checksums of both zips are made to fit, so that the damage reaches the unpickler."""
    generator, contents = random.Random(1), entries(small)
    with zipfile.ZipFile(io.BytesIO(contents[entry])) as archive:
        inner = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in inner if name.endswith("data.pkl"))
    path = tmp_path / "flipped.zip"
    for _ in range(300):
        damaged = archive_of({**inner, pickled: flipped(inner[pickled], generator)})
        path.write_bytes(archive_of({**contents, entry: damaged}))
        try:
            sb3_zip.read_zip(path)
        except PruneError:
            continue
        attempt(path)


def test_damaged_statistics_end_in_one_error(small: Path, statistics: bytes, tmp_path: Path) -> None:
    generator, path = random.Random(2), tmp_path / "vecnormalize.pkl"
    path.write_bytes(statistics)
    assert attempt(small, vec_normalize=path)
    for number in range(500):
        data = flipped(statistics, generator) if number % 5 else statistics[: generator.randrange(len(statistics))]
        path.write_bytes(data)
        try:
            sb3_zip.vec_normalize(path)
        except PruneError:
            continue
        if number % 4 == 0 and attempt(small, vec_normalize=path):
            policy = prunerl.load(small, env="CartPole-v1", vec_normalize=path).policy
            if policy.normalizer is not None:
                assert np.isfinite(policy.normalizer.mean).all()


VALUES = (None, [], "text", -1, 1e308, 10**300, float("nan"), float("inf"), {"a": {"b": [{}]}}, True, 0, "", [[[]]])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def test_settings_of_any_type_load_or_end_in_one_error(small: Path, tmp_path: Path) -> None:
    generator, contents, path = random.Random(3), entries(small), tmp_path / "changed.zip"
    settings = json.loads(contents["data"])
    everywhere = list(places(settings))
    chosen = [p for p in everywhere if len(p) == 1] + generator.sample(everywhere, min(len(everywhere), 30))
    chosen += [("policy_kwargs", key) for key in ("net_arch", "features_extractor_kwargs", "optimizer_kwargs")]
    for place in chosen:
        for value in generator.sample(VALUES, 2):
            data = copy.deepcopy(settings)
            inner = data
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            path.write_bytes(archive_of({**contents, "data": json.dumps(data).encode()}))
            attempt(path)


# Bombs


def deflated(contents: Mapping[str, bytes], name: str, size: int) -> bytes:
    return archive_of({**contents, name: bytes(size)}, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("entry", ["data", "policy.pth", "policy.optimizer.pth"])
@pytest.mark.usefixtures("bounded")
def test_an_entry_that_inflates_a_thousandfold_is_not_unpacked(small: Path, tmp_path: Path, entry: str) -> None:
    data = deflated(entries(small), entry, 10**8)
    assert len(data) < 10**6
    refused(data, tmp_path, rf"entry '{entry}' claims 100,000,000 bytes; at most")


@pytest.mark.usefixtures("bounded")
def test_an_entry_compressed_without_a_limit_is_not_unpacked(small: Path, tmp_path: Path) -> None:
    data = archive_of({**entries(small), "policy.pth": bytes(10**8)}, zipfile.ZIP_BZIP2)
    lying = data.replace(struct.pack("<L", 10**8), struct.pack("<L", 10**3))
    refused(lying, tmp_path, "compressed in an unusual way")


@pytest.mark.usefixtures("bounded")
def test_an_entry_that_lies_about_its_size_is_refused(small: Path, tmp_path: Path) -> None:
    data = deflated(entries(small), "policy.pth", 10**8)
    refused(data.replace(struct.pack("<L", 10**8), struct.pack("<L", 10**5)), tmp_path, "not a readable zip")
    stored = archive_of(entries(small))
    size = struct.pack("<L", len(entries(small)["policy.pth"]))
    for claim in (2**32 - 2, 2**31 - 1, 10):
        refused(stored.replace(size, struct.pack("<L", claim)), tmp_path, "bad.zip")


def within(blob: bytes, change: Callable[[dict[str, bytes]], Mapping[str, bytes]], method: int = 0) -> bytes:
    """Return a file of tensors with other entries."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return archive_of(change({name: archive.read(name) for name in archive.namelist()}), method)


@pytest.mark.usefixtures("bounded")
def test_a_bomb_within_the_file_of_tensors_is_not_unpacked(small: Path, tmp_path: Path) -> None:
    contents = entries(small)
    blob = saved({"weight": torch.zeros(4)})

    def grown(inner: dict[str, bytes]) -> dict[str, bytes]:
        return {name: bytes(10**8) if name.endswith("data/0") else data for name, data in inner.items()}

    bomb = within(blob, grown, zipfile.ZIP_DEFLATED)
    refused(archive_of({**contents, "policy.pth": bomb}), tmp_path, "an entry is compressed")
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        size = struct.pack("<LL", 16, 16)
        assert any(info.file_size == 16 for info in archive.infolist())
    lying = blob.replace(size, struct.pack("<LL", 2**31, 2**31))
    refused(archive_of({**contents, "policy.pth": lying}), tmp_path, "claim more bytes than it has|does not hold plain")


def tensor_file(size: tuple[int, ...], stride: tuple[int, ...], *, held: int = 4, claimed: int = 4) -> bytes:
    """Write a file with one tensor of four numbers that claims a shape, and a storage of ``claimed`` numbers."""

    class Storage:
        pass

    class Claim:
        def __reduce__(self) -> Any:
            arguments = (Storage(), 0, size, stride, False, {})
            return torch._utils._rebuild_tensor_v2, arguments  # type: ignore[attr-defined]

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", claimed) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"action_net.weight": Claim()})
    inner = {"a/data.pkl": buffer.getvalue(), "a/data/0": bytes(4 * held), "a/version": b"3\n"}
    return archive_of(inner)


@pytest.mark.usefixtures("bounded")
def test_widths_without_the_weights_between_them_are_refused(tmp_path: Path) -> None:
    """A zip of less than a megabyte describes layers of 20,000 units, which 1.6 GB of weights would connect."""
    path = tmp_path / "two.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4, 4]}, device="cpu").save(path)
    contents = entries(path)
    state = torch.load(io.BytesIO(contents["policy.pth"]))
    for net in ("policy_net", "value_net"):
        state[f"mlp_extractor.{net}.0.weight"] = torch.zeros(20_000, 4)
        state[f"mlp_extractor.{net}.2.weight"] = torch.zeros(20_000, 1)
    data = archive_of({**contents, "policy.pth": saved(state)})
    assert len(data) < 10**6
    refused(data, tmp_path, "network would be far larger than its tensors")


def test_the_tensor_file_of_these_tests_is_one() -> None:
    found = torch_file.read(tensor_file((2, 2), (2, 1)))
    assert torch.equal(found["action_net.weight"], torch.zeros(2, 2))
    assert torch.equal(torch.load(io.BytesIO(tensor_file((2, 2), (2, 1))))["action_net.weight"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("size", "stride", "claimed"),
    [
        ((10**6, 10**6), (0, 0), 4),
        ((10**12,), (1,), 4),
        ((10**12,), (1,), 10**12),
        ((100,), (1,), 100),
        ((2, 2), (4, 1), 4),
        ((2,), (-1,), 4),
        ((2**62, 4), (0, 0), 4),
        ((0, 2**63), (1, 1), 4),
        ((1,) * 100_000, (0,) * 100_000, 4),
        ((4,), (1, 1), 4),
        ((4,), (1,), -4),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.usefixtures("bounded")
def test_a_tensor_larger_than_its_storage_is_refused(
    small: Path, tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], claimed: int
) -> None:
    blob = tensor_file(size, stride, claimed=claimed)
    refused(archive_of({**entries(small), "policy.pth": blob}), tmp_path, "does not hold plain tensors")


@pytest.mark.parametrize("depth", [0, 30])
def test_tensors_of_other_kinds_are_refused(small: Path, tmp_path: Path, depth: int) -> None:
    weight = torch.ones(2, 2)
    for odd in (weight.to_sparse(), weight.to(torch.complex64), torch.empty(3, device="meta"), [weight], weight > 0):
        blob = saved({"action_net.weight": odd})
        path = tmp_path / "odd.zip"
        path.write_bytes(archive_of({**entries(small), "policy.pth": blob}))
        assert not attempt(path)


@pytest.mark.usefixtures("bounded")
def test_files_of_tensors_from_before_pytorch_1_6_are_checked_as_well(small: Path, tmp_path: Path) -> None:
    def old(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()

    contents = entries(small)
    state = torch.load(io.BytesIO(contents["policy.pth"]))
    path = tmp_path / "old.zip"
    path.write_bytes(archive_of({**contents, "policy.pth": old(state)}))
    assert attempt(path)
    blob = old({"weight": torch.zeros(77)})
    assert blob.count(b"K\x4d") >= 1
    huge = blob.replace(b"K\x4d", b"J\xff\xff\xff\x7f")
    refused(archive_of({**contents, "policy.pth": huge}), tmp_path, "does not hold plain tensors")
    generator = random.Random(4)
    for _ in range(150):
        path.write_bytes(archive_of({**contents, "policy.pth": flipped(old(state), generator)}))
        attempt(path)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"n_envs": ' + b"9" * 100_000 + b"}",
        b'{"n_envs": NaN}',
        b"-Infinity",
        b"",
        b"\x00" * 1000,
        b'"' + b"\\ud800" * 1000 + b'"',
    ],
    ids=lambda text: repr(text[:12]),
)
@pytest.mark.usefixtures("bounded")
def test_strange_json_is_refused(small: Path, tmp_path: Path, text: bytes) -> None:
    refused(archive_of({**entries(small), "data": text}), tmp_path, "bad.zip")


def nested_tuples(count: int) -> bytes:
    """Pickle a dict whose key is a tuple of a tuple … that takes 2^count steps to hash."""
    return b"\x80\x02}" + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(count)) + b"K\x01s."


HOSTILE = {
    "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "shared": nested_tuples(60),
    "shared list": b"\x80\x02]" + b"".join(b"q%c]h%ca" % (i, i) + b"h%ca" % i for i in range(60)) + b".",
    "cycle": b"\x80\x02]q\x00h\x00a.",
    "duplicates": b"\x80\x02)" + b"2\x86" * 60 + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "long": b"\x80\x02\x8b" + struct.pack("<l", 2**31 - 1) + b"x.",
    "many": b"\x80\x02(" + b"]" * 1_000_000 + b"l.",
    "stack": b"\x80\x02000000.",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("bounded")
def test_a_hostile_pickle_is_refused_wherever_it_stands(small: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(TrustError, match=r"vecnormalize\.pkl cannot be read as plain data"):
        prunerl.load(small, env="CartPole-v1", vec_normalize=path)
    inner = archive_of({"a/data.pkl": HOSTILE[name], "a/version": b"3\n"})
    refused(archive_of({**entries(small), "policy.pth": inner}), tmp_path, "does not hold plain tensors")


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> Any:
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


RECONSTRUCT = np.empty(1).__reduce__()[0]


@pytest.mark.parametrize(
    "array",
    [
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (10**12,), np.dtype("f8"), False, b"")),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**62, 4), np.dtype("f8"), False, b"")),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f8"), False, b"12345678")),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), np.dtype("O"), False, [1, 2])),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), np.dtype("f8"), False, "no")),
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2,), np.dtype([("a", "O")]), False, bytes(16))),
        Call(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 2**40)}, 2**40, 1, 27)),
        Call(np.dtype, "S1000000000000", False, True),
        np.array([np.nan, 1, 1, 1]),
        np.full(4, np.inf),
        np.array(["a", "b"]),
        np.array([None, 1], dtype=object),
        [1.0, 2.0, 3.0, 4.0],
        "text",
    ],
    ids=range(14),
)
@pytest.mark.usefixtures("bounded")
def test_an_array_that_is_not_its_bytes_or_not_numbers_is_refused(small: Path, tmp_path: Path, array: Any) -> None:
    class VecNormalized:
        def __reduce__(self) -> Any:
            rms = Call(Harmful, 0, state={"mean": array, "var": np.ones(4), "count": 1.0})
            return Harmful, (0,), {"obs_rms": rms, "norm_obs": True}

    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(VecNormalized()))
    with pytest.raises(LoadError, match=r"vecnormalize\.pkl"):
        prunerl.load(small, env="CartPole-v1", vec_normalize=path)


@pytest.mark.usefixtures("bounded")
def test_statistics_without_an_end_are_not_read_to_it(small: Path) -> None:
    with pytest.raises(TrustError, match="larger than"):
        prunerl.load(small, env="CartPole-v1", vec_normalize="/dev/zero")


def test_arrays_of_honest_pickles_are_read_exactly() -> None:
    generator = np.random.default_rng(0)
    honest = [
        generator.normal(size=(2, 3)),
        np.asfortranarray(generator.normal(size=(2, 3))),
        generator.normal(size=(0, 3)),
        np.arange(5, dtype=">i4"),
        np.array(1.5),
        np.array([True, False]),
        np.array("text"),
    ]
    for protocol in range(2, 6):
        found = inert.read(pickle.dumps(honest, protocol=protocol), "x")
        for got, wanted in zip(found, honest, strict=True):
            assert (got.dtype.kind, got.dtype.itemsize) == (wanted.dtype.kind, wanted.dtype.itemsize)
            assert got.shape == wanted.shape
            assert np.array_equal(got, wanted)


def test_bounds_let_what_python_pickles_pass() -> None:
    shared = [1, (2, 3), "x"]
    value = {"a": [shared, shared], "b": [{i: str(i)} for i in range(3000)], "c": {1, 2}, "d": frozenset("ab")}
    for protocol in range(6):
        data = pickle.dumps(value, protocol=protocol)
        assert pickle_bounds.check(data) == len(data)
        assert pickle_bounds.check(b"junk" + data, 4) == 4 + len(data)


# Names


def test_names_that_point_elsewhere_are_not_followed(small: Path, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    strange = ("../../evil", str(tmp_path / "evil"), "..\\evil", "a/../../evil", "evil/")
    path = inside / "names.zip"
    path.write_bytes(archive_of({**entries(small), **dict.fromkeys(strange, b"evil")}))
    assert attempt(path)
    blob = within(entries(small)["policy.pth"], lambda inner: {**inner, "../../evil": b"evil"})
    path.write_bytes(archive_of({**entries(small), "policy.pth": blob}))
    assert not attempt(path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(small: Path, tmp_path: Path) -> None:
    for name in ("data", "policy.pth"):
        buffer = io.BytesIO(small.read_bytes())
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(name, entries(small)[name])
        refused(buffer.getvalue(), tmp_path, f"has 2 entries '{name}'")


def test_a_link_in_a_zip_is_not_followed(small: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(entries(small)["data"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("data")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
        for name, data in entries(small).items():
            if name != "data":
                archive.writestr(name, data)
    refused(buffer.getvalue(), tmp_path, "entry 'data' is not JSON")


# The folder of a run


def test_a_damaged_step_of_a_run_is_named(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "run", {"seed": 0})
    record(journal, "round_1", {"a": [1, 2]}, {"weight": torch.arange(6.0).reshape(2, 3)})
    path = tmp_path / "run" / "steps" / "round_1.safetensors"
    good, generator = path.read_bytes(), random.Random(5)
    for number in range(300):
        damaged = good[: generator.randrange(len(good))] if number % 3 == 0 else flipped(good, generator)
        path.write_bytes(damaged)
        try:
            recall(Journal(tmp_path / "run"), "round_1")
        except RunError as error:
            assert "round_1" in str(error)  # noqa: PT017  either outcome is right
    for header in (2**63, 10**9, len(good) * 2):
        path.write_bytes(struct.pack("<Q", header) + good[8:])
        with pytest.raises(RunError, match=r"round_1\.safetensors' is damaged.*Remove it"):
            recall(journal, "round_1")


@pytest.mark.parametrize("settings", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b"1" * 100_000])
def test_damaged_settings_of_a_run_are_refused(tmp_path: Path, settings: bytes) -> None:
    (tmp_path / "run.json").write_bytes(settings)
    with pytest.raises(RunError, match="holds another run"):
        open_journal(tmp_path, {"seed": 0})
    assert os.listdir(tmp_path) == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == settings


def test_a_folder_of_someone_else_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds other files \('thesis\.tex'\)"):
        open_journal(tmp_path, {"seed": 0})
    assert os.listdir(tmp_path) == ["thesis.tex"]


# The command line


@pytest.mark.parametrize("kind", ["text", "truncated", "bomb", "hostile", "settings"])
def test_the_command_line_says_it_in_one_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    witness, path = tmp_path / "witness", tmp_path / "bad.zip"
    contents = entries(small)
    path.write_bytes(
        {
            "text": b"hello",
            "truncated": small.read_bytes()[:-100],
            "bomb": deflated(contents, "policy.pth", 10**8),
            "hostile": archive_of({**contents, "policy.pth": saved(Harmful(witness))}),
            "settings": archive_of({**contents, "data": b"[" * 100_000}),
        }[kind]
    )
    assert cli.main(["inspect", str(path), "--env", "CartPole-v1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert not witness.exists()


def test_the_pickle_of_these_tests_does_harm_where_it_is_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Harmful(tmp_path / "witness")))
    assert (tmp_path / "witness").exists()
