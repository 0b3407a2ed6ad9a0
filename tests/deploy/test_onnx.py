from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_programs import PROGRAMS, X, Y, inputs, matrix, one, quantized, shared
from test_torch_module import run_torch

from prunerl.deploy.interpret import run
from prunerl.deploy.onnx.write import onnx_bytes, onnx_player
from prunerl.deploy.program import Activation, Affine, Choose, Matrix, Program
from prunerl.errors import ExportError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def play(program: Program, path: Path, count: int, **how: int) -> list[np.ndarray]:
    path.write_bytes(onnx_bytes(program, **how))
    observations, memory, allowed = inputs(program, count)
    actions, following = onnx_player(path)(observations, memory, allowed)
    assert list(following) == list(program.memory)
    return [actions, *following.values()]


@pytest.mark.parametrize("opset", [13, 18, 21, 23])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_file_acts_as_the_program(name: str, opset: int, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    made = play(program, tmp_path / "policy.onnx", 16, opset=opset)
    assert made[0].dtype == program.action_dtype
    for one_, other in zip(made, run_torch(program, 16), strict=True):
        np.testing.assert_allclose(one_, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_the_batch_is_dynamic(count: int, tmp_path: Path) -> None:
    assert len(play(PROGRAMS["shapes"], tmp_path / "policy.onnx", count)[0]) == count


@pytest.mark.parametrize(("made", "stored"), [
    (matrix(64, 64), 64 * 64 * 4),
    (quantized(64, 64), 64 * 64 + 64 * 4),
    (quantized(64, 64, bits=4), 64 * 64 // 2 + 64 * 4),
    (shared(64, 64, bits=4), 64 * 64 // 2 + 15 * 4),
])  # fmt: skip
def test_bytes_are_what_is_stored(made: Matrix, stored: int) -> None:
    data = onnx_bytes(one(Affine(X, Y, made), (64,), (64,)))
    assert stored < len(data) < stored + 700


@pytest.mark.parametrize("bits", [4, 8])
def test_wide_products_of_coded_weights_are_computed_in_float32(bits: int, tmp_path: Path) -> None:
    program = one(Affine(X, Y, quantized(64, 64, bits=bits)), (64,), (64,))
    [made] = play(program, tmp_path / "policy.onnx", 16)
    expected, _ = run(program, inputs(program, 16)[0])
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_rounded_inputs_are_multiplied_as_integers() -> None:
    model = onnx.load_from_string(onnx_bytes(PROGRAMS["mlp int8 inputs"]))
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 2


def test_the_opset_is_in_the_metadata() -> None:
    model = onnx.load_from_string(onnx_bytes(PROGRAMS["mlp"], opset=18, name="cart"))
    assert model.opset_import[0].version == 18
    assert {p.key: p.value for p in model.metadata_props}["opset"] == "18"
    assert model.graph.name == "cart"
    assert [i.name for i in model.graph.input] == ["observation"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("opset", [1, 12, 1000])
def test_an_opset_out_of_range_is_refused(opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} cannot be written. Choose one from 13 to"):
        onnx_bytes(PROGRAMS["mlp"], opset=opset)


def test_an_operator_that_the_opset_lacks_is_named() -> None:
    from prunerl.deploy.onnx.graph import Graph

    graph = Graph(13, {}, masked=False, where="h")
    with pytest.raises(ExportError, match=r"'h' needs the ONNX operator Mish, which opset 13.*Choose opset 18"):
        graph.node("Mish", "h")


def test_the_first_of_equals_is_chosen(tmp_path: Path) -> None:
    program = one(Choose(X, Y, (4,)), (4,), (1,), action_shape=())
    (tmp_path / "a.onnx").write_bytes(onnx_bytes(program))
    play_it = onnx_player(tmp_path / "a.onnx")
    assert play_it(np.array([[1, 3, 3, 0]], np.float32), {}, None)[0].tolist() == [1]


def test_a_mask_holds(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx_bytes(PROGRAMS["masked"]))
    play_it = onnx_player(tmp_path / "a.onnx")
    allowed = np.array([[False, True, True, False, True]])
    assert play_it(np.array([[9, 2, 1, 7, 5]], np.float32), {}, allowed)[0].tolist() == [[1, 1]]
    assert play_it(np.array([[9, 2, 1, 7, 5]], np.float32), {}, None)[0].tolist() == [[0, 0]]


def test_a_file_that_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the file"):
        onnx_player(tmp_path / "a.onnx")


def test_saturated_functions_stay_finite(tmp_path: Path) -> None:
    for function in ("gelu_tanh", "selu", "mish", "log_sigmoid", "softplus", "silu"):
        program = one(Activation(X, Y, function), (4,), (4,))
        (tmp_path / "a.onnx").write_bytes(onnx_bytes(program))
        given = np.array([[-100, -1, 1, 100]], np.float32)
        assert np.isfinite(onnx_player(tmp_path / "a.onnx")(given, {}, None)[0]).all(), function
