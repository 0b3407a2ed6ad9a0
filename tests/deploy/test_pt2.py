from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_programs import PROGRAMS, X, Y, inputs, matrix, one, quantized
from test_torch_module import run_torch

from prunerl.deploy.interpret import run
from prunerl.deploy.program import Affine
from prunerl.deploy.torch.pt2 import pt2_bytes, pt2_player

SOME = (
    "mlp", "mlp int8", "mlp shared", "mlp int8 inputs", "one hot from", "discrete observation", "embedding int8",
    "affine of tokens", "conv 2d int8", "conv transposed", "binary of ranks", "group norm", "attention",
    "product of ranks", "mean pool not counted", "shapes", "lstm", "gru", "masked", "bernoulli masked", "one choice",
    "squash", "double", "bytes", "gelu", "hardtanh",
)  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_the_file_acts_as_the_program_for_each_batch(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    (tmp_path / "policy.pt2").write_bytes(pt2_bytes(program))
    play = pt2_player(tmp_path / "policy.pt2")
    for count in (1, 16):
        observations, memory, allowed = inputs(program, count)
        actions, following = play(observations, memory, allowed)
        assert actions.dtype == program.action_dtype
        expected, after = run(program, observations, memory, allowed)
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
        for key in program.memory:
            np.testing.assert_allclose(following[key], after[key], rtol=1e-4, atol=1e-5)
        for made, module in zip((actions, *following.values()), run_torch(program, count), strict=True):
            np.testing.assert_allclose(made, module, rtol=1e-5, atol=1e-6)


def test_codes_take_fewer_bytes() -> None:
    whole, codes = (
        len(pt2_bytes(one(Affine(X, Y, w), (256,), (256,)))) for w in (matrix(256, 256), quantized(256, 256))
    )
    assert whole - codes == pytest.approx(256 * 256 * 3, rel=0.1)
