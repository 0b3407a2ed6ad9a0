"""Sparse rows turn many observations over in squares as wide as a vector, and what is left one by one."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from prunerl.deploy import build
from prunerl.deploy.kernels import choose, sparse
from prunerl.deploy.kernels.layer import Layer, Machine, packed


@pytest.mark.parametrize("width", [4, 8, 16])
def test_any_number_of_observations_is_turned_over_and_back(width: int, tmp_path: Path) -> None:
    compiler = build.find()
    if compiler is None:
        pytest.skip("no C compiler")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((width + 3, 2 * width + 1)).astype(np.float32)
    weight[rng.random(weight.shape) > 0.3] = 0
    layer = Layer(weight, rng.standard_normal(len(weight)).astype(np.float32))
    machine = Machine("any", width, ("-march=native", "-Wno-psabi"))
    form = sparse.rows(layer, machine)
    assert form is not None
    text = choose._source([form], machine).replace("static void k", "void k")
    library = ctypes.CDLL(str(build.library([build.Unit("rows", text, machine.flags)], compiler, tmp_path)))
    library.k0_many.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 3]
    table = choose._room(len(packed(form.arrays)))
    table[:] = np.frombuffer(packed(form.arrays), np.uint8)
    for n in (1, 16, 17, 32, 70):
        x = rng.standard_normal((n, layer.columns + 1)).astype(np.float32)
        made = np.full((n, layer.rows + 2), 7, np.float32)
        arrays = (made.ctypes.data, x.ctypes.data, table.ctypes.data)
        library.k0_many(*arrays, n, made.shape[1], x.shape[1])
        np.testing.assert_allclose(made[:, : layer.rows], x[:, :-1] @ weight.T + layer.bias, 1e-5, 1e-5)
        assert (made[:, layer.rows :] == 7).all()
