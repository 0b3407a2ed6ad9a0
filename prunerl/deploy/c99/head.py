"""The comment at the top of the C file: what the policy is and what it takes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass

import numpy as np

from prunerl.deploy.c99 import sizes
from prunerl.deploy.c99.plan import Plan
from prunerl.deploy.c99.step import Kernel, Step
from prunerl.deploy.program import Program


def head(
    program: Program, name: str, steps: Sequence[Step], kernels: Sequence[Kernel], plan: Plan, measured: str = ""
) -> str:
    """Write the comment at the top: what it is, and what it takes."""
    memory = 4 * sum(math.prod(program.shapes[m]) for m in program.memory)
    ram = 4 * plan.floats + 2 * plan.whole + memory
    constants, code = sizes.constants(steps), sizes.code(steps, kernels)
    lines = [
        f"{name}: a policy from an observation {_dims(program.observation_shape)} "
        f"({program.observation_dtype}) to an action {_dims(program.action_shape)} ({program.action_dtype}).",
        *program.notes,
        "",
        *_table(steps),
        "",
        f"Flash: {constants:,} bytes of constants, and about {code:,} bytes of code (an estimate for Thumb-2).",
        *([measured] if measured else []),
        f"RAM: {ram:,} bytes, {memory:,} of them memory between steps; and the stack of one call.",
        f"Multiply-accumulates of a decision: {sum(step.macs for step in steps):,}.",
        f"SHA-256 of the policy: {digest(program)}",
    ]
    return "/*\n" + "\n".join(f" * {comment(line)}".rstrip() for line in lines) + "\n */\n"


def _table(steps: Sequence[Step]) -> list[str]:
    """List the steps that have weights."""
    rows = [("value", "stored as", "bytes", "MACs")]
    for step in steps:
        if step.note:
            size = sum(table.values.nbytes for table in step.tables)
            rows.append((next(iter(step.makes)), step.note, f"{size:,}", f"{step.macs:,}"))
    first, second, third, fourth = (max(len(row[i]) for row in rows) for i in range(4))
    return [f"{a:<{first}}  {b:<{second}}  {c:>{third}}  {d:>{fourth}}" for a, b, c, d in rows]


def digest(program: Program) -> str:
    """Return the SHA-256 of everything that a program computes: its operations with every number."""
    total = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif is_dataclass(value):
            total.update(type(value).__name__.encode())
            for field in fields(value):
                add(getattr(value, field.name))
        else:
            total.update(f"{value!r};".encode())

    for operation in program.operations:
        add(operation)
    add((sorted(program.memory.items()), program.action, program.allowed))
    return total.hexdigest()


def _dims(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape) or "1"


def comment(text: str) -> str:
    """Make a text safe within a comment."""
    return text.replace("*/", "* /").replace("/*", "/ *")
