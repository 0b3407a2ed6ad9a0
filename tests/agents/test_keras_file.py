"""An untrusted ``.keras`` file is data: nothing in it runs, and a broken one is refused in bounded memory."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunerl
from prunerl.errors import LoadError, PruneError

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
L = keras.layers


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The entries of a file that loads."""
    path = tmp_path_factory.mktemp("good") / "policy.keras"
    keras.Sequential([keras.Input((4,)), L.Dense(8, activation="relu"), L.Dense(2)]).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def load(folder: Path, data: bytes, head: str | None = None) -> Any:
    path = folder / "policy.keras"
    path.write_bytes(data)
    return prunerl.load(path, env="CartPole-v1", head=head)


def weights(good: dict[str, bytes], change: Callable[[Any], None]) -> bytes:
    """Return the archive with its weights changed by ``change``, which gets the open HDF5 file."""
    buffer = io.BytesIO(good["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return archive_of({**good, "model.weights.h5": buffer.getvalue()})


def config(good: dict[str, bytes], change: Callable[[Any], Any]) -> bytes:
    """Return the archive with its configuration changed in place by ``change``."""
    data = json.loads(good["config.json"])
    change(data)
    return archive_of({**good, "config.json": json.dumps(data).encode()})


def test_the_file_as_it_was_loads_under_any_name(good: dict[str, bytes], tmp_path: Path) -> None:
    assert load(tmp_path, archive_of(good)).algorithm == "keras"
    (tmp_path / "agent.zip").write_bytes(archive_of(good))
    assert prunerl.load(tmp_path, env="CartPole-v1").algorithm == "keras"


def test_a_lambda_layer_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    inputs = keras.Input((4,))
    hostile = L.Lambda(lambda x: (open("it-ran", "w").close(), x)[1])
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        keras.Model(inputs, L.Dense(2)(hostile(inputs))).save("policy.keras")
        mark.unlink()
        keras.saving.load_model("policy.keras", safe_mode=False)
        assert mark.exists(), "the file would not have done harm, so the test proves nothing"
        mark.unlink()
        with pytest.raises(LoadError, match="'Lambda' is not supported"):
            prunerl.load("policy.keras", env="CartPole-v1")
        assert not mark.exists()
    finally:
        os.chdir(here)


def test_a_class_from_anywhere_is_not_imported(good: dict[str, bytes], tmp_path: Path) -> None:
    def change(data: Any) -> None:
        layer = data["config"]["layers"][1]
        layer["module"], layer["class_name"] = "os", "system"

    with pytest.raises(LoadError, match=r"'os\.system'"):
        load(tmp_path, config(good, change))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, good: dict[str, bytes], tmp_path: Path) -> None:
    whole = archive_of(good)
    with pytest.raises(LoadError, match=r"policy\.keras"):
        load(tmp_path, whole[: int(share * len(whole))])


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_an_entry_that_is_garbage_or_missing_is_refused(name: str, good: dict[str, bytes], tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(5000)
    for data in (noise, b"", b"{}", b"[]", b"null", good[name][: len(good[name]) // 2]):
        with pytest.raises(LoadError, match=r"policy\.keras"):
            load(tmp_path, archive_of({**good, name: data}))
    with pytest.raises(LoadError, match="no entry"):
        load(tmp_path, archive_of({k: v for k, v in good.items() if k != name}))


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="not a readable"):
        load(tmp_path, random.Random(0).randbytes(10_000))


def test_flipped_bits_are_refused_or_do_no_harm(good: dict[str, bytes], tmp_path: Path) -> None:
    """The archive's checksums see flips of its entries; those of the entries alone must be borne as well."""
    draw = random.Random(0)
    for name in [None, *good] * 125:
        data = bytearray(archive_of(good) if name is None else good[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        whole = bytes(data) if name is None else archive_of({**good, name: bytes(data)})
        try:
            agent = load(tmp_path, whole)
        except PruneError:
            continue
        assert agent.policy.head.sizes == (2,)


def test_bombs_are_refused_in_bounded_memory(good: dict[str, bytes], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zeros = bytes(2**26)
    for name in good:
        with pytest.raises(LoadError, match="claims"):
            load(tmp_path, archive_of({**good, name: zeros}, zipfile.ZIP_DEFLATED))
    del zeros

    def huge(file: Any) -> None:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", shape=(4, 10**11), dtype="f4", chunks=(4, 1024))

    with pytest.raises(LoadError, match="not stored in the file"):
        load(tmp_path, weights(good, huge))
    nested = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    with pytest.raises(LoadError):
        load(tmp_path, archive_of({**good, "config.json": nested}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB; the zeros are 64 MiB


def test_weights_are_not_read_from_other_files(good: dict[str, bytes], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel"] = np.zeros((4, 8), dtype=np.float32)

    def linked(file: Any) -> None:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "kernel")

    def external(file: Any) -> None:
        del file["layers/dense/vars/0"]
        place = [(str(tmp_path / "other.h5"), 0, 128)]
        file.create_dataset("layers/dense/vars/0", (4, 8), dtype="f4", external=place)

    with pytest.raises(LoadError, match="hold no"):
        load(tmp_path, weights(good, linked))
    with pytest.raises(LoadError, match="not stored in the file"):
        load(tmp_path, weights(good, external))


def test_nan_and_shapes_that_do_not_fit_are_refused(good: dict[str, bytes], tmp_path: Path) -> None:
    def nan(file: Any) -> None:
        file["layers/dense/vars/1"][0] = np.nan

    def units(data: Any) -> None:
        data["config"]["layers"][1]["config"]["units"] = 10**9

    def width(data: Any) -> None:
        data["config"]["layers"][0]["config"]["batch_shape"] = [None, 5]

    with pytest.raises(LoadError, match=r"dense.*\.bias.* NaN"):
        load(tmp_path, weights(good, nan))
    with pytest.raises(LoadError, match="does not fit its configuration"):
        load(tmp_path, config(good, units))
    with pytest.raises(PruneError, match=r"\(5,\)"):
        load(tmp_path, config(good, width))


def test_a_layer_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="in")
    x = L.Dense(1024, name="wide")(inputs)
    for i in range(3):
        x = L.Concatenate(name=f"join{i}")([x, x])
    keras.Model(inputs, L.Dense(2, name="out")(x)).save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["config.json"])
    *before, last = data["config"]["layers"]
    for i in range(3, 40):  # each doubles what the one before made
        text = json.dumps(before[-1]).replace(f"join{i - 2}", "join-")
        before.append(json.loads(text.replace(f"join{i - 1}", f"join{i}").replace("join-", f"join{i - 1}")))
    last = json.loads(json.dumps(last).replace("join2", "join39"))
    data["config"]["layers"] = [*before, last]
    with pytest.raises(LoadError, match="too many for a policy"):
        load(tmp_path, archive_of({**entries, "config.json": json.dumps(data).encode()}))


def test_other_formats_are_refused_with_a_way_out(good: dict[str, bytes], tmp_path: Path) -> None:
    old = json.dumps({"keras_version": "2.13.1"}).encode()
    with pytest.raises(LoadError, match=r"Keras 2\.13\.1"):
        load(tmp_path, archive_of({**good, "metadata.json": old}))
    with pytest.raises(LoadError, match="No file"):
        prunerl.load(tmp_path / "missing.keras", env="CartPole-v1")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(LoadError, match="is a folder"):
        prunerl.load(tmp_path / "folder.keras", env="CartPole-v1")
    with pytest.raises(LoadError, match="'MyModel'"):
        load(tmp_path, config(good, lambda data: data.update(class_name="MyModel")))
