"""A compiled policy acts as the interpreted program, and refuses what is no observation."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_programs import PROGRAMS, inputs

from prunerl import heads
from prunerl.agents.sb3 import SB3Agent
from prunerl.deploy import build, native
from prunerl.deploy.interpret import run
from prunerl.deploy.native import CompiledPolicy, compile
from prunerl.deploy.program import Activation, Affine, Choose, Clip, Floats, Matrix, Operation, Program
from prunerl.errors import BuildError, SpaceError

pytestmark = pytest.mark.skipif(build.find() is None, reason="no C compiler")

QUICK = (
    "mlp",
    "mlp int8 inputs",
    "affine of tokens int8",
    "lstm",
    "masked",
    "bernoulli",
    "discrete observation",
    "bytes",
)
"""Programs that together use every path of the call; each takes the compiler a second."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def network(*sizes: int, discrete: bool = True, density: float = 1.0) -> Program:
    """Return a network of layers with tanh between them, of random weights."""
    rng = np.random.default_rng(0)
    operations: list[Operation] = []
    shapes: dict[str, tuple[int, ...]] = {"observation": (sizes[0],)}
    source = "observation"
    for i, (inputs_, outputs) in enumerate(itertools.pairwise(sizes)):
        weight: Floats = (rng.standard_normal((outputs, inputs_)) / np.sqrt(inputs_)).astype(np.float32)
        weight[rng.random(weight.shape) > density] = 0
        operations.append(Affine(source, f"h{i}", Matrix(weight), rng.standard_normal(outputs).astype(np.float32)))
        operations.append(Activation(f"h{i}", f"a{i}", "tanh"))
        shapes |= {f"h{i}": (outputs,), f"a{i}": (outputs,)}
        source = f"a{i}"
    operations.pop()
    source, n = f"h{len(sizes) - 2}", sizes[-1]
    if discrete:
        last: Operation = Choose(source, "action", (n,))
        return Program((*operations, last), {**shapes, "action": (1,)}, "action", "float32", (), "int64")
    last = Clip(source, "action", np.full(n, -1, np.float32), np.ones(n, np.float32))
    return Program((*operations, last), {**shapes, "action": (n,)}, "action", "float32", (n,), "float32")


def agrees(program: Program, kept: Path, **options: Any) -> CompiledPolicy:
    """Compare a compiled policy with the interpreter: observation by observation, and as a batch of an odd size."""
    policy = compile(program, cache=kept, **options)
    observations, _, allowed = inputs(program, 37)
    expected, _ = run(program, observations, None, allowed)
    singles = []
    for i, observation in enumerate(observations):
        policy.reset()
        singles.append(policy(observation) if allowed is None else policy(observation, allowed=allowed[i]))
    policy.reset()
    batch = policy(observations) if allowed is None else policy(observations, allowed=allowed)
    for made in (np.array(singles), batch):
        assert made.dtype == expected.dtype
        assert made.shape == expected.shape
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(made, expected, 1e-5, 1e-5)
    return policy


@pytest.mark.parametrize("name", QUICK)
def test_a_program_acts_as_interpreted(name: str, kept: Path) -> None:
    assert agrees(PROGRAMS[name], kept, tune=False).native


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - set(QUICK)))
def test_every_program_acts_as_interpreted(name: str, kept: Path) -> None:
    agrees(PROGRAMS[name], kept, tune=False)


@pytest.fixture(scope="module")
def discrete(kept: Path) -> CompiledPolicy:
    return compile(network(4, 64, 64, 2), cache=kept)


@pytest.fixture(scope="module")
def continuous(kept: Path) -> CompiledPolicy:
    return compile(network(24, 33, 3, discrete=False), cache=kept, tune=False)


def test_kernels_are_measured_and_named(discrete: CompiledPolicy) -> None:
    assert list(discrete.kernels) == ["h0", "h1", "h2"]
    assert all("µs" in said for said in discrete.kernels.values())
    assert "h1: dense" in str(discrete)
    assert "policy_forward_native" in discrete.source


def test_one_choice_is_an_int_and_others_are_arrays(discrete: CompiledPolicy, continuous: CompiledPolicy) -> None:
    assert type(discrete(np.zeros(4, np.float32))) is int
    assert discrete(np.zeros((3, 4), np.float32)).dtype == np.int64
    first, second = (continuous(np.full(24, value, np.float32)) for value in (0, 1))
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)  # the first action is no view of what the second call writes


