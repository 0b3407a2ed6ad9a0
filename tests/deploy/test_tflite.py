from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_programs import PROGRAMS, X, Y, inputs, matrix, one, quantized, shared

from prunerl.deploy.interpret import run
from prunerl.deploy.program import Affine, Choose, Matrix
from prunerl.deploy.tflite.write import tflite_bytes, tflite_player
from prunerl.errors import ExportError

pytest.importorskip("ai_edge_litert")

WITHOUT = {"conv 3d": "a convolution over 3 dimensions"}


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in WITHOUT])
def test_the_file_acts_as_the_program(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    (tmp_path / "policy.tflite").write_bytes(tflite_bytes(program))
    observations, memory, allowed = inputs(program, 16)
    actions, following = tflite_player(tmp_path / "policy.tflite")(observations, memory, allowed)
    expected, after = run(program, observations, memory, allowed)
    assert actions.dtype == program.action_dtype
    assert actions.shape == expected.shape
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
    for key in program.memory:
        np.testing.assert_allclose(following[key], after[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT)
def test_an_operation_without_a_form_is_named(name: str) -> None:
    with pytest.raises(ExportError, match=rf"Value 'out': LiteRT has no form of {WITHOUT[name]}"):
        tflite_bytes(PROGRAMS[name])


@pytest.mark.parametrize(("made", "stored"), [
    (matrix(64, 64), 64 * 64 * 4),
    (quantized(64, 64), 64 * 64 + 64 * 4),
    (quantized(64, 64, bits=4), 64 * 64 // 2 + 64 * 4),
    (shared(64, 64, bits=4), 64 * 64 + 15 * 4),
])  # fmt: skip
def test_bytes_are_what_is_stored(made: Matrix, stored: int) -> None:
    data = tflite_bytes(one(Affine(X, Y, made), (64,), (64,)))
    assert stored < len(data) < stored + 2200


def test_the_first_of_equals_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(tflite_bytes(one(Choose(X, Y, (4,)), (4,), (1,), action_shape=())))
    play = tflite_player(tmp_path / "a.tflite")
    assert play(np.array([[1, 3, 3, 0]], np.float32), {}, None)[0].tolist() == [1]


def test_equal_programs_give_equal_bytes() -> None:
    assert tflite_bytes(PROGRAMS["lstm"]) == tflite_bytes(PROGRAMS["lstm"])


def test_a_file_that_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="LiteRT cannot run the file"):
        tflite_player(tmp_path / "a.tflite")
