"""The rule of each operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from prunerl.deploy import program as p
from prunerl.deploy.c99 import arrays, heads, layers, windows
from prunerl.deploy.c99.step import Context, Step
from prunerl.errors import ExportError

RULES: Mapping[type, Callable[[Any, Context], tuple[Step, ...]]] = {
    p.Normalize: heads.normalize,
    p.OneHot: heads.one_hot,
    p.Embedding: layers.embedding,
    p.Affine: layers.affine,
    p.Conv: windows.conv,
    p.Activation: layers.activation,
    p.Binary: arrays.binary,
    p.Norm: layers.norm,
    p.GroupNorm: layers.group_norm,
    p.Softmax: arrays.softmax,
    p.MatMul: arrays.matmul,
    p.Reduce: arrays.reduce,
    p.Pool: windows.pool,
    p.Reshape: arrays.reshape,
    p.Transpose: arrays.transpose,
    p.Slice: arrays.cut,
    p.Concat: arrays.concat,
    p.Constant: arrays.constant,
    p.Recurrent: layers.recurrent,
    p.Choose: heads.choose,
    p.Positive: heads.positive,
    p.Clip: heads.clip,
    p.Squash: heads.squash,
}


def steps(operation: p.Operation, context: Context) -> tuple[Step, ...]:
    """Return what an operation becomes.

    Raises:
        ExportError: It has no form in C.
    """
    kind, value = type(operation).__name__, p.makes(operation)[0]
    if type(operation) not in RULES:
        raise ExportError(f"{kind}, which makes the value {value!r}, has no form in C. Add a rule to {__name__}.RULES.")
    rounded = getattr(operation, "input_scale", None) is not None
    if rounded and any(m.codes is None or m.scale is None or m.bits > 8 for m in p.matrices(operation)):
        raise ExportError(
            f"{kind}, which makes the value {value!r}, rounds its inputs to int8, but its weights are no codes of "
            "8 bits or fewer with a scale. Quantise the weights, or leave out input_scale."
        )
    return RULES[type(operation)](operation, context)


def identifiers(program: p.Program) -> dict[str, str]:
    """Return an identifier of C for each value; no two are alike, and the arguments have their own."""
    names = {p.OBSERVATION: "obs", p.ALLOWED: "allowed"}
    used: set[str] = set()
    for value in (*program.memory, *(name for operation in program.operations for name in p.makes(operation))):
        plain = identifier = "v_" + re.sub(r"\W", "_", value, flags=re.ASCII)
        n = 2
        while identifier in used:
            identifier, n = f"{plain}_{n}", n + 1
        used.add(identifier)
        names[value] = identifier
    return names