def test_layers_of_a_sparse_network_are_permuted_and_agree(kept: Path) -> None:
    policy = agrees(network(24, 256, 64, 6, discrete=False, density=0.1), kept, tune=False)
    assert "permuted" in policy.kernels["h1"] or "sparse" in policy.kernels["h1"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "uint8", "bool", ">f4"])
def test_numbers_of_any_type_are_taken(continuous: CompiledPolicy, dtype: str) -> None:
    observation = np.arange(24) % 2
    expected = continuous(observation.astype(np.float32))
    np.testing.assert_array_equal(continuous(observation.astype(dtype)), expected)


def test_any_layout_and_lists_are_taken(continuous: CompiledPolicy) -> None:
    wide = np.random.default_rng(0).standard_normal((5, 48)).astype(np.float32)
    view = wide[:, ::2]
    plain = np.ascontiguousarray(view)
    np.testing.assert_array_equal(continuous(view), continuous(plain))
    np.testing.assert_array_equal(continuous(view[2]), continuous(plain[2]))
    np.testing.assert_array_equal(continuous(view[2].tolist()), continuous(plain[2]))
    assert continuous(view[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (np.zeros(23, np.float32), r"\(23,\).*\(24,\)"),
        (np.zeros((2, 2, 24), np.float32), r"\(2, 2, 24\)"),
        (np.float32(1), r"shape \(\)"),
        (np.zeros(24, complex), "complex128"),
        (np.full(24, "a"), "<U1"),
        ({"a": 1}, "object"),
        (np.where(np.arange(24) == 7, np.nan, 0).astype(np.float32), "NaN"),
        (np.where(np.arange(24) == 23, np.nan, 0), "NaN"),
        (np.full((2, 24), np.nan, np.float32), "NaN"),
    ],
)
def test_what_is_no_observation_is_refused(continuous: CompiledPolicy, observation: Any, said: str) -> None:
    with pytest.raises(SpaceError, match=said):
        continuous(observation)


def test_infinite_entries_are_numbers(continuous: CompiledPolicy) -> None:
    assert continuous(np.full(24, np.inf, np.float32)).shape == (3,)


def test_a_mask_is_refused_where_none_is_taken_and_where_it_does_not_fit(discrete: CompiledPolicy, kept: Path) -> None:
    with pytest.raises(SpaceError, match="takes none"):
        discrete(np.zeros(4, np.float32), allowed=[True, True])
    masked = compile(PROGRAMS["masked"], cache=kept, tune=False)
    with pytest.raises(SpaceError, match=r"4 entries.*takes 5"):
        masked(np.zeros(5, np.float32), allowed=[True] * 4)
    assert masked(np.arange(5, dtype=np.float32)).tolist() == [2, 1]  # without a mask every action is allowed


def test_a_call_of_another_kind_is_a_type_error(discrete: Any) -> None:
    for call in (discrete, lambda: discrete(1, 2), lambda: discrete(np.zeros(4), other=1)):
        with pytest.raises(TypeError, match="allowed=mask"):
            call()


def test_memory_is_kept_until_reset(kept: Path) -> None:
    program = PROGRAMS["lstm"]
    policy = compile(program, cache=kept, tune=False)
    observations, _, _ = inputs(program, 6)
    memory = None
    for t in range(6):
        expected, memory = run(program, observations[t : t + 1], memory)
        np.testing.assert_allclose(policy(observations[t]), expected[0], 1e-5, 1e-5)
    with pytest.raises(SpaceError, match=r"reset\(\)"):
        policy(observations)
    policy.reset()
    first, second = policy(observations), policy(observations)
    expected, memory = run(program, observations)
    np.testing.assert_allclose(first, expected, 1e-5, 1e-5)
    np.testing.assert_allclose(second, run(program, observations, memory)[0], 1e-5, 1e-5)


def test_the_tangent_can_be_the_librarys(kept: Path) -> None:
    policy = compile(network(4, 64, 64, 2), cache=kept, tune=False, exact_tanh=True)
    assert "tanhf(" in policy.source


def test_a_second_compilation_compiles_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile(network(4, 64, 64, 2), cache=kept)
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    again = compile(network(4, 64, 64, 2), cache=kept)
    assert "µs" in str(again)


