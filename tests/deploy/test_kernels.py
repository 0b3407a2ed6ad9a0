"""Every kernel computes the product that NumPy computes, and writes nothing but its rows."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from prunerl.deploy import build, native
from prunerl.deploy.kernels import choose, dense, pell, vector, whole
from prunerl.deploy.kernels.layer import Form, Layer, Machine, define, packed

NUMPY = {"": lambda v: v, "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}
MANY = 41


def random_layer(rows: int, columns: int, density: float, function: str) -> Layer:
    rng = np.random.default_rng(rows * columns)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[rng.random(weight.shape) > density] = 0
    return Layer(weight, rng.standard_normal(rows).astype(np.float32), function)


def coded_layer(rows: int, columns: int, input_scale: float | None) -> Layer:
    rng = np.random.default_rng(rows * columns)
    codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    scale = rng.uniform(0.5, 1.5, rows).astype(np.float32) / np.float32(127)
    bias = rng.standard_normal(rows).astype(np.float32)
    return Layer((codes * scale[:, None]).astype(np.float32), bias, "relu", codes, scale, input_scale)


LAYERS = (
    random_layer(2, 24, 1.0, ""),
    random_layer(37, 23, 1.0, "tanh"),
    random_layer(37, 41, 0.2, "relu"),
    random_layer(24, 3, 0.5, ""),
    random_layer(40, 20, 0.04, "tanh"),
    coded_layer(19, 33, None),
    coded_layer(19, 33, 0.02),
)


def product(layer: Layer, x: np.ndarray) -> np.ndarray:
    if layer.input_scale is None:
        made = x @ layer.weight.T
    else:
        assert layer.codes is not None
        assert layer.scale is not None
        rounded = np.clip(np.rint(x / np.float32(layer.input_scale)), -127, 127).astype(np.int64)
        scale = np.float32(layer.input_scale) * layer.scale
        made = (rounded @ layer.codes.T.astype(np.int64)).astype(np.float32) * scale
    return NUMPY[layer.function](made + layer.bias)


@pytest.fixture(scope="module")
def compiler() -> build.Compiler:
    found = build.find()
    if found is None:
        pytest.skip("no C compiler")
    return found


def check(pairs: list[tuple[Layer, Form]], machine: Machine, compiler: build.Compiler, kept: Path) -> None:
    """Compile forms into one library, and compare each with NumPy, for one vector and for many."""
    text = choose._source([form for _, form in pairs], machine).replace("static void k", "void k")
    library = ctypes.CDLL(str(build.library([build.Unit("forms", text, machine.flags)], compiler, kept)))
    rng = np.random.default_rng(0)
    for k, (layer, form) in enumerate(pairs):
        x = rng.standard_normal((MANY, layer.columns)).astype(np.float32)
        expected = product(layer, x)
        raw = packed(form.arrays)
        table = choose._room(len(raw))
        table[:] = np.frombuffer(raw, np.uint8)
        one, width = getattr(library, f"k{k}"), layer.rows + 3
        one.argtypes = [ctypes.c_void_p] * 3
        made = np.full((MANY, width), 7, np.float32)
        for i in range(MANY):
            one(made[i:].ctypes.data, x[i:].ctypes.data, table.ctypes.data)
        results = [made]
        if form.many is not None:
            several = getattr(library, f"k{k}_many")
            several.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 3]
            results.append(np.full((MANY, width), 7, np.float32))
            several(results[1].ctypes.data, x.ctypes.data, table.ctypes.data, MANY, width, layer.columns)
        for result in results:
            np.testing.assert_allclose(result[:, : layer.rows], expected, 1e-5, 1e-5, err_msg=form.kernel)
            assert (result[:, layer.rows :] == 7).all(), form.kernel


def test_every_form_is_the_product(compiler: build.Compiler, tmp_path: Path) -> None:
    machine = Machine("native", native._width(build.macros(compiler, "native")), ("-march=native",))
    pairs = [(layer, form) for layer in LAYERS for form in choose.forms(layer, machine)]
    kinds = {" ".join(word for word in form.kernel.split() if not word.isdigit()) for _, form in pairs}
    assert kinds >= {"dense by rows", "dense int8 by rows", "int8 by rows", "blocks of rows", "sparse rows", "formulae"}
    check(pairs, machine, compiler, tmp_path)


def test_the_widest_vectors_mean_the_same_on_any_machine(compiler: build.Compiler, tmp_path: Path) -> None:
    """Vectors of sixteen are made of narrower ones where there are none; what they compute is the same."""
    machine = Machine("wide", 16, ("-march=native", "-Wno-psabi"))
    pairs = []
    for layer, kernel in (
        (LAYERS[1], lambda a, m: dense.dense(a, m, block=32)),
        (LAYERS[2], pell.permuted),
        (LAYERS[5], lambda a, m: dense.dense(a, m, block=16)),
        (LAYERS[6], lambda a, m: whole.whole(a, m, block=32)),
    ):
        form = kernel(layer, machine)
        assert form is not None
        pairs.append((layer, form))
    check(pairs, machine, compiler, tmp_path)


@pytest.mark.parametrize(
    ("flags", "layer", "instruction"),
    [
        (("-march=x86-64-v4", "-mprefer-vector-width=512"), LAYERS[2], "vperm[ti]2ps"),
        (("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"), LAYERS[6], "vpdpbusd"),
    ],
)
def test_avx_512_has_its_instructions(
    compiler: build.Compiler, tmp_path: Path, flags: tuple[str, ...], layer: Layer, instruction: str
) -> None:
    machine = Machine("v4", 16, flags)
    form = pell.permuted(layer, machine) if layer.input_scale is None else whole.whole(layer, machine, block=64)
    assert form is not None
    functions = define("k", form).replace("static void", "void")
    (tmp_path / "a.c").write_text(vector.prelude(16, functions) + functions)
    command = [*compiler.command, *build.FLAGS, *flags, "-S", "-o", "-", str(tmp_path / "a.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "march" in done.stderr:
        pytest.skip("a compiler for another processor")
    assert re.search(rf"\t{instruction}\t.*zmm", done.stdout)


def test_steps_of_a_group_are_those_of_its_fullest_row() -> None:
    weight = np.zeros((16, 32), np.float32)
    weight[3, [0, 5, 15]] = 1, 2, 3
    weight[4, 17] = 4
    weight[9, [16, 31]] = 5, 6
    weights, places, steps = pell.steps_of(weight, 8, 16)
    assert steps.tolist() == [[3, 1], [0, 2]]
    assert weights[:3, 3].tolist() == [1, 2, 3]
    assert places[:3, 3].tolist() == [0, 5, 15]
    assert (weights[3, 4], places[3, 4]) == (4, 1)
    assert weights[4:6, 1].tolist() == [5, 6]
    assert places[4:6, 1].tolist() == [0, 15]


def test_the_rule_takes_sparse_forms_for_sparse_layers() -> None:
    machine = Machine("v3", 8, ())
    assert choose.by_rule(random_layer(64, 64, 0.05, ""), machine).chosen.one.kernel == "permuted 8 × 16"
    assert choose.by_rule(random_layer(64, 64, 1.0, ""), machine).chosen.one.kernel == "dense by 64 rows"
    assert choose.by_rule(coded_layer(64, 64, 0.1), machine).chosen.one.kernel == "int8 by 64 rows"


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
@pytest.mark.parametrize("columns", [1, 5, 400])
def test_every_layer_has_a_form(width: int, rows: int, columns: int) -> None:
    machine = Machine("any", width, ())
    for layer in (
        random_layer(rows, columns, 1.0, "relu"),
        random_layer(rows, columns, 0.0, ""),
        coded_layer(rows, columns, None),
        coded_layer(rows, columns, 0.1),
    ):
        names = [form.kernel for form in choose.forms(layer, machine)]
        assert choose.by_rule(layer, machine).chosen.one.kernel in names
