from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import PROGRAMS, X, Y, floats, matrix, one, quantized, shared

from prunerl.deploy import tensors as files
from prunerl.deploy.program import Affine, Binary, Embedding, Matrix, Program, Reshape
from prunerl.deploy.tensors import load_program, program_bytes, program_from
from prunerl.errors import ExportError, LoadError, PruneError


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        same = one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
        return same and (one.dtype == other.dtype or one.dtype.kind in "iu")
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    return bool(one == other)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_comes_back_exactly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(program_bytes(PROGRAMS[name]))
    assert equal(load_program(path), PROGRAMS[name])


@pytest.mark.parametrize(("made", "stored"), [
    (matrix(64, 64), 64 * 64 * 4),
    (quantized(64, 64), 64 * 64 + 64 * 4),
    (quantized(64, 64, bits=4), 64 * 64 // 2 + 64 * 4),
    (quantized(64, 64, bits=3), 64 * 64 * 3 // 8 + 64 * 4),
    (shared(64, 64, bits=4), 64 * 64 // 2 + 15 * 4),
])  # fmt: skip
def test_bytes_are_what_is_stored(made: Matrix, stored: int) -> None:
    data = program_bytes(one(Affine(X, Y, made), (64,), (64,)))
    assert stored < len(data) < stored + 1300  # what is beside the weights is JSON


def test_codes_are_packed_from_the_lowest_bit_on() -> None:
    codes = np.array([[1, -3, 2]], np.int8)  # of 3 bits, from −3 on: 4, 0, 5, so 0b101_000_100
    scale = np.array([0.5], np.float32)
    made = Matrix(codes * scale[:, None], codes, scale, None, 3)
    data = program_bytes(one(Affine(X, Y, made), (3,), (1,)))
    assert safetensors.numpy.load(data)["0.weight.codes"].tolist() == [0b01000100, 0b1]


def test_equal_programs_give_equal_bytes() -> None:
    assert program_bytes(PROGRAMS["lstm"]) == program_bytes(PROGRAMS["lstm"])


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes(program_bytes(PROGRAMS["lstm"]))
    code = (
        "import sys, importlib.util, pathlib\n"
        "from prunerl.deploy.tensors import load_program\n"
        f"load_program({str(path)!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_that_are_not_finite_are_refused() -> None:
    bad = Matrix(np.array([[1, np.nan]], np.float32))
    with pytest.raises(ExportError, match=r"Affine 'out': weight has numbers that are not finite"):
        program_bytes(one(Affine(X, Y, bad), (2,), (1,)))


def test_codes_that_say_other_values_are_refused() -> None:
    made = quantized(2, 3)
    with pytest.raises(ExportError, match="codes say other values"):
        program_bytes(one(Affine(X, Y, replace(made, values=made.values + 1)), (3,), (2,)))


WHOLE = program_bytes(PROGRAMS["mlp int4"])


@pytest.mark.parametrize("length", [0, 4, 8, 40, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(LoadError, match="not a whole safetensors file"):
        program_from(WHOLE[:length])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_flipped_bit_is_refused(bit: int) -> None:
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LoadError):
        program_from(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(LoadError):
        program_from(data)


def forged(change: Any, whole: bytes = WHOLE) -> bytes:
    """Return the file with other JSON and a digest that fits it, as one would who wants to be believed."""
    told = safetensors.numpy.load(whole)
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])["__metadata__"]
    text = json.loads(header["program"])
    change(text, told)
    header["program"] = json.dumps(text)
    del told[files.SEAL]
    seal = files._seal(header["program"], told)
    told[files.SEAL] = np.frombuffer(bytes.fromhex(seal), dtype=np.uint8)
    return safetensors.numpy.save(told, header)


def _set(*path: Any) -> Any:
    def change(text: Any, told: Any) -> None:
        *way, last, value = path
        for step in way:
            text = text[step]
        text[last] = value

    return change


FORGERIES = {
    "operation": (_set("operations", 1, "operation", "Evil"), "operation 'Evil' is not known"),
    "a builtin": (_set("operations", 1, "operation", "__import__"), "is not known"),
    "part": (_set("operations", 1, "extra", 1), "has the parts"),
    "type of a part": (_set("operations", 1, "source", 3), "source of Affine cannot be int"),
    "function": (_set("operations", 2, "function", "system"), "function of Activation"),
    "huge shape": (_set("shapes", "h", [10**12]), "cannot have shape"),
    "huge integer": (_set("shapes", "h", [10**400]), "cannot have shape"),
    "negative shape": (_set("shapes", "h", [-7]), "cannot have shape"),
    "shape of strings": (_set("shapes", "h", ["7"]), "shapes is not"),
    "another shape": (_set("shapes", "h", [8]), "has shape"),
    "huge codes": (_set("operations", 1, "weight", "shape", [10**6, 10**6]), "codes of 4 bits"),
    "bits": (_set("operations", 1, "weight", "bits", 64), "codes of 64 bits"),
    "circle": (_set("operations", 1, "source", "h"), "read before it is made"),
    "forward": (_set("operations", 1, "source", "o"), "read before it is made"),
    "twice": (_set("operations", 1, "result", "n"), "made twice"),
    "over the observation": (_set("operations", 1, "result", X), "made twice"),
    "tensor twice": (_set("operations", 1, "bias", {"tensor": "0.mean"}), "0.mean"),
    "no such tensor": (_set("operations", 1, "bias", {"tensor": "secret"}), "secret"),
    "version": (_set("version", 2), "version 1 can be read"),
    "format": (_set("format", "other"), "format 'other'"),
    "action": (_set("action", "nothing"), "is not made"),
    "action type": (_set("action_dtype", "object"), "cannot be 'object'"),
    "observation type": (_set("observation_dtype", "object"), "cannot be 'object'"),
    "memory": (_set("memory", {"m": "h"}), "memory"),
    "mask": (_set("allowed", 3), "mask has 3 entries for 5"),
    "no operations": (_set("operations", []), "belong to nothing"),
    "operations of another type": (_set("operations", {"a": 1}), "malformed"),
    "deep": (_set("notes", eval("[" * 90 + "]" * 90)), "notes is not"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_program_is_refused_within_bounds(name: str) -> None:
    change, match = FORGERIES[name]
    data = forged(change)
    tracemalloc.start()
    with pytest.raises(LoadError, match=match):
        program_from(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_a_value_that_would_grow_is_refused_before_it_is_computed() -> None:
    grown = Program(
        (Reshape(X, "column"), Binary("column", X, Y, "add")),
        {X: (65536,), "column": (65536, 1), Y: (65536, 65536)},
        Y, "float32", (65536, 65536), "float32",
    )  # fmt: skip
    with pytest.raises(ExportError, match="cannot have shape"):
        program_bytes(grown)


def test_a_table_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ExportError, match="two dimensions"):
        program_bytes(one(Embedding(X, Y, Matrix(floats(3))), (), (3,)))


def test_a_safetensors_file_of_something_else_says_so() -> None:
    with pytest.raises(LoadError, match="holds no policy program"):
        program_from(safetensors.numpy.save({"a": np.zeros(3)}))


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="No such file"):
        load_program(tmp_path / "none.safetensors")