def test_weights_lie_beside_the_code(discrete: CompiledPolicy, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of the same shape is the same library, and two of them do not meet."""
    compile(network(24, 33, 3, discrete=False), cache=kept, tune=False)
    program = network(24, 33, 3, discrete=False)
    operations = tuple(
        replace(op, weight=Matrix(-op.weight.values)) if isinstance(op, Affine) and op.result == "h1" else op
        for op in program.operations
    )
    monkeypatch.setattr(build, "_run", lambda command: pytest.fail("compiled again"))
    one, other = (compile(p, cache=kept, tune=False) for p in (program, replace(program, operations=operations)))
    x = np.full(24, 0.3, np.float32)
    for policy, source in ((one, program), (other, replace(program, operations=operations)), (one, program)):
        np.testing.assert_allclose(policy(x), run(source, x[None])[0][0], 1e-5, 1e-5)


def test_int8_by_observations_is_near(kept: Path) -> None:
    program = network(24, 64, 3, discrete=False)
    observations, _, _ = inputs(program, 200)
    policy = compile(program, cache=kept, tune=False, quantize=observations)
    assert "int8" in policy.kernels["h1"]
    gap = np.abs(policy(observations) - run(program, observations)[0])
    assert 0 < gap.max() < 0.1


def test_a_portable_library_has_wide_vectors_only_where_they_are_asked_for(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files for any machine compile to no instruction that has the three operands of AVX."""
    units: list[build.Unit] = []
    library = build.library
    monkeypatch.setattr(build, "library", lambda u, *a, **o: (units.extend(u), library(u, *a, **o))[1])
    compiler = build.find()
    assert compiler is not None
    if not any("__x86_64__" in line for line in build.macros(compiler, "native")):
        pytest.skip("another processor")
    agrees(network(24, 33, 3, discrete=False, density=0.2), kept, tune=False, march="x86-64-v2")
    assert [unit.name for unit in units] == ["v4", "v3", "x86_64_v2", "module"]
    wide = {unit.name: _uses_avx(unit, compiler, kept) for unit in units}
    assert wide == {"v4": True, "v3": True, "x86_64_v2": False, "module": False}


def test_code_that_this_machine_does_not_run_is_refused(kept: Path) -> None:
    compiler = build.find()
    assert compiler is not None
    if any("__AVX512F__" in line for line in build.macros(compiler, "native")):
        pytest.skip("a machine that runs all levels")
    with pytest.raises(BuildError, match="x86-64-v4"):
        compile(network(4, 8, 2), cache=kept, march="x86-64-v4")


def _uses_avx(unit: build.Unit, compiler: build.Compiler, folder: Path) -> bool:
    path = folder / "unit.c"
    path.write_text(unit.text)
    command = [*compiler.command, *build.FLAGS, *unit.flags, "-S", "-o", "-", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = {line.split()[0] for line in text.splitlines() if line.startswith("\t") and not line.startswith("\t.")}
    return "ymm" in text or "zmm" in text or any(word.startswith("v") and word != "verr" for word in words)


def test_without_headers_it_is_called_through_ctypes(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_headers", lambda: None)
    for name in ("mlp", "lstm", "masked"):
        with pytest.warns(UserWarning, match="headers"):
            policy = agrees(PROGRAMS[name], kept, tune=False)
        assert policy.native
        assert "ctypes" in str(policy)
    with pytest.raises(SpaceError, match="NaN"):
        policy(np.full(5, np.nan, np.float32))


def test_without_a_compiler_it_is_interpreted(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find", lambda: None)
    for name in ("mlp", "lstm", "masked"):
        with pytest.warns(UserWarning, match="no C compiler"):
            policy = agrees(PROGRAMS[name], kept)
        assert not policy.native
        assert "interpreted" in str(policy)
    with pytest.raises(SpaceError, match=r"\(4,\)"):
        policy(np.zeros(4, np.float32))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cache="):
        compile(network(4, 8, 2), cache=tmp_path / "file")


@pytest.mark.parametrize("name", ["dqn/CartPole-v1", "ppo/Hopper-v3", "sac/Pendulum-v1"])
def test_a_real_agent_acts_as_in_pytorch(
    name: str, load_agent: Callable[[str], SB3Agent], visit: Callable[..., np.ndarray], kept: Path
) -> None:
    agent = load_agent(name)
    observations = visit(agent, 64)
    policy = compile(agent, cache=kept, tune=False)
    expected = heads.act(agent.policy, observations)
    made = np.array([policy(observation) for observation in observations])
    np.testing.assert_allclose(made, expected, 1e-4, 1e-4)
    np.testing.assert_allclose(policy(observations), expected, 1e-4, 1e-4)
