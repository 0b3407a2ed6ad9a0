"""Passes leave the actions as they are, and do on small programs what is computed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import test_architectures as architectures
import test_sb3_table as table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lower import policy_of

from prunerl.deploy import passes
from prunerl.deploy.interpret import run, values
from prunerl.deploy.lower import lower
from prunerl.deploy.program import (
    OBSERVATION,
    Activation,
    Affine,
    Binary,
    Choose,
    Clip,
    Concat,
    Constant,
    Conv,
    Matrix,
    Normalize,
    OneHot,
    Operation,
    Program,
    Reduce,
    Reshape,
    Shape,
    Slice,
    Transpose,
)


def floats(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def program_of(shapes: Mapping[str, Shape], *operations: Operation, **options: Any) -> Program:
    """A program from ``observation`` to ``y``."""
    given = {"action": "y", "action_shape": shapes["y"], "action_dtype": "float32", **options}
    return Program(operations, shapes, observation_dtype="float32", **given)


def kinds(program: Program) -> list[type]:
    return [type(op) for op in program.operations]


def quantized(codes: Any, scale: Any, bits: int = 8) -> Matrix:
    codes, scale = np.array(codes, np.int8), floats(*scale)
    return Matrix(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)), codes, scale, None, bits)


def shared(codes: Any, codebook: Any) -> Matrix:
    codes, codebook = np.array(codes, np.uint8), floats(*codebook)
    return Matrix(codebook[codes], codes, None, codebook, 2)


def says_its_values(weight: Matrix) -> bool:
    """Return whether a coded weight is what its codes say."""
    assert weight.codes is not None
    if weight.codebook is not None:
        return np.array_equal(weight.codebook[weight.codes], weight.values)
    assert weight.scale is not None
    return np.array_equal(quantized(weight.codes, weight.scale, weight.bits).values, weight.values)


SHAPES = {OBSERVATION: (2,), "a": (2,), "b": (2,), "y": (2,)}
WEIGHT = Matrix(floats([1, 2], [3, 4]))


def test_dead_operations_values_and_memory_are_dropped() -> None:
    program = program_of(
        {**SHAPES, "old": (2,), "new": (2,), "m": (2,), "n": (2,)},
        Affine(OBSERVATION, "a", WEIGHT),
        Activation("old", "new", "tanh"),  # a memory that nothing reads
        Binary("m", OBSERVATION, "n", "add"),
        Activation("m", "y", "relu"),
        memory={"old": "new", "m": "n"},
    )
    smaller = passes.drop_dead(program)
    assert [op.result for op in smaller.operations] == ["n", "y"]
    assert smaller.memory == {"m": "n"}
    assert set(smaller.shapes) == {OBSERVATION, "m", "n", "y"}
    assert passes.drop_dead(smaller) is smaller


def test_constants_are_computed_and_held_by_what_reads_them() -> None:
    program = program_of(
        SHAPES,
        Constant("a", floats(4, 9)),
        Activation("a", "b", "sqrt"),
        Binary(OBSERVATION, "b", "y", "add"),
    )
    (operation,) = passes.fold_constants(program).operations
    assert isinstance(operation, Binary)
    np.testing.assert_array_equal(operation.right, [2, 3])
    assert operation.left == OBSERVATION


def test_constants_that_would_grow_stay() -> None:
    program = program_of(
        {OBSERVATION: (2,), "a": (), "b": (500,), "y": (500,)},
        Constant("a", np.float32(1)),
        OneHot("a", "b", (500,)),
        Binary("b", floats(2), "y", "mul"),
    )
    assert kinds(passes.fold_constants(program)) == [Constant, OneHot, Binary]


def test_what_only_moves_entries_is_dropped() -> None:
    shapes = {OBSERVATION: (2, 6), "a": (12,), "b": (4, 3), "c": (3, 4), "d": (4, 3), "e": (4, 3), "f": (3,), "y": (2,)}
    program = program_of(
        shapes,
        Reshape(OBSERVATION, "a"),
        Reshape("a", "b"),
        Transpose("b", "c", (1, 0)),
        Transpose("c", "d", (1, 0)),
        Slice("d", "e", 0, 0, 4),
        Reduce("e", "f", "sum", (0,)),
        Slice("f", "y", 0, 1, 3),
    )
    smaller = passes.drop_reshapes(program)
    assert kinds(smaller) == [Reshape, Reduce, Slice]
    x = np.arange(24, dtype=np.float32).reshape(2, 2, 6)
    np.testing.assert_array_equal(run(smaller, x)[0], run(program, x)[0])


def test_slices_of_slices_are_one() -> None:
    program = program_of(
        {OBSERVATION: (10,), "a": (4,), "b": (2,), "y": (2,)},
        Slice(OBSERVATION, "a", 0, 1, 9, 2),  # 1 3 5 7
        Slice("a", "b", 0, 1, 4, 2),  # 3 7
        Concat(("b",), "y", 0),
    )
    x = np.arange(10, dtype=np.float32)[None]
    smaller = passes.simplify(program)
    assert run(smaller, x)[0].tolist() == run(program, x)[0].tolist() == [[3, 7]]
    assert kinds(smaller) == [Slice]


def test_a_copy_of_one_part_of_the_memory_into_another_stays() -> None:
    program = program_of(
        {OBSERVATION: (2,), "m": (2,), "n": (2,), "n_next": (2,), "m_next": (2,), "y": (2,)},
        Reshape("m", "n_next"),
        Activation(OBSERVATION, "m_next", "neg"),
        Binary("n", OBSERVATION, "y", "add"),
        memory={"m": "m_next", "n": "n_next"},
    )
    assert passes.simplify(program).memory == {"m": "m_next", "n": "n_next"}


def test_factors_and_offsets_after_a_layer() -> None:
    program = program_of(
        {**SHAPES, "c": (2,)},
        Affine(OBSERVATION, "a", WEIGHT, floats(1, 1)),
        Binary("a", floats(2, 10), "b", "mul"),
        Binary(floats(5), "b", "c", "sub"),
        Binary("c", np.float32(4), "y", "div"),
    )
    (layer,) = passes.fold_affine(program).operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, np.array([[-2, -4], [-30, -40]]) / 4)
    np.testing.assert_array_equal(layer.bias, np.array([3, -5]) / 4)
    assert (layer.source, layer.result) == (OBSERVATION, "y")


def test_factors_and_offsets_before_a_layer() -> None:
    program = program_of(
        SHAPES,
        Binary(OBSERVATION, floats(1, -1), "a", "add"),
        Binary("a", floats(2, 10), "b", "mul"),
        Affine("b", "y", WEIGHT),
    )
    (layer,) = passes.fold_affine(program).operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, [[2, 20], [6, 40]])
    np.testing.assert_array_equal(layer.bias, [2 - 20, 6 - 40])


def test_what_others_read_as_well_is_not_folded() -> None:
    program = program_of(
        SHAPES, Affine(OBSERVATION, "a", WEIGHT), Binary("a", floats(2, 10), "b", "mul"), Binary("a", "b", "y", "add")
    )
    assert passes.fold_affine(program) is program


def test_layers_one_after_another_become_one_unless_that_is_larger() -> None:
    second = Matrix(floats([1, 0], [2, 1]))
    program = program_of(SHAPES, Affine(OBSERVATION, "a", WEIGHT, floats(1, 2)), Affine("a", "y", second, floats(3, 4)))
    (layer,) = passes.fold_affine(program).operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, [[1, 2], [5, 8]])
    np.testing.assert_array_equal(layer.bias, [4, 8])
    narrow = program_of(
        {OBSERVATION: (3,), "a": (1,), "y": (3,)},
        Affine(OBSERVATION, "a", Matrix(floats([1, 2, 3]))),
        Affine("a", "y", Matrix(floats([1], [2], [3]))),
    )
    assert passes.fold_affine(narrow) is narrow


def test_codes_are_kept_by_folds() -> None:
    for weight in (quantized([[1, 2], [3, -4]], [0.5, 0.25]), shared([[0, 1], [2, 1]], [0.5, 0, -3])):
        before = program_of(
            SHAPES, Binary(OBSERVATION, floats(2, 10), "a", "mul"), Affine("a", "y", weight, floats(1, 1))
        )
        assert passes.fold_affine(before) is before  # a factor for each column is in no scale
        alike = program_of(SHAPES, Binary(OBSERVATION, floats(2, 2), "a", "mul"), Affine("a", "y", weight))
        offset = program_of(
            SHAPES, Binary(OBSERVATION, floats(2, 5), "a", "add"), Affine("a", "y", weight, floats(0, 0))
        )
        for program in (alike, offset):
            (layer,) = passes.fold_affine(program).operations
            assert isinstance(layer, Affine)
            assert layer.weight.codes is not None
            np.testing.assert_array_equal(layer.weight.codes, weight.codes)
            assert says_its_values(layer.weight)
            x = floats([1, 2], [3, -4])
            np.testing.assert_allclose(run(passes.fold_affine(program), x)[0], run(program, x)[0], rtol=1e-6)
    rows = program_of(
        SHAPES,
        Affine(OBSERVATION, "a", quantized([[1, 2], [3, -4]], [0.5, 0.25])),
        Binary("a", floats(2, 3), "y", "mul"),
    )
    (layer,) = passes.fold_affine(rows).operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.scale, [1.0, 0.75])


def test_inputs_that_are_rounded_are_not_scaled_by_a_fold() -> None:
    layer = Affine("a", "y", quantized([[1, 2], [3, -4]], [0.5, 0.25]), floats(0, 0), input_scale=0.1)
    for function in ("mul", "add"):
        program = program_of(SHAPES, Binary(OBSERVATION, floats(2, 2), "a", function), layer)  # type: ignore[arg-type]
        assert passes.fold_affine(program) is program


def test_images_are_scaled_by_the_first_convolution() -> None:
    weight = Matrix(np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2))
    layer = Conv("a", "y", weight, floats(1, 1), (1, 1), (1, 1), (1, 1))
    shapes = {OBSERVATION: (1, 3, 3), "a": (1, 3, 3), "y": (2, 4, 4)}
    program = program_of(shapes, Binary(OBSERVATION, np.float32(255), "a", "div"), layer)
    x = np.random.default_rng(0).integers(0, 256, (4, 1, 3, 3)).astype(np.float32)
    (folded,) = passes.fold_affine(program).operations
    assert isinstance(folded, Conv)
    np.testing.assert_allclose(run(passes.fold_affine(program), x)[0], run(program, x)[0], rtol=1e-5)
    shifted = program_of(shapes, Binary(OBSERVATION, np.float32(1), "a", "sub"), layer)
    assert passes.fold_affine(shifted) is shifted  # the padding is zeros after the subtraction
    bare = program_of({**shapes, "y": (2, 2, 2)}, shifted.operations[0], replace(layer, padding=(0, 0)))
    assert kinds(passes.fold_affine(bare)) == [Conv]
    np.testing.assert_allclose(run(passes.fold_affine(bare), x)[0], run(bare, x)[0], rtol=1e-5)


def test_the_mean_of_quantiles_is_part_of_the_layer() -> None:
    weight = Matrix(np.arange(12, dtype=np.float32).reshape(6, 2))
    program = program_of(
        {OBSERVATION: (2,), "a": (6,), "b": (3, 2), "q": (2,), "y": (1,)},
        Affine(OBSERVATION, "a", weight, floats(0, 1, 2, 3, 4, 5)),
        Reshape("a", "b"),
        Reduce("b", "q", "mean", (0,)),
        Choose("q", "y", (2,)),
        action_dtype="int64",
    )
    layer, _ = passes.fold_affine(program).operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, [[4, 5], [6, 7]])
    np.testing.assert_array_equal(layer.bias, [2, 3])


NORMALIZE = Normalize(OBSERVATION, "a", floats(1, 2), floats(2, 0.5), 10.0)


def test_the_normaliser_is_folded_where_nothing_is_clipped() -> None:
    program = program_of(SHAPES, NORMALIZE, Affine("a", "y", WEIGHT, floats(1, 1)))
    folded = passes.fold_normalization(program, ([-4, -18], [6, 22]))  # exactly at the clip
    (layer,) = folded.operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, [[2, 1], [6, 2]])
    np.testing.assert_array_equal(layer.bias, [1 - 2 - 2, 1 - 6 - 4])
    assert folded.notes
    assert passes.fold_normalization(program, ([-4, -18], [6.1, 22])) is program
    assert passes.fold_normalization(program, (-np.inf, np.inf)) is program
    assert kinds(passes.simplify(program, bounds=(-4, 6))) == [Affine]
    assert kinds(passes.simplify(program)) == [Normalize, Affine]


def test_the_normaliser_stays_where_folding_is_not_exact() -> None:
    far = replace(NORMALIZE, mean=floats(1e4, 2))
    coded = Affine("a", "y", quantized([[1, 2], [3, -4]], [0.5, 0.25]))
    both = program_of(SHAPES, NORMALIZE, Affine("a", "b", WEIGHT), Binary("a", "b", "y", "add"))
    for program, bounds in (
        (program_of(SHAPES, far, Affine("a", "y", WEIGHT)), ([9999, 0], [10001, 1])),
        (program_of(SHAPES, NORMALIZE, coded), (0, 1)),
        (both, (0, 1)),
    ):
        assert passes.fold_normalization(program, bounds) is program


def test_an_entry_that_is_not_normalised_stays_as_it_is() -> None:
    part = replace(NORMALIZE, where=np.array([True, False]))
    program = program_of(SHAPES, part, Affine("a", "y", WEIGHT))
    folded = passes.fold_normalization(program, ([-4, -1e9], [6, 1e9]))
    (layer,) = folded.operations
    assert isinstance(layer, Affine)
    np.testing.assert_array_equal(layer.weight.values, [[2, 2], [6, 4]])
    np.testing.assert_array_equal(layer.bias, [-2, -6])


def dead_units(**options: Any) -> Program:
    """Four units: one as any, one that nobody reads, one without inputs, and one with neither."""
    first = Matrix(floats([1, 1], [5, 5], [0, 0], [0, 0]))
    second = options.pop("second", Matrix(floats([1, 0, 10, 0], [2, 0, 20, 0])))
    return program_of(
        {OBSERVATION: (2,), "a": (4,), "b": (4,), "y": (2,)},
        Affine(OBSERVATION, "a", first, floats(0, 1, 3, 4)),
        Activation("a", "b", "square"),
        Affine("b", "y", second, floats(1, 2), **options),
    )


def test_units_that_do_nothing_are_dropped_and_constants_become_biases() -> None:
    smaller = passes.drop_dead_units(dead_units())
    first, _, last = smaller.operations
    assert isinstance(first, Affine)
    assert isinstance(last, Affine)
    assert first.weight.values.tolist() == [[1, 1]]
    assert last.weight.values.tolist() == [[1], [2]]
    assert last.bias is not None
    assert last.bias.tolist() == [1 + 10 * 9, 2 + 20 * 9]
    assert smaller.shapes["a"] == smaller.shapes["b"] == (1,)
    assert "3 of 4 units" in smaller.notes[0]


def test_a_constant_is_rounded_as_the_layer_rounds_its_inputs() -> None:
    second = quantized([[1, 0, 10, 0], [2, 0, 20, 0]], [1, 1])
    program = dead_units(second=second, input_scale=0.4)
    smaller = passes.drop_dead_units(program)
    x = floats([1, 2], [0.3, -0.5])
    np.testing.assert_allclose(run(smaller, x)[0], run(program, x)[0], rtol=1e-6)
    last = smaller.operations[-1]
    assert isinstance(last, Affine)
    assert says_its_values(last.weight)


def test_one_unit_stays() -> None:
    program = program_of(
        {OBSERVATION: (2,), "a": (3,), "b": (3,), "y": (1,)},
        Affine(OBSERVATION, "a", Matrix(np.zeros((3, 2), np.float32)), floats(1, 2, 3)),
        Activation("a", "b", "relu"),
        Affine("b", "y", Matrix(floats([1, 1, 1]))),
    )
    smaller = passes.drop_dead_units(program)
    assert smaller.shapes["a"] == (1,)
    assert run(smaller, floats([7, 7]))[0].tolist() == [[6]]
    assert passes.drop_dead_units(smaller) is smaller


def test_units_that_something_else_reads_stay() -> None:
    program = dead_units()
    summed = program_of(
        {OBSERVATION: (2,), "a": (4,), "s": (), "b": (4,), "t": (2,), "y": (2,)},
        program.operations[0],
        Reduce("a", "s", "sum", (0,)),
        Activation("a", "b", "square"),
        replace(program.operations[2], result="t"),  # type: ignore[arg-type]
        Binary("t", "s", "y", "add"),
    )
    assert passes.drop_dead_units(summed) is summed
    assert passes.permute_rows(summed) is summed


def test_rows_are_put_in_order_of_their_length() -> None:
    program = program_of(
        {OBSERVATION: (2,), "a": (3,), "b": (3,), "y": (1,)},
        Affine(OBSERVATION, "a", Matrix(floats([0, 1], [1, 1], [2, 0])), floats(1, 2, 3)),
        Binary("a", floats(5, 6, 7), "b", "mul"),
        Affine("b", "y", quantized([[1, 2, 3]], [0.5])),
    )
    permuted = passes.permute_rows(program)
    first, between, last = permuted.operations
    assert isinstance(first, Affine)
    assert isinstance(between, Binary)
    assert isinstance(last, Affine)
    assert first.weight.values.tolist() == [[1, 1], [0, 1], [2, 0]]
    assert first.bias is not None
    assert first.bias.tolist() == [2, 1, 3]
    assert np.asarray(between.right).tolist() == [6, 5, 7]
    assert last.weight.codes is not None
    assert last.weight.codes.tolist() == [[2, 1, 3]]
    backwards = passes.permute_rows(program, lambda weight: np.arange(len(weight.values))[::-1])
    x = floats([1, 2], [-3, 0.5])
    for other in (permuted, backwards):
        np.testing.assert_allclose(run(other, x)[0], run(program, x)[0], rtol=1e-6)
    with pytest.raises(ValueError, match="no permutation"):
        passes.permute_rows(program, lambda weight: np.zeros(3, np.intp))


def random_program(seed: int) -> Program:
    """Layers with zeros, constants around them and activations in between, of random widths."""
    rng = np.random.default_rng(seed)
    widths = [int(n) for n in rng.integers(1, 7, rng.integers(2, 5))]
    shapes: dict[str, Shape] = {OBSERVATION: (widths[0],)}
    operations: list[Operation] = []
    last = OBSERVATION

    def add(make: Any, width: int) -> None:
        nonlocal last
        name = f"v{len(operations)}"
        operations.append(make(last, name))
        shapes[name] = (width,)
        last = name

    def constant(width: int) -> Any:
        function = str(rng.choice(["add", "sub", "mul", "div", "max"]))
        value = np.float32(rng.choice([-2.0, -1.0, 0.5, 3.0], rng.choice([1, width])))
        flip = function in ("add", "sub", "mul") and rng.random() < 0.5
        return lambda s, r: Binary(value, s, r, function) if flip else Binary(s, value, r, function)

    for before, after in itertools.pairwise(widths):
        if rng.random() < 0.4:
            add(constant(before), before)
        dense = rng.integers(-8, 9, (after, before)) * (rng.random((after, before)) < 0.6)
        weight = [
            Matrix(dense.astype(np.float32) / 4),
            quantized(dense, rng.uniform(0.1, 0.5, after)),
            shared(np.abs(dense) % 3, [0.0, 0.5, -1.25]),
        ][int(rng.integers(3))]
        bias = None if rng.random() < 0.3 else rng.standard_normal(after).astype(np.float32)
        scale = 0.05 if weight.scale is not None and rng.random() < 0.3 else None
        add(lambda s, r, w=weight, b=bias, c=scale: Affine(s, r, w, b, c), after)
        if rng.random() < 0.4:
            add(constant(after), after)
        if rng.random() < 0.6:
            add(lambda s, r: Activation(s, r, str(rng.choice(["relu", "tanh", "sigmoid"]))), after)  # type: ignore[arg-type]
    bound = np.full(widths[-1], 1e6, np.float32)
    add(lambda s, r: Clip(s, r, -bound, bound), widths[-1])
    return Program(tuple(operations), shapes, last, "float32", (widths[-1],), "float32")


def assert_computes_alike(first: Program, second: Program, seed: int) -> None:
    """Compare the actions; rounded inputs jump where an input is a rounding error on the other side of a half."""
    x = np.random.default_rng(seed).standard_normal((64, *first.observation_shape)).astype(np.float32)
    one, other = run(first, x)[0], run(second, x)[0]
    scale = max(1.0, *(float(np.abs(v).max(initial=0)) for v in values(first, x).values()))
    apart = np.abs(one - other).reshape(len(x), -1).max(1) > 1e-5 * scale
    rounds = any(isinstance(op, Affine) and op.input_scale is not None for op in first.operations)
    assert apart.mean() <= (0.05 if rounds else 0)


@pytest.mark.parametrize(
    "apply",
    [
        passes.drop_dead, passes.fold_constants, passes.drop_reshapes, passes.fold_affine, passes.drop_dead_units,
        passes.permute_rows, passes.simplify,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_pass_changes_no_action_and_keeps_codes(apply: Any, seed: int) -> None:
    program = random_program(seed)
    changed = apply(program)
    assert_computes_alike(program, changed, seed)
    assert len(changed.operations) <= len(program.operations)
    assert set(changed.shapes) <= set(program.shapes)
    for operation in changed.operations:
        if isinstance(operation, Affine) and operation.weight.codes is not None:
            assert says_its_values(operation.weight)
    again = apply(changed)
    assert passes.entries(again) == passes.entries(changed)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_folding_the_normaliser_changes_no_action(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain = random_program(seed)
    shape = plain.observation_shape
    mean, factor = rng.standard_normal(shape).astype(np.float32), rng.uniform(0.1, 5, shape).astype(np.float32)
    first = plain.operations[0]
    if not isinstance(first, Affine):
        return
    moved = replace(first, source="n")
    operations = (Normalize(OBSERVATION, "n", mean, factor, 10.0), moved, *plain.operations[1:])
    program = replace(plain, operations=operations, shapes={**plain.shapes, "n": shape})
    reach = float(rng.choice([1.0, 100.0]))
    x = np.clip(rng.standard_normal((64, *shape)) * 5, -reach, reach).astype(np.float32)
    folded = passes.fold_normalization(program, (-reach, reach))
    if moved.input_scale is not None or moved.weight.codes is not None:
        assert folded is program
    elif all(not isinstance(op, Affine) or op.input_scale is None for op in program.operations):
        scale = max(1.0, *(float(np.abs(v).max(initial=0)) for v in values(program, x).values()))
        np.testing.assert_allclose(run(folded, x)[0], run(program, x)[0], atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["crossq", "ppo-cnn", "ppo-dict", "qrdqn", "ppo_lstm-two", "sac-own"])
def test_simplified_agents_act_alike(name: str) -> None:
    agent = table.taken(name)
    observations = table.packed(agent, table.observed(agent, 300))
    program = lower(agent.policy, dtype=str(observations.dtype))
    smaller = passes.permute_rows(passes.simplify(program))
    wanted, got = run(program, observations)[0], run(smaller, observations)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert passes.entries(smaller) <= passes.entries(program)
    if name == "crossq":  # its normalisations are part of its layers
        assert [kind.__name__ for kind in kinds(smaller)] == ["Affine", "Activation"] * 2 + ["Affine", "Squash"]


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm", "convolutions", "attention", "LSTM by hand", "cells"])
def test_simplified_architectures_compute_alike(name: str) -> None:
    case = architectures.CASES[name]
    program = lower(policy_of(case.network, case.shape))
    x = np.random.default_rng(0).standard_normal((100, *case.shape)).astype(np.float32)
    smaller = passes.simplify(program)
    np.testing.assert_allclose(run(smaller, x)[0], run(program, x)[0], rtol=1e-5, atol=1e-5)
    if "Norm" in name or "norm" in name:
        assert not any(isinstance(op, Binary) for op in smaller.operations)
