"""The choice for a device: estimates beside what was measured, and what is chosen, refused and said."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest

from prunerl.deploy.estimate import LAYOUTS, Layout, estimate, products, scratch
from prunerl.deploy.program import Activation, Affine, Choose, Conv, Matrix, Normalize, Program, Recurrent, Reshape
from prunerl.deploy.strategy import choose, exact, excess
from prunerl.deploy.targets import Target, load_target
from prunerl.errors import TargetError

S, M = (4, 64, 64, 2), (24, 256, 256, 6)

SLOW = replace(load_target("cortex-m4"), latency=10_000.0)
"""A microcontroller that has ten milliseconds for each decision."""

FREE = Target(name="free", summary="No limits", formats=("f32", "int8", "int4"), exports=("c",), fpu=True)


def mlp(
    widths: tuple[int, ...],
    *,
    density: float = 1.0,
    bits: int = 32,
    function: Literal["relu", "tanh"] = "relu",
    rounded: bool = False,
) -> Program:
    """A network that chooses an action, with that share of non-zeros in every row of weights."""
    generator, operations, shapes = np.random.default_rng(0), [], {"observation": (widths[0],)}
    source = "observation"
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        codes = generator.integers(1, 7, (outputs, inputs)).astype(np.int8)
        for row in codes:
            row[generator.permutation(inputs)[round(density * inputs) :]] = 0
        scale = np.full(outputs, 0.01, np.float32)
        values = codes.astype(np.float32) * scale[:, None]
        matrix = Matrix(values) if bits == 32 else Matrix(values, codes, scale, bits=bits)
        scale_in = 0.01 if rounded else None
        operations.append(Affine(source, f"z{i}", matrix, np.zeros(outputs, np.float32), scale_in))
        shapes[f"z{i}"] = (outputs,)
        source = f"z{i}"
        if i < len(widths) - 2:
            operations.append(Activation(source, f"a{i}", function))
            shapes[f"a{i}"] = (outputs,)
            source = f"a{i}"
    operations.append(Choose(source, "action", (widths[-1],)))
    shapes["action"] = (1,)
    return Program(tuple(operations), shapes, "action", "float32", (), "int64")


@pytest.mark.parametrize(
    ("widths", "density", "layout", "flash", "ram", "m4", "m0"),
    [
        (S, 1.0, Layout("dense", "f32"), 19_276, 512, 15_256, 1_123_058),
        (M, 1.0, Layout("dense", "f32"), 295_752, 2048, 201_457, None),
        (S, 1.0, Layout("dense", "int8"), 6_828, 384, 14_460, 404_795),
        (M, 1.0, Layout("dense", "int8"), 78_656, 1536, 136_653, 1_960_734),
        (S, 0.1, Layout("csr", "f32"), 3_558, 512, 7_498, 349_986),
        (M, 0.1, Layout("csr", "f32"), 39_844, 2048, 68_829, 2_493_109),
        (S, 0.1, Layout("csr", "int8"), 3_104, 384, 11_648, 378_610),
        (M, 0.1, Layout("csr", "int8"), 20_233, 1536, 74_930, 1_579_878),
    ],
)
def test_estimates_are_near_what_benchmarks_cortex_counts(
    widths: tuple[int, ...], density: float, layout: Layout, flash: int, ram: int, m4: int, m0: int | None
) -> None:
    program = mlp(widths, density=density, function="tanh", rounded=layout.numbers == "int8")
    found = estimate(program, layout, FREE)
    assert found.flash == pytest.approx(flash, rel=0.05, abs=400)
    assert found.ram == ram
    assert found.instructions == pytest.approx(m4, rel=0.05)
    if m0 is not None:
        assert estimate(program, layout, replace(FREE, fpu=False)).instructions == pytest.approx(m0, rel=0.05)


def test_an_estimate_by_hand() -> None:
    program = mlp((3, 4, 2))
    # 20 weights and 6 biases of 4 bytes and 1,300 bytes of code; 2.5·20 + 10·6 + 3·(4 activations + 1 action).
    found = estimate(program, Layout("dense", "f32"), replace(FREE, clock=10.0, cycles=2.0))
    assert (found.flash, found.instructions) == (1300 + 26 * 4, 50 + 60 + 15)
    assert found.latency == pytest.approx(125 * 2 / 10)
    # int4: 12 and 8 weights of half a byte; a bias and a scale a row.
    assert estimate(program, Layout("dense", "int4"), FREE).flash == 1300 + 6 + 4 + 6 * 8


def test_the_first_layer_meets_float32_unless_the_program_says_otherwise() -> None:
    layout, soft = Layout("dense", "int8"), replace(FREE, fpu=False)
    for target in (FREE, soft):
        plain, rounded = (estimate(mlp(M, rounded=r), layout, target).instructions for r in (False, True))
        assert plain > rounded
    assert estimate(mlp(S), layout, FREE).ram == 64 * 4 + 64 * 2  # the inputs of the second layer, as whole numbers


def test_vectors_speed_up_dense_products_alone() -> None:
    wide = replace(FREE, lanes=4)
    for structure, faster in (("dense", True), ("csr", False)):
        layout = Layout(structure, "f32")  # type: ignore[arg-type]
        alone, together = (estimate(mlp(M), layout, target).instructions for target in (FREE, wide))
        assert (together < 0.5 * alone) == faster


def test_without_an_fpu_float32_is_dear_and_integers_are_not() -> None:
    soft = replace(FREE, fpu=False)
    f32, int8 = Layout("dense", "f32"), Layout("dense", "int8")
    assert estimate(mlp(M), f32, soft).instructions > 20 * estimate(mlp(M), f32, FREE).instructions
    assert estimate(mlp(M, rounded=True), int8, soft).instructions < 0.2 * estimate(mlp(M), f32, soft).instructions


def test_a_convolution_is_multiplied_at_each_place() -> None:
    weight = Matrix(np.ones((8, 2, 3, 3), np.float32))
    conv = Conv("observation", "z", weight, np.zeros(8, np.float32), (1, 1), (0, 0), (1, 1))
    shapes = {"observation": (2, 6, 7), "z": (8, 4, 5), "action": (160,)}
    program = Program((conv, Reshape("z", "action")), shapes, "action", "float32", (160,), "float32")
    (found,) = products(program)
    assert (found.rows, found.columns, found.positions, found.nonzeros, found.biases) == (8, 18, 20, 144, 8)
    assert scratch(program) == 0  # what it makes is the action itself, which lies with the caller


def test_memory_between_steps_counts() -> None:
    lstm = Recurrent(
        "observation", ("h", "c"), ("h2", "c2"), "lstm",
        Matrix(np.ones((20, 3), np.float32)), Matrix(np.ones((20, 5), np.float32)),
    )  # fmt: skip
    head = Affine("h2", "action", Matrix(np.ones((2, 5), np.float32)))
    shapes = {"observation": (3,), "h": (5,), "c": (5,), "h2": (5,), "c2": (5,), "action": (2,)}
    memory = {"h": "h2", "c": "c2"}
    program = Program((lstm, head), shapes, "action", "float32", (2,), "float32", memory)
    assert scratch(program) == 4 * (10 + 10)
    assert [(p.rows, p.columns) for p in products(program)] == [(20, 3), (20, 5), (2, 5)]


def test_what_fits_as_it_is_goes_first() -> None:
    strategy = choose(mlp(M), SLOW)
    assert strategy.chosen.layout == Layout("dense", "f32")
    assert strategy.exact
    assert {e.layout for e, _ in strategy.rejected} == set(LAYOUTS) - {Layout("dense", "f32")}


def test_zeros_make_it_sparse_beyond_about_57_per_cent() -> None:
    target = replace(SLOW, flash=400_000)
    assert choose(mlp(M, density=0.5), target).chosen.layout == Layout("dense", "f32")
    assert choose(mlp(M, density=0.3), target).chosen.layout in (Layout("csr", "f32"), Layout("unrolled", "f32"))
    sparse = replace(target, flash=100_000)
    assert choose(mlp(M, density=0.2), sparse).chosen.layout == Layout("csr", "f32")


def test_a_tiny_policy_is_unrolled() -> None:
    assert choose(mlp((4, 2, 2), density=0.5), load_target("cortex-m4")).chosen.layout == Layout("unrolled", "f32")


def test_what_does_not_fit_is_quantised() -> None:
    strategy = choose(mlp(M), replace(SLOW, flash=100_000))
    assert strategy.chosen.layout == Layout("dense", "int8")
    assert not strategy.exact
    assert "quantised first" in strategy.reason


def test_a_quantised_program_is_exact_in_its_own_format() -> None:
    program = mlp(S, bits=8)
    assert exact(program, Layout("dense", "int8"))
    assert not exact(program, Layout("dense", "int4"))
    assert not exact(mlp(S), Layout("dense", "int8"))
    assert exact(mlp(S, bits=4), Layout("dense", "int4"))
    assert choose(program, replace(FREE, formats=("int8",))).exact


def test_the_explanation_names_all_layouts_and_limits() -> None:
    target = SLOW
    text = str(choose(mlp(M), target))
    assert "Chosen: f32 dense, 29" in text
    assert "estimated" in text
    assert "it needs 1,3" in text  # unrolled: 18 bytes for each of 73,216 weights
    assert "the weights would be rounded" in text
    assert all(f"{layout}" in text for layout in LAYOUTS)
    assert target.sources["flash"] in text


def test_normalisation_is_stored_too() -> None:
    program = mlp((3, 4, 2))
    shift = Normalize("observation", "n", np.zeros(3, np.float32), np.ones(3, np.float32), 10.0)
    first = replace(program.operations[0], source="n")  # type: ignore[call-arg]
    longer = replace(program, operations=(shift, first, *program.operations[1:]), shapes={**program.shapes, "n": (3,)})
    layout = Layout("dense", "f32")
    assert estimate(longer, layout, FREE).flash == estimate(program, layout, FREE).flash + 24


def test_what_cannot_fit_says_what_comes_nearest_and_how_to_mend_it() -> None:
    target = replace(load_target("cortex-m0"), latency=None)
    with pytest.raises(TargetError) as refused:
        choose(mlp(M), target)
    text = str(refused.value)
    assert "73,734 parameters does not fit cortex-m0" in text
    assert "int4 dense" in text
    assert "bytes of flash of 32,768 allowed" in text
    limit = int(text.split("at most about ")[1].split(" ", maxsplit=1)[0].replace(",", ""))
    # What the message promises holds: a policy of that size, of the same shape, fits.
    width = next(w for w in range(256, 0, -1) if 24 * w + w * w + 6 * w + 2 * w + 6 <= limit)
    assert excess(estimate(mlp((24, width, width, 6)), Layout("dense", "int4"), target), target) == {}


def test_a_format_that_is_not_allowed_is_named_where_it_would_help() -> None:
    target = replace(FREE, formats=("f32",), flash=100_000)
    with pytest.raises(TargetError, match=r"In int4 dense it would fit with 4\d,\d+ bytes of flash, but the profile"):
        choose(mlp(M), target)


def test_too_little_memory_asks_for_narrower_layers() -> None:
    # 512 values of 4 bytes are alive at once, so that 1,024 bytes are enough for half of the widths.
    with pytest.raises(TargetError, match=r"2,048 bytes of RAM of 1,024 allowed.*\(50 % of the widths\)"):
        choose(mlp(M), replace(FREE, ram=1024, formats=("f32",)))


def test_a_device_that_takes_no_policy_at_all_says_so() -> None:
    with pytest.raises(TargetError, match="however small"):
        choose(mlp(S), replace(FREE, flash=500))
