"""Every kernel computes the product that NumPy computes, and writes nothing but its rows."""

from __future__ import annotations

import ctypes
import re
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import LAYERS, coded_layer, product, random_layer

from prunerl.deploy import build, native
from prunerl.deploy.kernels import choose, dense, pell, pell_whole, vector, whole
from prunerl.deploy.kernels.layer import Form, Kernel, Layer, Machine, define, packed

MANY = 41


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
        (LAYERS[2], partial(pell.permuted, sliding=True)),
        (LAYERS[7], pell_whole.permuted),
        (LAYERS[7], partial(pell_whole.permuted, sliding=True)),
    ):
        form = kernel(layer, machine)
        assert form is not None
        pairs.append((layer, form))
    check(pairs, machine, compiler, tmp_path)


@pytest.mark.parametrize(
    ("more", "layer", "kernel", "instruction"),
    [
        ((), LAYERS[2], pell.permuted, "vperm[ti]2ps"),
        (("-mavx512vnni",), LAYERS[6], partial(whole.whole, block=64), "vpdpbusd"),
        (("-mavx512vnni", "-mavx512vbmi"), LAYERS[7], pell_whole.permuted, "vperm[ti]2b"),
    ],
)
def test_avx_512_has_its_instructions(
    compiler: build.Compiler, tmp_path: Path, more: tuple[str, ...], layer: Layer, kernel: Kernel, instruction: str
) -> None:
    flags = ("-march=x86-64-v4", "-mprefer-vector-width=512", *more)
    machine = Machine("v4", 16, flags)
    form = kernel(layer, machine)
    assert form is not None
    functions = define("k", form).replace("static void", "void")
    (tmp_path / "a.c").write_text(vector.prelude(16, functions) + functions)
    command = [*compiler.command, *build.FLAGS, *flags, "-S", "-o", "-", str(tmp_path / "a.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "march" in done.stderr:
        pytest.skip("a compiler for another processor")
    assert re.search(rf"\t{instruction}\t.*zmm", done.stdout)


def test_steps_of_a_window_are_those_of_its_fullest_row() -> None:
    weight = np.zeros((16, 32), np.float32)
    weight[3, [0, 5, 15]] = 1, 2, 3
    weight[4, 17] = 4
    weight[9, [16, 31]] = 5, 6
    weights, places, steps = pell.steps_of(weight, 8, 16, 16)
    assert steps.tolist() == [[3, 1], [1, 2]]  # one that all have, though a window could do without
    assert weights[:3, 3].tolist() == [1, 2, 3]
    assert places[:3, 3].tolist() == [0, 5, 15]
    assert (weights[3, 4], places[3, 4]) == (4, 1)
    assert weights[4:7, 1].tolist() == [0, 5, 6]
    assert places[5:7, 1].tolist() == [0, 15]


def test_rows_go_on_to_what_the_next_window_has_too() -> None:
    """The first row must do three weights before the window moves; the second does its later ones meanwhile."""
    weight = np.zeros((8, 24), np.float32)
    weight[0, [0, 1, 2]] = 1, 2, 3
    weight[1, [8, 9, 15, 16]] = 4, 5, 6, 7
    weights, places, steps = pell.steps_of(weight, 8, 16, 8)
    assert steps.tolist() == [[3, 1]]
    assert weights[:4, 0].tolist() == [1, 2, 3, 0]
    assert weights[:4, 1].tolist() == [4, 5, 6, 7]
    assert places[:4, 1].tolist() == [8, 9, 15, 8]


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize(("group", "stride"), [(16, 16), (32, 32), (32, 16), (16, 8)])
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_steps_hold_every_weight_once(group: int, stride: int, each: int, density: float) -> None:
    weight = random_layer(37, 75, density, "").weight
    weights, places, steps = pell.steps_of(weight, 8, group, stride, each=each)
    made, at = np.zeros((40, 200), np.float32), 0
    for block, row in enumerate(steps):
        for window, count in enumerate(row.tolist()):
            for k in range(at, at + count):
                lanes = block * 8 + np.repeat(np.arange(8), each)
                np.add.at(made, (lanes, window * stride + places[k]), weights[k])
            at += count
    np.testing.assert_array_equal(made[:37, :75], weight)
    assert np.count_nonzero(made) == np.count_nonzero(weight)
    assert at == len(weights) - 1


def test_a_step_of_whole_numbers_has_four_of_each_row() -> None:
    codes = np.zeros((8, 64), np.int8)
    codes[2, [1, 3, 5, 7, 63]] = 1, 2, 3, 4, 5
    codes[3, 40] = 6
    weights, places, steps = pell.steps_of(codes, 8, 64, 64, each=4)
    assert steps.tolist() == [[2]]
    assert weights[:2, 8:12].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert places[:2, 8:12].tolist() == [[1, 3, 5, 7], [63, 0, 0, 0]]
    assert (weights[0, 12], places[0, 12]) == (6, 40)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (64, 100, [(64, 1, 0, 64)]),
        (59, 100, [(32, 1, 0, 32), (32, 1, 32, 27)]),
        (45, 100, [(32, 1, 0, 32), (16, 1, 32, 13)]),
        (33, 100, [(32, 1, 0, 32)]),
        (33, 4, [(32, 1, 0, 32), (16, 1, 32, 1)]),
    ],
)
def test_rows_are_cut_into_blocks_and_the_last_is_filled_up(
    rows: int, columns: int, expected: list[tuple[int, int, int, int]]
) -> None:
    parts = dense._parts(random_layer(rows, columns, 1.0, ""), Machine("v4", 16, ()), 64 if rows == 64 else 32)
    assert [(part.rows, part.count, part.start, part.kept) for part in parts] == expected


def test_the_rule_takes_sparse_forms_for_sparse_layers() -> None:
    machine = Machine("v3", 8, ())
    assert choose.by_rule(random_layer(64, 64, 0.05, ""), machine).chosen.one.kernel == "permuted 8 × 16"
    assert choose.by_rule(random_layer(64, 64, 1.0, ""), machine).chosen.one.kernel == "dense by 64 rows"
    fetched = choose.by_rule(random_layer(128, 128, 1.0, ""), machine).chosen.one.kernel
    assert fetched == "dense by 64 rows, fetched ahead"
    wide = Machine("v4", 16, ())
    assert choose.by_rule(random_layer(128, 128, 1.0, ""), wide).chosen.one.kernel == "dense by 128 rows"
    assert choose.by_rule(random_layer(64, 64, 0.4, ""), wide).chosen.one.kernel == "permuted 16 × 32, sliding"
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
