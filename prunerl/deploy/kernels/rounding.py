"""Round a program to int8 by what it sees, without judging what that costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import Affine, Matrix, Program
from prunerl.errors import BudgetError


def rounded(program: Program, observations: NDArray[Any]) -> Program:
    """Return a program whose layers have weights and inputs of 8 bits.

    A row's weights are rounded to multiples of 1/127 of its largest, a layer's inputs to multiples of 1/127 of the
    largest that is seen. Layers that are rounded already stay as they are.

    Args:
        program: The policy.
        observations: What it sees, shape (batch, *observation).

    Raises:
        BudgetError: There is no observation.
    """
    from prunerl.deploy.interpret import values

    if len(observations) == 0:
        raise BudgetError("Rounding to int8 needs observations that the policy visits, got none. Give some hundreds.")
    seen = values(program, observations)
    operations = tuple(
        _rounded(op, seen[op.source]) if isinstance(op, Affine) and op.weight.codes is None else op
        for op in program.operations
    )
    return replace(program, operations=operations, notes=(*program.notes, "Layers are rounded to int8, unjudged."))


def _rounded(layer: Affine, inputs: NDArray[Any]) -> Affine:
    largest = np.abs(layer.weight.values).max(axis=1)
    scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    codes = np.rint(layer.weight.values / scale[:, None]).astype(np.int8)
    weight = Matrix((codes * scale[:, None]).astype(np.float32), codes, scale, None, 8)
    return replace(layer, weight=weight, input_scale=float(np.float32(max(np.abs(inputs).max(), 1e-6) / 127)))
