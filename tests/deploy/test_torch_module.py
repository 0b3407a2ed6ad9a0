from __future__ import annotations

import numpy as np
import pytest
import torch
from small_programs import PROGRAMS, inputs

from prunerl.deploy.expand import SIMPLE, expand
from prunerl.deploy.interpret import run
from prunerl.deploy.program import Activation, Affine, Program, makes, reads
from prunerl.deploy.torch.module import torch_module


def run_torch(program: Program, count: int, like: Program | None = None) -> list[np.ndarray]:
    observations, memory, allowed = inputs(like or program, count)
    given = [observations, *([] if allowed is None else [allowed]), *memory.values()]
    with torch.no_grad():
        made = torch_module(program)(*(torch.from_numpy(x) for x in given))
    return [x.numpy() for x in (made if isinstance(made, tuple) else (made,))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_shapes_and_types_are_those_of_the_program(name: str) -> None:
    program = PROGRAMS[name]
    actions, *memory = run_torch(program, 3)
    assert actions.shape == (3, *program.action_shape)
    assert actions.dtype == program.action_dtype
    assert [x.shape for x in memory] == [(3, *program.shapes[n]) for n in program.memory.values()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_expanded_program_computes_the_same(name: str) -> None:
    program = PROGRAMS[name]
    expanded = expand(program)
    simple = {o.function for o in expanded.operations if isinstance(o, Activation)}
    assert simple <= set(SIMPLE)
    for one, other in zip(run_torch(program, 16), run_torch(expanded, 16, program), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_expanded_program_makes_each_value_once_and_before_it_is_read(name: str) -> None:
    program = expand(PROGRAMS[name])
    known = {"observation", *program.memory}
    for operation in program.operations:
        assert set(reads(operation)) <= known
        assert not set(makes(operation)) & known
        known |= set(makes(operation))
        assert all(made in program.shapes for made in makes(operation))
    assert {program.action, *program.memory.values()} <= known


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_module_computes_what_the_interpreter_does(name: str) -> None:
    program = PROGRAMS[name]
    observations, memory, allowed = inputs(program, 16)
    actions, following = run(program, observations, memory, allowed)
    expected = [actions, *(following[key] for key in program.memory)]
    for made, other in zip(run_torch(program, 16), expected, strict=True):
        assert made.dtype == other.dtype
        np.testing.assert_allclose(made, other, rtol=1e-4, atol=1e-5)


def test_codes_are_kept_as_integers() -> None:
    program = PROGRAMS["mlp int8"]
    stored = torch_module(program).state_dict()
    codes = [x for name, x in stored.items() if name.endswith("_codes")]
    weights = [o.weight for o in program.operations if isinstance(o, Affine)]
    assert [x.dtype for x in codes] == [torch.int8, torch.int8]
    assert [x.tolist() for x in codes] == [np.asarray(w.codes).tolist() for w in weights]
