"""What each operation computes, against PyTorch and against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunerl.deploy.interpret import run, values
from prunerl.deploy.program import (
    OBSERVATION,
    Activation,
    Affine,
    Binary,
    Choose,
    Clip,
    Constant,
    Conv,
    Function,
    GroupNorm,
    MatMul,
    Matrix,
    Norm,
    Normalize,
    OneHot,
    Operation,
    Pool,
    Positive,
    Program,
    Recurrent,
    Reduce,
    Shape,
    Softmax,
    Squash,
)

rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def program_of(shapes: Mapping[str, Shape], *operations: Operation, **options: Any) -> Program:
    """A program from ``observation`` to ``y``."""
    action = {"action": "y", "action_shape": shapes["y"], "action_dtype": "float32", **options}
    return Program(operations, shapes, observation_dtype="float32", **action)


def computed(operation: Operation, x: np.ndarray, made: Shape) -> np.ndarray:
    return values(program_of({OBSERVATION: x.shape[1:], "y": made}, operation), x)["y"]


FUNCTIONS: Mapping[str, tuple[tuple[float, ...], Any]] = {
    "relu": ((), F.relu), "tanh": ((), torch.tanh), "sigmoid": ((), torch.sigmoid), "silu": ((), F.silu),
    "elu": ((0.7,), lambda x: F.elu(x, 0.7)), "leaky_relu": ((0.2,), lambda x: F.leaky_relu(x, 0.2)),
    "gelu": ((), F.gelu), "gelu_tanh": ((), lambda x: F.gelu(x, approximate="tanh")), "mish": ((), F.mish),
    "softplus": ((2.0, 5.0), lambda x: F.softplus(x, 2.0, 5.0)), "exp": ((), torch.exp), "log": ((), torch.log),
    "hardtanh": ((-0.3, 0.8), lambda x: F.hardtanh(x, -0.3, 0.8)), "abs": ((), torch.abs), "neg": ((), torch.neg),
    "sqrt": ((), torch.sqrt), "square": ((), torch.square), "softsign": ((), F.softsign), "selu": ((), F.selu),
    "relu6": ((), F.relu6), "hardsigmoid": ((), F.hardsigmoid), "hardswish": ((), F.hardswish),
    "reciprocal": ((), torch.reciprocal), "log_sigmoid": ((), F.logsigmoid),
}  # fmt: skip


@pytest.mark.parametrize("function", get_args(Function))
def test_functions(function: Any) -> None:
    parameters, reference = FUNCTIONS[function]
    x = np.concatenate([floats(40, 3) * 4, np.float32([[0, 30, -30], [100, -100, 1e-6]])])
    if function in ("log", "sqrt"):
        x = np.abs(x)
    got = computed(Activation(OBSERVATION, "y", function, parameters), x, (3,))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference(torch.from_numpy(x)).numpy(), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(dims: int, transposed: bool) -> None:
    x, places = floats(2, 4, *(7, 6, 5)[:dims]), (7, 6, 5)[:dims]
    stride, padding, dilation = (2, 1, 1)[:dims], (1, 0, 1)[:dims], (1, 2, 1)[:dims]
    weight, bias = floats(4 if transposed else 6, 3 if transposed else 2, *(3, 2, 3)[:dims]), floats(6)
    function = getattr(F, f"conv_transpose{dims}d" if transposed else f"conv{dims}d")
    extra = (1, 0, 0)[:dims] if transposed else ()
    options = {"output_padding": extra} if transposed else {}
    wanted = function(
        torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), stride=stride, padding=padding,
        dilation=dilation, groups=2, **options,
    ).numpy()  # fmt: skip
    operation = Conv(OBSERVATION, "y", Matrix(weight), bias, stride, padding, dilation, 2, transposed, extra)
    np.testing.assert_allclose(computed(operation, x, wanted.shape[1:]), wanted, rtol=1e-5, atol=1e-5)
    assert x.shape[2:] == places


@pytest.mark.parametrize(("function", "counted"), [("max", True), ("mean", True), ("mean", False)])
def test_pooling(function: Any, counted: bool) -> None:
    x = floats(2, 3, 7, 6) - 3
    images = torch.from_numpy(x)
    if function == "max":
        wanted = F.max_pool2d(images, (3, 2), (2, 1), (1, 1))
    else:
        wanted = F.avg_pool2d(images, (3, 2), (2, 1), (1, 1), count_include_pad=counted)
    operation = Pool(OBSERVATION, "y", function, (3, 2), (2, 1), (1, 1), counted)
    np.testing.assert_allclose(computed(operation, x, tuple(wanted.shape[1:])), wanted.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_layers(kind: Any) -> None:
    torch.manual_seed(0)
    cell: Any = {
        "lstm": nn.LSTMCell(3, 4), "gru": nn.GRUCell(3, 4), "rnn_tanh": nn.RNNCell(3, 4),
        "rnn_relu": nn.RNNCell(3, 4, nonlinearity="relu"),
    }[kind].requires_grad_(False)  # fmt: skip
    names = ("h", "c") if kind == "lstm" else ("h",)
    operation = Recurrent(
        OBSERVATION, names, tuple(f"{n}_next" for n in names), kind, Matrix(cell.weight_ih.numpy()),
        Matrix(cell.weight_hh.numpy()), cell.bias_ih.numpy(), cell.bias_hh.numpy(),
    )  # fmt: skip
    shapes = {OBSERVATION: (3,), **{n: (4,) for n in (*names, *operation.following)}, "y": (4,)}
    program = Program((operation,), shapes, "h_next", "float32", (4,), "float32", {n: f"{n}_next" for n in names})
    memory: Any = None
    state: tuple[Tensor, ...] = tuple(torch.zeros(5, 4) for _ in names)
    for _ in range(3):
        x = floats(5, 3)
        action, memory = run(program, x, memory)
        out = cell(torch.from_numpy(x), state if kind == "lstm" else state[0])
        state = out if kind == "lstm" else (out,)
        np.testing.assert_allclose(action, state[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(memory[names[-1]], state[-1].numpy(), rtol=1e-5, atol=1e-6)


def test_norms() -> None:
    x, weight, bias = floats(5, 4, 6), floats(4, 6), floats(4, 6)
    torch_x, w, b = (torch.from_numpy(a) for a in (x, weight, bias))
    layer = computed(Norm(OBSERVATION, "y", "layer", 2, 1e-5, weight, bias), x, (4, 6))
    np.testing.assert_allclose(layer, F.layer_norm(torch_x, (4, 6), w, b).numpy(), rtol=1e-5, atol=1e-6)
    rms = computed(Norm(OBSERVATION, "y", "rms", 1, 1e-6, weight[0]), x, (4, 6))
    np.testing.assert_allclose(rms, F.rms_norm(torch_x, [6], w[0], 1e-6).numpy(), rtol=1e-5, atol=1e-6)
    grouped = computed(GroupNorm(OBSERVATION, "y", 2, 1e-5, weight[:, 0], bias[:, 0]), x, (4, 6))
    wanted = F.group_norm(torch_x, 2, w[:, 0], b[:, 0]).numpy()
    np.testing.assert_allclose(grouped, wanted, rtol=1e-5, atol=1e-5)


def test_softmax_sums_and_products() -> None:
    x = floats(5, 4, 6)
    torch_x = torch.from_numpy(x)
    for axis, log in ((0, False), (1, True)):
        wanted = (torch.log_softmax if log else torch.softmax)(torch_x, axis + 1).numpy()
        np.testing.assert_allclose(
            computed(Softmax(OBSERVATION, "y", axis, log), x, (4, 6)), wanted, rtol=1e-5, atol=1e-6
        )
    kept = computed(Reduce(OBSERVATION, "y", "mean", (1,), True), x, (4, 1))
    np.testing.assert_allclose(kept, x.mean(2, keepdims=True), rtol=1e-6)
    constant = Constant("w", floats(6, 2))
    program = program_of({OBSERVATION: (4, 6), "w": (6, 2), "y": (4, 2)}, constant, MatMul(OBSERVATION, "w", "y"))
    np.testing.assert_allclose(values(program, x)["y"], x @ constant.value, rtol=1e-5, atol=1e-6)


def test_operands_of_different_dimensions_line_up_from_the_last_one_on() -> None:
    x = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)  # two observations
    first = Reduce(OBSERVATION, "first", "sum", (0,))  # [4, 6] and [12, 14]
    program = program_of(
        {OBSERVATION: (2, 2), "first": (2,), "y": (2, 2)}, first, Binary(OBSERVATION, "first", "y", "sub")
    )
    assert values(program, x)["y"].tolist() == [[[-3, -4], [-1, -2]], [[-7, -8], [-5, -6]]]


def test_a_layer_with_rounded_inputs_sums_integers() -> None:
    codes, scale = np.array([[127, -3], [2, 1]], np.int8), np.array([0.5, 0.25], np.float32)
    weight = Matrix(codes * scale[:, None], codes, scale, None, 8)
    operation = Affine(OBSERVATION, "y", weight, np.array([1.0, 0.0], np.float32), input_scale=0.5)
    # 1.25 / 0.5 = 2.5 is rounded to 2 and 1.75 / 0.5 = 3.5 to 4: half to even; 100 / 0.5 = 200 is cut to 127.
    x = np.array([[1.25, 1.75], [100.0, -100.0]], np.float32)
    sums = np.array([[127 * 2 - 3 * 4, 2 * 2 + 4], [127 * 127 + 3 * 127, 2 * 127 - 127]], np.float32)
    wanted = sums * np.float32([0.25, 0.125]) + np.float32([1.0, 0.0])
    np.testing.assert_array_equal(computed(operation, x, (2,)), wanted)
    column = Conv(OBSERVATION, "y", Matrix(weight.values[..., None], codes[..., None], scale, None, 8),
                  np.array([1.0, 0.0], np.float32), (1,), (0,), (1,), input_scale=0.5)  # fmt: skip
    np.testing.assert_array_equal(computed(column, x[..., None], (2, 1))[..., 0], wanted)


def test_a_layer_with_rounded_inputs_needs_codes() -> None:
    operation = Affine(OBSERVATION, "y", Matrix(floats(2, 3)), None, input_scale=0.5)
    with pytest.raises(ValueError, match="needs a quantised weight"):
        computed(operation, floats(4, 3), (2,))


def test_choices_are_the_first_of_the_largest_that_are_allowed() -> None:
    operation = Choose(OBSERVATION, "y", (2, 3))
    program = program_of({OBSERVATION: (5,), "y": (2,)}, operation, action_dtype="int64", allowed=5)
    x = np.array([[1, 1, 0, 7, 7], [0, 2, 5, 4, 3]], np.float32)
    actions, memory = run(program, x)
    assert actions.tolist() == [[0, 1], [1, 0]]
    assert actions.dtype == np.int64
    assert memory == {}
    allowed = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1]], np.bool_)
    assert run(program, x, None, allowed)[0].tolist() == [[1, 2], [0, 2]]


def test_bernoulli_actions_and_their_masks() -> None:
    program = program_of({OBSERVATION: (3,), "y": (3,)}, Positive(OBSERVATION, "y"), action_dtype="int8", allowed=6)
    x = np.array([[0.0, 1.0, -1.0]], np.float32)
    assert run(program, x)[0].tolist() == [[0, 1, 0]]
    only_others = np.array([[0, 1, 1, 0, 0, 1]], np.bool_)
    assert run(program, x, None, only_others)[0].tolist() == [[1, 0, 1]]


def test_what_makes_continuous_actions_and_prepares_observations() -> None:
    low, high = np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)
    x = np.array([[3.0, -2.0], [0.5, 9.0]], np.float32)
    assert computed(Clip(OBSERVATION, "y", low, high), x, (2,)).tolist() == [[1, 0], [0.5, 9]]
    squashed = computed(Squash(OBSERVATION, "y", low, np.array([1, 4], np.float32)), np.float32([[0, 50]]), (2,))
    assert squashed.tolist() == [[0, 4]]
    normalize = Normalize(OBSERVATION, "y", low, np.float32([2, 1]), 5.0, np.array([True, False]))
    assert computed(normalize, x, (2,)).tolist() == [[5, -2], [3, 9]]
    codes = computed(OneHot(OBSERVATION, "y", (2, 3), (0, 1)), np.float32([[1, 3.7]]), (5,))
    assert codes.tolist() == [[0, 1, 0, 0, 1]]


def test_what_does_not_fit_is_refused() -> None:
    program = program_of({OBSERVATION: (3,), "y": (3,)}, Activation(OBSERVATION, "y", "relu"))
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4,\)"):
        run(program, floats(2, 4))
    with pytest.raises(ValueError, match="takes none"):
        run(program, floats(2, 3), None, np.ones((2, 3), np.bool_))
