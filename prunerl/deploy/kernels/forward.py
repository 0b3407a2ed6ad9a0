"""The function from observation to action in C, for one observation and for many, and the tables that it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from prunerl.deploy.c99.plan import Plan, plan, roots
from prunerl.deploy.c99.step import Step
from prunerl.deploy.c99.text import Table, each, indent
from prunerl.deploy.c_export import PRELUDE, ROUND, identifier
from prunerl.deploy.kernels import vector
from prunerl.deploy.kernels.layer import TYPES, Form, aligned, define, offsets, packed
from prunerl.deploy.kernels.steps import ROUND as ROUNDED
from prunerl.deploy.kernels.steps import Product, Sequence
from prunerl.deploy.program import ALLOWED, OBSERVATION
from prunerl.errors import ExportError

CHUNK = 32
"""Observations that go through the layers together."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The forms of a layer: for one vector, and for many."""

    one: Form
    many: Form


@dataclass(frozen=True, eq=False)
class Forward:
    """A program in C.

    Attributes:
        source: Defines ``policy_forward_NAME`` and ``policy_many_NAME``, which return whether an observation has NaN.
        weights: The tables, to be aligned to 64 bytes.
        floats: Of scratch memory, for :data:`CHUNK` observations.
        memory: Floats that one observation's memory takes.
    """

    source: str
    weights: bytes
    floats: int
    memory: int


@dataclass(frozen=True, eq=False)
class _Writing:
    """What is known while the functions are written; ``tables`` has the place of each layer's and table's bytes."""

    made: Sequence
    plan: Plan
    action: str
    tables: Mapping[str, int]
    chosen: Mapping[int, Chosen]
    memory: Mapping[str, int]

    def stride(self, root: str, size: int) -> int:
        """Return how many floats apart a value is in neighbouring observations."""
        program = self.made.context.program
        if root in program.memory:
            return sum(_rounded(self.made.context.size(m)) for m in program.memory)
        if root in (OBSERVATION, self.action):
            return self.made.context.size(root if root == OBSERVATION else program.action)
        return _rounded(size)


def forward(made: Sequence, chosen: Mapping[int, Chosen], width: int, name: str) -> Forward:
    """Write a program with the forms that were chosen for its layers.

    Raises:
        ExportError: A memory takes over another one as it was.
    """
    program, steps = made.context.program, made.steps
    renamed = {n: step.reads[0] for step in steps if step.alias for n in step.makes}
    action = roots(renamed, program.action)
    constants = [n for step in steps if step.constant for n in step.makes]
    placed = frozenset((OBSERVATION, ALLOWED, action, *program.memory, *constants))
    kept = frozenset((program.action, *program.memory.values()))
    weights, tables, functions = _tables(made, chosen)
    places, end = {}, 0
    for m in program.memory:
        places[m], end = end, end + _rounded(made.context.size(m))
    w = _Writing(made, plan(steps, placed, kept), action, tables, chosen, places)
    kernels = dict.fromkeys(k for step in steps for kernel in step.kernels for k in (*kernel.needs, kernel))
    helpers = [kernel.text.lstrip("\n") + "\n" for kernel in kernels]
    rounding = ROUND if any(kernel.name == "quantize" for kernel in kernels) else ""
    written = "\n".join(functions)
    parts = [
        PRELUDE + rounding,
        vector.prelude(width, written),
        *helpers,
        *functions,
        _function(w),
        _function(w, many=True),
    ]
    source = "\n".join(parts).replace("NAME_", "policy_")
    return Forward(source.replace("LEVEL", name), weights, _floats(w.plan) * CHUNK, end)


