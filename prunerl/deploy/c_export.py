"""A policy as one C99 file, for a microcontroller or for reading: no allocation, no library but ``math.h``.

The function computes what :func:`prunerl.deploy.interpret.run` computes, up to the order of sums and 1e-6 in each
hyperbolic tangent. It is not for ``-ffast-math``, which gives up NaN: here NaN has a meaning everywhere. It
passes through arithmetic, clipping and activations, counts as the largest of the entries among which an action is
chosen, is not above 0, is no place of a one-hot vector, is row 0 of an embedding, and rounds to −127 where inputs are
rounded to int8.

The scratch memory is static, so the function cannot be entered twice at a time.

Optimising, gcc may turn a loop that copies or clears into a call of ``memcpy`` or ``memset``, as it does in any file;
``-fno-tree-loop-distribute-patterns`` keeps it from that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.c99 import operations, selftest, sizes
from prunerl.deploy.c99.head import comment, head
from prunerl.deploy.c99.plan import Plan, plan, roots
from prunerl.deploy.c99.selftest import Selftest
from prunerl.deploy.c99.step import Context, Kernel, Step
from prunerl.deploy.c99.text import define, each, indent
from prunerl.deploy.program import ALLOWED, OBSERVATION, Program, matrices
from prunerl.errors import ExportError

SPARSE = 0.57
"""Share of zeros above which a sparse float32 matrix takes fewer instructions than a dense one (measured)."""

UNROLL = 300
"""Weights up to which a policy is written as formulae."""

TAKEN = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long main "
    "register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while".split()
)

PRELUDE = """#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define NAME_RESTRICT
#else
#define NAME_RESTRICT restrict
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define NAME_KERNEL __attribute__((noinline, noclone))
#else
#define NAME_KERNEL
#endif
#if defined(FP_FAST_FMAF) || defined(__FP_FAST_FMAF)
#define NAME_FMA(a, b, c) fmaf(a, b, c)
#else
#define NAME_FMA(a, b, c) ((a) * (b) + (c))
#endif
"""
ROUND = """#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
#define NAME_ROUND(v) (((v) + 12582912.0f) - 12582912.0f)
#else
#define NAME_ROUND(v) rintf(v)
#endif
"""


@dataclass(frozen=True, eq=False)
class _Written:
    """The parts of a file before they are put together."""

    program: Program
    context: Context
    steps: tuple[Step, ...]
    plan: Plan
    action: str
    kernels: tuple[Kernel, ...]


def c_source(
    program: Program,
    *,
    name: str = "policy",
    selftest: Selftest | tuple[NDArray[Any], NDArray[Any]] | None = None,
    sparse: float | bool = True,
    unroll: bool | None = None,
    exact_tanh: bool = False,
    compiler: Sequence[str] = (),
) -> str:
    """Write a policy as one C99 file.

    It defines ``void NAME(const float *obs, float *action)``, with ``const unsigned char *allowed`` as a third argument
    where the program takes action masks, and ``void NAME_reset(void)``, to be called at the start of an episode, where
    it has memory. The observation is flat and of floats whatever its type, a discrete action is a whole number, and
    ``obs`` and ``action`` may not overlap. Equal programs give equal files.

    Args:
        program: The policy, from :func:`prunerl.deploy.lower.lower`.
        name: Of the function; every other name begins with it, so that several policies can be linked.
        selftest: Observations and expected actions; compiled with ``-DNAME_SELFTEST`` (in capitals) the file is then
            a program whose exit status is the number of actions that are not as expected, 125 at most.
        sparse: Share of zeros above which a matrix is stored by its non-zeros; True for the share at which that
            begins to be faster on a Cortex-M4, False for never.
        unroll: Write matrices as formulae, zeros left out; None where the policy has at most 300 weights.
        exact_tanh: Call the library's ``tanhf`` in place of a rational function that is within 1e-6 of it.
        compiler: A gcc and its flags, by which the sizes in the head of the file are measured.

    Returns:
        The file.

    Raises:
        ExportError: An operation has no form in C, a name is none, or the compiler fails.

    >>> from prunerl.deploy.program import Affine, Matrix
    >>> layer = Affine("observation", "y", Matrix(np.float32([[0.5, -2.0]])), np.float32([1.0]))
    >>> tiny = Program((layer,), {"observation": (2,), "y": (1,)}, "y", "float32", (1,), "float32")
    >>> [line.strip() for line in c_source(tiny).splitlines() if "obs[0]" in line]
    ['v_y[0] = 1.0f + 0.5f * obs[0] - 2.0f * obs[1];']
    """
    written = _write(program, name, sparse, unroll, exact_tanh)
    body = _file(written, "", Selftest(*selftest) if selftest else None)
    measured = ""
    if compiler:
        taken = sizes.measure(body, compiler)
        measured = f"Measured: {taken.flash:,} bytes of flash, {taken.ram:,} of RAM, by {' '.join(compiler)}"
    return _head(written, measured) + body


def c_header(
    program: Program,
    *,
    name: str = "policy",
    sparse: float | bool = True,
    unroll: bool | None = None,
    exact_tanh: bool = False,
) -> str:
    """Write the same as a header alone: all of it is static, for one file that includes it, C or C++.

    Takes what :func:`c_source` takes, and raises the same.
    """
    written = _write(program, name, sparse, unroll, exact_tanh)
    guard = f"{name.upper()}_H"
    body = _file(written, "static inline ", None)
    return f"#ifndef {guard}\n#define {guard}\n\n{_head(written, '')}{body}\n#endif\n"


def _write(program: Program, name: str, sparse: float | bool, unroll: bool | None, exact_tanh: bool) -> _Written:
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in TAKEN:
        raise ExportError(f"The name {name!r} is no free identifier in C. Use letters, digits and underscores.")
    weights = sum(np.count_nonzero(m.values) for operation in program.operations for m in matrices(operation))
    share = {True: SPARSE, False: math.inf}[sparse] if isinstance(sparse, bool) else sparse
    context = Context(
        program,
        operations.identifiers(program),
        name,
        sparse=share,
        unroll=bool(weights <= UNROLL) if unroll is None else unroll,
        tanh="tanhf" if exact_tanh else f"{name}_tanh",
    )
    steps = tuple(step for operation in program.operations for step in operations.steps(operation, context))
    renamed = {n: step.reads[0] for step in steps if step.alias for n in step.makes}
    action = roots(renamed, program.action)
    constants = [n for step in steps if step.constant for n in step.makes]
    placed = frozenset((OBSERVATION, ALLOWED, action, *program.memory, *constants))
    kept = frozenset((program.action, *program.memory.values()))
    kernels = dict.fromkeys(k for step in steps for kernel in step.kernels for k in (*kernel.needs, kernel))
    return _Written(program, context, steps, plan(steps, placed, kept), action, tuple(kernels))


def _head(w: _Written, measured: str) -> str:
    return head(w.program, w.context.name, w.steps, w.kernels, w.plan, measured)


def _file(w: _Written, storage: str, test: Selftest | None) -> str:
    """Write all but the head."""
    name, program = w.context.name, w.program
    mask = ", const unsigned char *allowed" if program.allowed else ""
    declared = [f"{storage}void {name}(const float *obs, float *action{mask});"]
    declared += [f"{storage}void {name}_reset(void);"] if program.memory else []
    tables = [define(table) for step in w.steps for table in step.tables]
    parts = [
        PRELUDE + (ROUND if any(kernel.name == "quantize" for kernel in w.kernels) else ""),
        "\n".join(declared) + "\n",
        *(text + "\n" for text in tables),
        "\n".join(_static(w)),
        *(kernel.text.lstrip("\n") + "\n" for kernel in w.kernels),
        f"{storage}void {name}(const float *obs, float *action{mask})\n{{\n{indent(_body(w))}\n}}\n",
        *([_reset(w, storage)] if program.memory else []),
        *([selftest.text(program, test, name)] if test else []),
    ]
    return "\n".join(part for part in parts if part).replace("NAME_", f"{name}_")


def _static(w: _Written) -> list[str]:
    """Declare the memory."""
    name = w.context.name
    lines = [f"static float {name}_scratch[{w.plan.floats}];"] if w.plan.floats else []
    lines += [f"static int16_t {name}_whole[{w.plan.whole}];"] if w.plan.whole else []
    lines += [f"static float {name}_{w.context.names[m]}[{w.context.size(m)}];" for m in w.program.memory]
    return [*lines, ""] if lines else []


def _body(w: _Written) -> list[str]:
    """Write the function: where values lie, what is done, and what is remembered."""
    names, lines = w.context.names, []
    for step in w.steps:
        made = ", ".join(n for n in step.makes if n in w.program.shapes)
        lines += [f"/* {comment(made)}{': ' + step.note if step.note else ''} */"] if made and step.lines else []
        lines += step.lines
    if _ends(w)[w.action] != "action":
        lines += each(w.context.size(w.action), [f"action[i0] = {names[w.action]}[i0];"])
    for before, after in w.program.memory.items():
        root = roots(w.plan.same, after)
        if root in w.program.memory and root != before:
            raise ExportError(f"The memory {before!r} takes over {root!r} as it was, which has no form in C.")
        lines += each(w.context.size(before), [f"{w.context.name}_{names[before]}[i0] = {names[after]}[i0];"])
    text = "\n".join(line for line in lines if not line.startswith("/*"))
    arguments = [names[n] for n in (OBSERVATION, *([ALLOWED] if w.program.allowed else []))]
    lines = [f"(void){n};" for n in arguments if not re.search(rf"\b{n}\b", text)] + lines
    return [f"{kind} *const {n} = {at};" for n, kind, at in _places(w) if re.search(rf"\b{n}\b", text)] + lines


def _ends(w: _Written) -> dict[str, str]:
    """Return where the values lie that are not in the scratch memory; an action that is one of them is copied."""
    memory = {m: f"{w.context.name}_{w.context.names[m]}" for m in w.program.memory}
    constants = {n: step.tables[0].name for step in w.steps if step.constant for n in step.makes}
    return {w.action: "action", OBSERVATION: "obs"} | memory | constants


def _places(w: _Written) -> list[tuple[str, str, str]]:
    """Return each value's identifier, the type of its entries, and where it lies."""
    names, name, ends = w.context.names, w.context.name, _ends(w)
    places = [(names[m], "const float", ends[m]) for m in w.program.memory]
    for step in w.steps:
        for value in step.makes:
            root = roots(w.plan.same, value)
            memory = "whole" if value in step.whole else "scratch"
            at = ends.get(root) or f"{name}_{memory} + {w.plan.offsets[root]}"
            kind = "int16_t" if value in step.whole else "float"
            fixed = "const " if step.alias or step.constant else ""
            places.append((names.get(value) or identifier(names, value), fixed + kind, at))
    return places


def identifier(names: Mapping[str, str], temporary: str) -> str:
    """Return the identifier of a temporary value: that of the value it is for, with a word more."""
    value, word = temporary.rsplit(" ", 1)
    return f"{names[value]}_{word}"


def _reset(w: _Written, storage: str) -> str:
    """Write the function that empties the memory."""
    name, lines = w.context.name, list[str]()
    for m in w.program.memory:
        lines += each(w.context.size(m), [f"{name}_{w.context.names[m]}[i0] = 0.0f;"])
    return f"{storage}void {name}_reset(void)\n{{\n{indent(lines)}\n}}\n"
