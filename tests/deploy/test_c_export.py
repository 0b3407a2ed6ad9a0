from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_programs import PROGRAMS, inputs, matrix, one, program, quantized, shared

from prunerl import heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.deploy import interpret
from prunerl.deploy.c99 import functions, plan, step, text
from prunerl.deploy.c99 import matrix as storing
from prunerl.deploy.c99.selftest import Selftest
from prunerl.deploy.c_export import c_header, c_source
from prunerl.deploy.lower import lower
from prunerl.deploy.program import Activation, Affine, Binary, Choose, Constant, Matrix, Positive, Program, Reshape
from prunerl.errors import ExportError

STRICT = ("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wconversion")
FORMS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "never as formulae": {"unroll": False},
    "always sparse": {"unroll": False, "sparse": 0.0},
    "never sparse, libm's tanh": {"unroll": False, "sparse": False, "exact_tanh": True},
}
DECISIONS = 24

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def gcc(*arguments: str | Path) -> None:
    done = subprocess.run([*STRICT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compiled(sources: dict[str, str], folder: Path) -> ctypes.CDLL:
    (folder / "all.c").write_text("\n".join(sources.values()))
    gcc("-O1", "-Wmissing-prototypes", "-shared", "-fPIC", folder / "all.c", "-lm", "-o", folder / "all.so")
    return ctypes.CDLL(str(folder / "all.so"))


def play(
    library: ctypes.CDLL, name: str, made: Program, observations: np.ndarray, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Return the actions of one episode, flat."""
    act, result = library[name], np.full((len(observations), math.prod(made.shapes[made.action])), 77, np.float32)
    act.restype = None
    if made.memory:
        library[f"{name}_reset"]()
    for i, observation in enumerate(observations.reshape(len(observations), -1).astype(np.float32)):
        arrays = [np.ascontiguousarray(observation), result[i]]
        arrays += [] if allowed is None else [allowed[i].astype(np.uint8)]
        act(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays))
    return result


def expected(made: Program, observations: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Return the interpreter's actions of one episode, flat."""
    actions, memory = [], None
    for i in range(len(observations)):
        mask = None if allowed is None else allowed[i : i + 1]
        action, memory = interpret.run(made, observations[i : i + 1], memory, mask)
        actions.append(action.reshape(-1))
    return np.stack(actions).astype(np.float32)


def alike(got: np.ndarray, wanted: np.ndarray, made: Program) -> None:
    if made.action_dtype == "float32":
        np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=3e-6 * max(1.0, np.nanmax(np.abs(wanted))))
    else:
        np.testing.assert_array_equal(got, wanted)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Every small program in every form, compiled without a warning."""
    sources = {
        f"p{i}_{k}": c_source(made, name=f"p{i}_{k}", **form)
        for i, made in enumerate(PROGRAMS.values())
        for k, form in enumerate(FORMS.values())
    }
    return compiled(sources, tmp_path_factory.mktemp("c"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_function_acts_as_the_interpreter(name: str, form: str, library: ctypes.CDLL) -> None:
    made = PROGRAMS[name]
    observations, _, allowed = inputs(made, DECISIONS)
    got = play(library, f"p{list(PROGRAMS).index(name)}_{list(FORMS).index(form)}", made, observations, allowed)
    alike(got, expected(made, observations, allowed), made)


@pytest.mark.parametrize("name", [name for name, made in PROGRAMS.items() if made.memory])
def test_reset_empties_the_memory(name: str, library: ctypes.CDLL) -> None:
    made, function = PROGRAMS[name], f"p{list(PROGRAMS).index(name)}_0"
    observations, _, _ = inputs(made, DECISIONS)
    first, second = (play(library, function, made, observations) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("compiler", ["gcc -std=c99 -pedantic", "g++ -std=c++11"])
def test_headers_stand_side_by_side_in_one_file(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{compiler.split(maxsplit=1)[0]} is not installed")
    for i, made in enumerate(PROGRAMS.values()):
        (tmp_path / f"p{i}.h").write_text(c_header(made, name=f"p{i}", unroll=False if i % 2 else None))
    lines = [f'#include "p{i}.h"\n' * 2 for i in range(len(PROGRAMS))]
    (tmp_path / "all.c").write_text("".join(lines) + "int main(void) { return 0; }\n")
    command = [*compiler.split(), "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "all.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_self_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    parts = []
    for i, made in enumerate(PROGRAMS.values()):
        observations, _, allowed = inputs(made, DECISIONS)
        test = Selftest(observations, expected(made, observations, allowed), allowed, 1e-5)
        source = c_source(made, name=f"p{i}", selftest=test, unroll=bool(i % 2), sparse=0.0 if i % 3 else True)
        parts.append(f"#define P{i}_SELFTEST\n#define main selftest{i}\nint main(void);\n{source}\n#undef main\n")
    calls = " + ".join(f"(selftest{i}() != 0)" for i in range(len(PROGRAMS)))
    (tmp_path / "all.c").write_text("".join(parts) + f"int main(void) {{ return {calls}; }}\n")
    sanitize = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    gcc(*sanitize, tmp_path / "all.c", "-lm", "-o", tmp_path / "all")
    done = subprocess.run([tmp_path / "all"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["mlp", "clip", "lstm", "masked"])
@pytest.mark.parametrize("wrong", [0, 1, 5, 200])
def test_the_self_test_counts_what_differs(name: str, wrong: int, tmp_path: Path) -> None:
    made = PROGRAMS[name]
    observations, _, allowed = inputs(made, 200)
    actions = expected(made, observations, allowed)
    actions[:wrong, 0] += 1.0
    source = c_source(made, name="lander", selftest=Selftest(observations, actions, allowed))
    (tmp_path / "lander.c").write_text(source)
    gcc("-DLANDER_SELFTEST", tmp_path / "lander.c", "-lm", "-o", tmp_path / "lander")
    assert subprocess.run([tmp_path / "lander"], check=False).returncode == min(wrong, 125)


def test_without_its_macro_the_self_test_is_absent(tmp_path: Path) -> None:
    made = PROGRAMS["mlp"]
    observations, _, _ = inputs(made, 3)
    source = c_source(made, selftest=(observations, interpret.run(made, observations)[0]))
    (tmp_path / "policy.c").write_text(source)
    gcc("-c", tmp_path / "policy.c", "-o", tmp_path / "policy.o")
    names = subprocess.run(["nm", tmp_path / "policy.o"], capture_output=True, text=True, check=True).stdout
    assert " T policy" in names
    assert "main" not in names


def test_no_library_but_math(tmp_path: Path) -> None:
    for i, made in enumerate(PROGRAMS.values()):
        (tmp_path / f"p{i}.c").write_text(c_source(made, name=f"p{i}", unroll=False))
        gcc("-O1", "-c", tmp_path / f"p{i}.c", "-o", tmp_path / f"p{i}.o")
    objects = sorted(map(str, tmp_path.glob("*.o")))
    listed = subprocess.run(["nm", "-u", *objects], capture_output=True, text=True, check=True).stdout
    used = {line.split()[1] for line in listed.splitlines() if line.startswith(" ")}
    assert used <= {
        f"{f}f" for f in ("exp", "expm1", "log", "log1p", "erf", "pow", "sqrt", "tanh", "trunc", "rint")
    } | {"_GLOBAL_OFFSET_TABLE_"}


def test_a_tiny_policy_reads_like_formulae() -> None:
    first = Affine("observation", "h", Matrix(np.float32([[0.5, -2.0], [0.0, 0.25]])), np.float32([1.0, 0.0]))
    second = Affine("a", "out", Matrix(np.float32([[0.0, 0.0], [3.0, -1e-20]])))
    made = program(
        first, Activation("h", "a", "relu"), second, shapes={"observation": (2,), "h": (2,), "a": (2,), "out": (2,)}
    )
    lines = [line.strip() for line in c_source(made).splitlines()]
    assert "v_h[0] = 1.0f + 0.5f * obs[0] - 2.0f * obs[1];" in lines
    assert "v_h[1] = 0.25f * obs[1];" in lines
    assert "v_out[0] = 0.0f;" in lines
    assert "v_out[1] = 3.0f * v_a[0] - 1e-20f * v_a[1];" in lines


def test_literals_read_back_exactly(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    edges = [0.0, -0.0, np.inf, -np.inf, np.float32(1e-45), np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    floats = np.concatenate([bits.view(np.float32), np.float32(edges)])
    floats = floats[~np.isnan(floats)]
    source = "#include <math.h>\n" + text.define(text.Table("t", floats)).removeprefix("static ")
    (tmp_path / "t.c").write_text(source)
    gcc("-shared", "-fPIC", tmp_path / "t.c", "-o", tmp_path / "t.so")
    read = (ctypes.c_float * len(floats)).in_dll(ctypes.CDLL(str(tmp_path / "t.so")), "t")
    np.testing.assert_array_equal(np.frombuffer(read, np.uint32), floats.view(np.uint32))


TANH = """
#include <math.h>
#include <stdint.h>
#include <string.h>
#define NAME_FMA(a, b, c) %s
%s
/* The largest error over every STEPth float from 2^-40 to 16, or 9 where it is above 1 or not odd. */
double worst(uint32_t every)
{
    const float ends[2] = {9.0949470e-13f, 16.0f};
    uint32_t at, end;
    double most = 0.0;
    memcpy(&at, &ends[0], 4);
    memcpy(&end, &ends[1], 4);
    for (; at < end; at += every) {
        float x, y;
        double error;
        memcpy(&x, &at, 4);
        y = NAME_tanh(x);
        error = y > 1.0f || NAME_tanh(-x) != -y ? 9.0 : fabs((double)y - tanh((double)x));
        most = error > most ? error : most;
    }
    return most;
}
float at(float x);
float at(float x) { return NAME_tanh(x); }
"""


def tanh_library(fused: bool, folder: Path) -> ctypes.CDLL:
    (folder / "t.c").write_text(TANH % ("fmaf(a, b, c)" if fused else "((a) * (b) + (c))", functions.TANH.text))
    command = ["gcc", "-O2", "-std=c99", *(["-mfma"] if fused else []), "-shared", "-fPIC", "t.c", "-lm", "-o", "t.so"]
    if subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode:
        pytest.skip("this processor has no fused multiply-add")
    library = ctypes.CDLL(str(folder / "t.so"))
    library.worst.restype = ctypes.c_double
    library.at.restype, library.at.argtypes = ctypes.c_float, [ctypes.c_float]
    return library


@pytest.mark.parametrize("fused", [False, True])
def test_the_tangent_is_within_its_bound(fused: bool, tmp_path: Path) -> None:
    library = tanh_library(fused, tmp_path)
    assert library.worst(ctypes.c_uint32(997)) < functions.TANH_ERROR
    assert [library.at(x) for x in (0.0, 1e-30, -1e-30, 16.0, np.inf, -np.inf)] == [
        0.0, np.float32(1e-30), -np.float32(1e-30), 1.0, 1.0, -1.0,
    ]  # fmt: skip
    assert math.copysign(1.0, library.at(-0.0)) == -1.0
    assert math.isnan(library.at(math.nan))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_the_tangent_is_within_its_bound_for_every_float(fused: bool, tmp_path: Path) -> None:
    assert tanh_library(fused, tmp_path).worst(ctypes.c_uint32(1)) < functions.TANH_ERROR


def test_not_a_number_has_a_meaning(tmp_path: Path) -> None:
    choose, positive = (
        one(Choose("observation", "out", (3,)), (3,), (1,)),
        one(Positive("observation", "out"), (1,), (1,)),
    )
    whole = one(Affine("observation", "out", quantized(1, 2), None, 0.5), (2,), (1,))
    made = {"choose": choose, "positive": positive, "hot": PROGRAMS["discrete observation"], "whole": whole}
    made |= {"row": PROGRAMS["embedding"], "clip": PROGRAMS["clip"], "net": PROGRAMS["mlp"]}
    library = compiled({name: c_source(p, name=name) for name, p in made.items()}, tmp_path)
    nan = np.float32(np.nan)

    def at(name: str, *observation: float) -> list[float]:
        return [float(v) for v in play(library, name, made[name], np.array([observation], np.float32))[0]]

    assert at("choose", 1, nan, 5) == [1.0] == interpret.run(choose, np.array([[1, nan, 5]], np.float32))[0].tolist()[0]
    assert at("choose", nan, nan, 5) == [0.0]
    assert at("positive", nan) == [0.0]
    assert at("hot", nan) == [0.0] * 4
    assert at("row", nan, 99.0) == PROGRAMS["embedding"].operations[0].table.values[[0, 3]].reshape(-1).tolist()  # type: ignore[union-attr]
    assert all(math.isnan(v) for v in at("clip", nan, nan, nan))
    assert at("whole", nan, nan) == at("whole", -1000.0, -1000.0)
    net = np.full((1, 5), nan)
    assert at("net", *net[0]) == interpret.run(PROGRAMS["mlp"], net.astype(np.float32))[0][0].tolist()


def layer(weight: Matrix, input_scale: float | None = None) -> Program:
    rows, columns = weight.values.shape
    return one(Affine("observation", "out", weight, np.zeros(rows, np.float32), input_scale), (columns,), (rows,))


def zeroed(weight: Matrix, share: float) -> Matrix:
    """Set exactly that share of the entries to zero."""
    mask = np.ones(weight.values.size, np.int8)
    mask[np.random.default_rng(0).permutation(mask.size)[: round(share * mask.size)]] = 0
    mask = mask.reshape(weight.values.shape)
    codes = None if weight.codes is None else weight.codes * mask
    return replace(weight, values=weight.values * mask, codes=codes)


@pytest.mark.parametrize(("weight", "stored"), [
    (matrix(32, 20), "dense float32"),
    (quantized(32, 20), "dense 8-bit"),
    (zeroed(matrix(32, 20), 0.5), "dense float32"),
    (zeroed(matrix(32, 20), 0.6), "sparse float32 with 256 of 640"),
    (zeroed(quantized(32, 20), 0.9), "sparse 8-bit with"),
    (quantized(32, 20, bits=4), "packed 4-bit"),
    (zeroed(quantized(32, 20, bits=4), 0.6), "packed 4-bit"),
    (zeroed(quantized(32, 20, bits=4), 0.9), "sparse 4-bit with"),
    (shared(32, 20, bits=3), "packed 3-bit codebook"),
    (shared(32, 20, bits=8), "dense 8-bit codebook"),
    (matrix(10, 20), "formulae, 200 of 200"),
])  # fmt: skip
def test_a_matrix_is_stored_in_its_smallest_form(weight: Matrix, stored: str) -> None:
    assert stored in c_source(layer(weight), unroll=None if "formulae" in stored else False)


def test_bytes_of_a_matrix_by_hand() -> None:
    def constants(weight: Matrix) -> str:
        return next(line for line in c_source(layer(weight), unroll=False).splitlines() if "Flash" in line)

    bias, scale = 32 * 4, 32 * 4
    assert f"{32 * 20 * 4 + bias:,} bytes" in constants(matrix(32, 20))
    assert f"{32 * 20 + scale + bias:,} bytes" in constants(quantized(32, 20))
    assert f"{32 * 10 + 1 + scale + bias:,} bytes" in constants(quantized(32, 20, bits=4))
    assert f"{64 * 5 + 32 + bias:,} bytes" in constants(zeroed(matrix(32, 20), 0.9))
    wide = zeroed(matrix(32, 300), 0.9)
    assert f"{960 * 6 + 2 * 32 + bias:,} bytes" in constants(wide)


def sparser(weight: Matrix, share: float) -> Matrix:
    """Set about that share of the entries to zero, those of a codebook to its last entry, which becomes 0."""
    if weight.codebook is None:
        return zeroed(weight, share)
    book = np.append(weight.codebook[1:], np.float32(0.0))
    drawn = np.random.default_rng(0).random(weight.values.shape) < share
    codes = np.where(drawn, len(book) - 1, weight.codes).astype(np.uint8)
    return Matrix(book[codes], codes, None, book, weight.bits)


KINDS: dict[str, Callable[..., Matrix]] = {
    "float": matrix,
    "int8": quantized,
    "5 bits": lambda *shape: quantized(*shape, bits=5),
    "codebook": lambda *shape: shared(*shape, bits=3),
}


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_in_every_form(kind: str, share: float, tmp_path: Path) -> None:
    programs: dict[str, tuple[Program, dict[str, Any]]] = {}
    for i, shape in enumerate([(1, 1), (8, 3), (9, 5), (19, 300), (4, 4), (3, 2)]):
        weight = sparser(KINDS[kind](*shape), share)
        for k, form in enumerate(FORMS.values()):
            programs[f"f{i}_{k}"] = (layer(weight), form)
            if weight.scale is not None:
                programs[f"i{i}_{k}"] = (layer(weight, 0.03), form)
    library = compiled({name: c_source(p, name=name, **form) for name, (p, form) in programs.items()}, tmp_path)
    for name, (made, _) in programs.items():
        observations, _, _ = inputs(made, 3)
        alike(play(library, name, made, observations), expected(made, observations), made)


def test_scratch_memory_is_used_again(tmp_path: Path) -> None:
    def net(kind: Callable[..., Matrix], scale: float | None) -> Program:
        widths, names = (4, 64, 64, 2), ("observation", "a0", "a1", "a2")
        operations: list[Any] = []
        for i in range(3):
            operations.append(Affine(names[i], f"l{i}", kind(widths[i + 1], widths[i]), None, scale))
            operations.append(Activation(f"l{i}", names[i + 1], "tanh"))
        shapes = {"observation": (4,)} | {f"{k}{i}": (widths[i + 1],) for i in range(3) for k in "la"}
        return program(*operations, shapes=shapes)

    assert "RAM: 512 bytes" in c_source(net(matrix, None))
    assert f"RAM: {64 * 4 + 64 * 2} bytes" in c_source(net(quantized, 0.1))


def test_values_of_the_same_time_do_not_meet() -> None:
    steps = [
        step.Step(makes={"a": 4}, reads=("observation",)),
        step.Step(makes={"b": 4}, reads=("a",), alike=True),
        step.Step(makes={"c": 2}, reads=("b",)),
        step.Step(makes={"d": 4}, reads=("b", "c")),
        step.Step(makes={"e": 1}, reads=("d",)),
    ]
    made = plan.plan(steps, frozenset(("observation", "e")), frozenset(("e",)))
    assert made.same == {"b": "a"}
    assert made.offsets == {"a": 0, "d": 4, "c": 8}
    assert made.floats == 10


def test_a_value_that_is_read_later_keeps_its_place() -> None:
    steps = [
        step.Step(makes={"a": 4}, reads=("observation",)),
        step.Step(makes={"b": 4}, reads=("a",), alike=True),
        step.Step(makes={"c": 4}, reads=("a", "b")),
    ]
    made = plan.plan(steps, frozenset(("observation", "c")), frozenset(("c",)))
    assert made.same == {}
    assert made.floats == 8


X, Y = "observation", "out"
ODD = {
    "observation": one(Reshape(X, Y), (2, 2), (4,)),
    "constant": program(Constant("c", np.float32([1, 2])), Reshape("c", Y), shapes={X: (1,), "c": (2,), Y: (2,)}),
    "memory": program(
        Reshape("m", Y), Binary("m", X, "next", "add"), shapes={X: (2,), Y: (2,), "m": (2,), "next": (2,)},
        action=Y, action_shape=(2,), memory={"m": "next"},
    ),
    "next memory": program(
        Binary("m", X, "next", "add"), Reshape("next", Y), shapes={X: (2,), Y: (2,), "m": (2,), "next": (2,)},
        memory={"m": "next"},
    ),
    "observation remembered": program(
        Binary("m", X, Y, "sub"), Reshape(X, "next"), shapes={X: (2,), Y: (2,), "m": (2,), "next": (2,)},
        action=Y, action_shape=(2,), memory={"m": "next"},
    ),
    "read after it is made": program(
        Activation(X, "a", "neg"), Reshape("a", Y), Activation("a", "b", "relu"), Binary("b", Y, "next", "sub"),
        shapes={X: (2,), "a": (2,), Y: (2,), "b": (2,), "next": (2,), "m": (2,)},
        action=Y, action_shape=(2,), memory={"m": "next"},
    ),
    "names alike": program(
        Activation(X, "obs", "neg"), Activation("obs", "a.b", "neg"), Binary("obs", "a.b", "a b", "sub"),
        Binary("a b", "a.b", "*/ action", "mul"),
        shapes=dict.fromkeys((X, "obs", "a.b", "a b", "*/ action"), (2,)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_the_action_may_be_any_value(name: str, tmp_path: Path) -> None:
    made = ODD[name]
    library = compiled({"policy": c_source(made)}, tmp_path)
    observations, _, _ = inputs(made, 5)
    np.testing.assert_array_equal(play(library, "policy", made, observations), expected(made, observations))


def test_memory_that_moves_on_is_refused() -> None:
    made = program(
        Reshape("a", "b next"), Reshape(X, "a next"), Activation("b", Y, "neg"),
        shapes=dict.fromkeys((X, Y, "a", "b", "a next", "b next"), (2,)), memory={"a": "a next", "b": "b next"},
    )  # fmt: skip
    with pytest.raises(ExportError, match="memory 'b' takes over 'a'"):
        c_source(made)


def test_equal_programs_give_equal_files_and_others_do_not() -> None:
    made = PROGRAMS["mlp"]
    assert c_source(made) == c_source(made)
    first = made.operations[1]
    assert isinstance(first, Affine)
    changed = first.weight.values.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    other = replace(first, weight=replace(first.weight, values=changed))
    operations = (made.operations[0], other, *made.operations[2:])

    def digest(p: Program) -> str:
        return next(line for line in c_source(p).splitlines() if "SHA-256" in line)

    assert digest(made) != digest(replace(made, operations=operations))


def test_the_head_holds_what_the_compiler_measures() -> None:
    source = c_source(PROGRAMS["mlp int8 inputs"], compiler=("gcc", "-std=c99", "-Os"))
    line = next(line for line in source.splitlines() if "Measured" in line)
    assert int(line.split()[2].replace(",", "")) > 35 + 35 + 4 * (7 + 7 + 5)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "my policy"}, "'my policy' is no free identifier"),
    ({"name": "int"}, "'int' is no free identifier"),
    ({"name": "2fast"}, "'2fast' is no free identifier"),
    ({"compiler": ("no-such-gcc",)}, "no-such-gcc cannot be started"),
    ({"compiler": ("gcc", "-no-such-flag")}, "failed: .*no-such-flag"),
    ({"selftest": (np.zeros((3, 5)), np.zeros((2, 2)))}, r"self-test's actions have shape \(2, 2\), but 3 × 2"),
    ({"selftest": (np.zeros((3, 4)), np.zeros((3, 2)))}, r"self-test's observations have shape \(3, 4\)"),
])  # fmt: skip
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        c_source(PROGRAMS["mlp"], **arguments)


def test_an_operation_without_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunerl.deploy.c99 import operations

    monkeypatch.setattr(operations, "RULES", {k: v for k, v in operations.RULES.items() if k is not Activation})
    with pytest.raises(ExportError, match="Activation, which makes the value 'a', has no form in C"):
        c_source(PROGRAMS["mlp"])


def test_rounded_inputs_need_codes() -> None:
    with pytest.raises(ExportError, match="Affine, which makes the value 'out', rounds its inputs"):
        c_source(layer(matrix(4, 4), 0.1))


def test_masks_need_masks_in_the_self_test() -> None:
    made = PROGRAMS["masked"]
    observations, _, allowed = inputs(made, 3)
    with pytest.raises(ExportError, match="action masks needs them"):
        c_source(made, selftest=(observations, expected(made, observations, allowed)))


def test_packed_codes_read_back() -> None:
    codes = np.arange(8, dtype=np.uint8)
    packed = storing.pack(codes, 3)
    whole = int.from_bytes(packed.tobytes(), "little")
    assert [whole >> 3 * k & 7 for k in range(8)] == list(range(8))
    assert len(packed) == 4


def test_a_real_agent_acts_as_in_pytorch(real: SB3Agent, visit: Callable[..., np.ndarray], tmp_path: Path) -> None:
    observations = visit(real, 64)
    made = lower(real.policy)
    library = compiled({"policy": c_source(made)}, tmp_path)
    got = play(library, "policy", made, observations)
    wanted = heads.act(real.policy, observations).reshape(len(observations), -1).astype(np.float32)
    alike(got, expected(made, observations), made)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