def _rounded(size: int) -> int:
    return -(-size // ROUNDED) * ROUNDED


def _floats(laid: Plan) -> int:
    return _rounded(laid.floats) + _rounded(-(-laid.whole // 2))


def _tables(made: Sequence, chosen: Mapping[int, Chosen]) -> tuple[bytes, dict[str, int], list[str]]:
    """Lay out all tables, and define the layers' functions, each once."""
    at: dict[str, int] = {}
    parts, functions, end = [], [], 0
    for i in made.products:
        for word, form in (("one", chosen[i].one), ("many", chosen[i].many)):
            if word == "many" and form is chosen[i].one:
                at[f"many_{i}"] = at[f"one_{i}"]
                continue
            at[f"{word}_{i}"] = end
            functions.append(define(f"{word}_{i}", form))
            parts.append(packed(form.arrays))
            end += offsets(form.arrays)[-1]
    for table in (table for step in made.steps for table in step.tables):
        at[table.name] = end
        parts.append(packed((table.values,)))
        end += aligned(table.values.nbytes)
    return b"".join(parts), at, functions


def _function(w: _Writing, *, many: bool = False) -> str:
    """Write the function for one observation, or for up to as many as go through together."""
    program = w.made.context.program
    size = w.made.context.size(OBSERVATION)
    lines = [line for i, step in enumerate(w.made.steps) for line in _step(w, i, step, many)]
    lines += _after(w, many)
    name, more = ("policy_many_LEVEL", ", long n") if many else ("policy_forward_LEVEL", "")
    obs, allowed, action = ("observations", "masks", "actions") if many else ("obs", "allowed", "action")
    arguments = (
        f"const char *restrict weights, float *restrict scratch, float *restrict memory, const float *restrict {obs}, "
        f"const unsigned char *restrict {allowed}, float *restrict {action}{more}"
    )
    unused = ["(void)weights;", "(void)scratch;", "(void)memory;", f"(void){allowed};"]
    check = []
    if program.observation_dtype.startswith("float"):
        count = f"n * {size}" if many else str(size)
        check = [
            "int bad = 0;",
            f"for (long i = 0; i < {count}; i++) {{",
            f"bad |= {obs}[i] != {obs}[i];",
            "}",
            "if (__builtin_expect(bad, 0)) {",
            "return 1;",
            "}",
        ]
    body = indent([*unused, *check, *lines, "return 0;"])
    visible = '__attribute__((visibility("default")))'
    return f"{visible} int {name}({arguments});\n{visible} int {name}({arguments})\n{{\n{body}\n}}\n"


def _step(w: _Writing, i: int, step: Step, many: bool) -> list[str]:
    if i in w.made.products:
        return _product(w, i, w.made.products[i], many)
    if not step.lines:
        return []
    inside = [*_pointers(w, step, many), *(_table(w, table) for table in step.tables), *step.lines]
    return ["for (long b = 0; b < n; b++) {" if many else "{", *inside, "}"]


def _table(w: _Writing, table: Table) -> str:
    kind = TYPES[table.values.dtype.str[1:]]
    return f"const {kind} *const {table.name} = (const {kind} *)(weights + {w.tables[table.name]});"


def _name(w: _Writing, value: str) -> str:
    return w.made.context.names.get(value) or identifier(w.made.context.names, value)


def _pointers(w: _Writing, step: Step, many: bool) -> list[str]:
    """Declare the values that the lines of a step name, at the observation ``b`` where there are many."""
    text = "\n".join(step.lines)
    lines = []
    for value in dict.fromkeys((*step.reads, *step.makes)):
        name = _name(w, value)
        if name in ("obs", "allowed"):
            count = w.made.context.size(OBSERVATION) if name == "obs" else w.made.context.program.allowed
            if many and re.search(rf"\b{name}\b", text):
                kind, whole = ("float", "observations") if name == "obs" else ("unsigned char", "masks")
                lines.append(f"const {kind} *const {name} = {whole} + b * {count};")
        elif re.search(rf"\b{name}\b", text):
            lines.append(_pointer(w, value, name, many))
    return lines


def _pointer(w: _Writing, value: str, name: str, many: bool) -> str:
    kind = "int16_t" if any(value in step.whole for step in w.made.steps) else "float"
    fixed = "const " if value in w.made.context.program.memory else ""
    return f"{fixed}{kind} *const {name} = {_place(w, value, many)};"


def _place(w: _Writing, value: str, many: bool, which: str = "b") -> str:
    """Write where a value lies."""
    root, context = roots(w.plan.same, value), w.made.context
    if root in (OBSERVATION, w.action, *context.program.memory):
        ends = {w.action: "actions" if many else "action", OBSERVATION: "observations" if many else "obs"}
        word = f"memory + {w.memory[root]}" if root in context.program.memory else ends[root]
        return f"{word} + {which} * {w.stride(root, 0)}" if many else word
    for step in w.made.steps:
        if step.constant and root in step.makes:
            return f"(float *)(weights + {w.tables[step.tables[0].name]})"
    size = next(step.makes[root] for step in w.made.steps if root in step.makes)
    times = CHUNK if many else 1
    if any(root in step.whole for step in w.made.steps):
        start = f"(int16_t *)(scratch + {_rounded(w.plan.floats) * times}) + {w.plan.offsets[root] * times}"
    else:
        start = f"scratch + {w.plan.offsets[root] * times}"
    return f"{start} + {which} * {size}" if many else start


def _product(w: _Writing, i: int, product: Product, many: bool) -> list[str]:
    """Call a layer: for all observations at once, or for all vectors of an observation, or one by one."""
    layer, positions = product.layer, product.positions
    form = w.chosen[i].many if many or positions > 1 else w.chosen[i].one
    word = "many" if form is w.chosen[i].many and form is not w.chosen[i].one else "one"
    table = f"weights + {w.tables[f'{word}_{i}']}"
    source, result = (_place(w, value, many) for value in (product.source, product.result))
    note = [f"/* {re.sub(r'[^ -)+-~]', ' ', product.name)}: {form.kernel.replace('×', 'x')} */"]
    if positions > 1:
        call = _several(form, word, i, (result, source, table), str(positions), (layer.rows, layer.columns))
        return [*note, *(["for (long b = 0; b < n; b++) {", *call, "}"] if many else call)]
    if not many:
        return [*note, f"{word}_{i}({result}, {source}, {table});"]
    strides = tuple(_stride(w, value) for value in (product.result, product.source))
    starts = tuple(_place(w, value, many, "0") for value in (product.result, product.source))
    return [*note, *_several(form, word, i, (*starts, table), "n", strides)]


def _stride(w: _Writing, value: str) -> int:
    root = roots(w.plan.same, value)
    sizes = [step.makes[root] for step in w.made.steps if root in step.makes]
    return w.stride(root, sizes[0] if sizes else 0)


def _several(form: Form, word: str, i: int, places: tuple[str, ...], count: str, strides: tuple[int, ...]) -> list[str]:
    y, x, table = places
    if form.many is not None:
        return [f"{word}_{i}_many({y}, {x}, {table}, {count}, {strides[0]}, {strides[1]});"]
    return [
        f"for (long p = 0; p < {count}; p++) {{",
        f"{word}_{i}({y} + p * {strides[0]}, {x} + p * {strides[1]}, {table});",
        "}",
    ]


def _after(w: _Writing, many: bool) -> list[str]:
    """Write what is remembered, and the action where no step makes it in its place."""
    context, lines = w.made.context, list[str]()
    program = context.program
    if w.action in (OBSERVATION, *program.memory) or not any(w.action in step.makes for step in w.made.steps):
        source = _place(w, w.action, many)
        target = f"actions + b * {context.size(program.action)}" if many else "action"
        lines += each(context.size(program.action), [f"({target})[i0] = ({source})[i0];"])
    for before, after in program.memory.items():
        root = roots(w.plan.same, after)
        if root in program.memory and root != before:
            raise ExportError(f"The memory {before!r} takes over {root!r} as it was, which has no form in C.")
        target, source = _place(w, before, many), _place(w, after, many)
        lines += each(context.size(before), [f"({target})[i0] = ({source})[i0];"])
    return ["for (long b = 0; b < n; b++) {", *lines, "}"] if many and lines else lines
