"""Find out what is wrong with a program, before anything trusts it."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import (
    ALLOWED,
    OBSERVATION,
    Binary,
    Choose,
    Clip,
    Constant,
    Matrix,
    Operation,
    Positive,
    Program,
    makes,
    matrices,
    reads,
)
from prunerl.deploy.shapes import MOST, Shapes, need, shape_of


def fault(program: Program) -> str | None:
    """Return what is wrong with a program, or None.

    Each value is made once, before it is read, with the shape that is said; weights are finite and what their codes
    say; the action, the memory and the mask fit.
    """
    try:
        _check(program)
    except ValueError as error:
        return str(error)
    return None


def _check(program: Program) -> None:
    shapes = program.shapes
    need(OBSERVATION in shapes, "no shape of the observation is given")
    for name, shape in shapes.items():
        need(all(n > 0 for n in shape) and math.prod(shape) <= MOST, f"value {name!r} cannot have shape {shape}")
    known = {OBSERVATION, *program.memory}
    for operation in program.operations:
        for name in reads(operation):
            need(name in known, f"value {name!r} is read before it is made")
        for name in makes(operation):
            need(name not in known, f"value {name!r} is made twice")
            need(name != ALLOWED and name in shapes, f"value {name!r} has no shape, or a name that is taken")
        known.update(makes(operation))
        _check_operation(operation, shapes)
    _check_ends(program, known)


def _check_operation(operation: Operation, shapes: Shapes) -> None:
    where = f"{type(operation).__name__} {makes(operation)[0]!r}"
    try:
        for weight in matrices(operation):
            _check_matrix(weight)
        _check_numbers(operation)
        made = shape_of(operation, shapes)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{where}: {error}") from error
    for name in makes(operation):
        need(shapes[name] == made, f"{where}: value {name!r} has shape {made}, and is said to have {shapes[name]}")


def _check_numbers(operation: Operation) -> None:
    may_be_infinite = isinstance(operation, Clip | Constant | Binary)
    for part in fields(operation):
        value = getattr(operation, part.name)
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            fine = not np.isnan(value).any() if may_be_infinite else np.isfinite(value).all()
            need(bool(fine), f"{part.name} has numbers that are not finite")
        elif isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{part.name} is not a number")


def _check_matrix(weight: Matrix) -> None:
    need(bool(np.isfinite(weight.values).all()), "weight has numbers that are not finite")
    if weight.codes is None:
        return
    need(weight.codes.shape == weight.values.shape, "codes and values have different shapes")
    need(1 <= weight.bits <= 16, f"codes cannot have {weight.bits} bits")
    need(np.array_equal(decoded(weight.codes, weight.scale, weight.codebook), weight.values), "codes say other values")


def decoded(
    codes: NDArray[np.integer[Any]], scale: NDArray[np.float32] | None, codebook: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return what codes are worth: entries of the codebook, or the codes times the scale of their output.

    Raises:
        ValueError: They do not fit.
    """
    if codebook is not None:
        need(codebook.ndim == 1 and codes.min() >= 0 and codes.max() < len(codebook), "codes beyond the codebook")
        entries: NDArray[np.float32] = codebook[codes]
        return entries
    need(scale is not None and scale.shape == codes.shape[:1], "codes need a scale for each output")
    assert scale is not None  # as was just found
    values: NDArray[np.float32] = codes.astype(np.float32) * scale.reshape(-1, *(1,) * (codes.ndim - 1))
    return values


def _check_ends(program: Program, known: set[str]) -> None:
    shapes = program.shapes
    for before, after in program.memory.items():
        need(before in shapes and after in known, f"memory {before!r} is not followed by a value that is made")
        need(shapes[before] == shapes[after], f"memory {before!r} changes its shape")
    need(program.action in known, f"the action {program.action!r} is not made")
    need(math.prod(program.action_shape) == math.prod(shapes[program.action]), "the action has another size")
    need(program.action_dtype in ("float32", "int64", "int8"), f"actions cannot be {program.action_dtype!r}")
    numbers = ("float16", "float32", "float64", "bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)))
    need(program.observation_dtype in numbers, f"observations cannot be {program.observation_dtype!r}")
    for last in program.operations:
        if program.allowed and isinstance(last, Choose | Positive):
            width = sum(last.sizes) if isinstance(last, Choose) else 2 * math.prod(shapes[last.source])
            need(program.allowed == width, f"the mask has {program.allowed} entries for {width}")
