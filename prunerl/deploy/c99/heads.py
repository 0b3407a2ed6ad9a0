"""The two ends of a policy as steps: what is done to the observation first, and how the action is read off."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.c99 import functions
from prunerl.deploy.c99.step import Context, Step
from prunerl.deploy.c99.text import Table, each, number
from prunerl.deploy.program import ALLOWED, Choose, Clip, Normalize, OneHot, Positive, Squash


def normalize(op: Normalize, context: Context) -> tuple[Step, ...]:
    """Shift, scale and clip each entry; NaN stays NaN."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    shape = context.shape(op.source)
    tables = [
        Table(context.table(op.result, what), np.broadcast_to(values, shape).astype(np.float32))
        for what, values in (("mean", op.mean), ("factor", op.factor))
    ]
    lines = [f"const float v = ({source}[i0] - {tables[0].name}[i0]) * {tables[1].name}[i0];"]
    high, low = number(op.clip), number(-op.clip)
    clipped = "v" if np.isinf(op.clip) else f"v < {low} ? {low} : v > {high} ? {high} : v"
    if op.where is not None:
        tables.append(Table(context.table(op.result, "where"), np.broadcast_to(op.where, shape).astype(np.uint8)))
        clipped = f"{tables[2].name}[i0] ? ({clipped}) : {source}[i0]"
    lines.append(f"{target}[i0] = {clipped};")
    return (Step(each(n, lines), (op.source,), {op.result: n}, tables=tuple(tables), alike=True),)


def one_hot(op: OneHot, context: Context) -> tuple[Step, ...]:
    """Compare each place with the number, cut to a whole one; none is 1 where the number is no place."""
    source, target, lines, start = context.names[op.source], context.names[op.result], [], 0
    for i, size in enumerate(op.sizes):
        first = op.starts[i] if op.starts else 0
        at, shifted = (f"i0 + {start}" if start else "i0"), "(float)i0" + (f" + {number(first)}" if first else "")
        body = each(size, [f"{target}[{at}] = v == {shifted} ? 1.0f : 0.0f;"])
        lines += ["{", f"const float v = truncf({source}[{i}]);", *body, "}"]
        start += size
    return (Step(tuple(lines), (op.source,), {op.result: start}),)


def choose(op: Choose, context: Context) -> tuple[Step, ...]:
    """Take the first of the largest entries of each part; NaN counts as the largest, as in NumPy."""
    source, target, lines, start = context.names[op.source], context.names[op.result], [], 0
    mask = context.names[ALLOWED] if context.program.allowed else ""

    def value(at: str) -> str:
        return f"({mask}[{at}] ? {source}[{at}] : -INFINITY)" if mask else f"{source}[{at}]"

    for part, size in enumerate(op.sizes):
        at = f"i0 + {start}" if start else "i0"
        lines += [
            "{",
            "int32_t best = 0;",
            f"float most = {value(str(start))};",
            f"for (int32_t i0 = 1; i0 < {size}; i0++) {{",
            f"const float v = {value(at)};",
            "if (v > most || (isnan(v) && !isnan(most))) {",
            "best = i0;",
            "most = v;",
            "}",
            "}",
            f"{target}[{part}] = (float)best;",
            "}",
        ]
        start += size
    return (Step(tuple(lines), _masked(op.source, context), {op.result: len(op.sizes)}),)


def positive(op: Positive, context: Context) -> tuple[Step, ...]:
    """Compare with 0, NaN being not above it; where 0 is not allowed it is 1, else where 1 is not allowed it is 0."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    test = f"{source}[i0] > 0.0f"
    if context.program.allowed:
        mask = context.names[ALLOWED]
        test = f"!{mask}[2 * i0] || ({mask}[2 * i0 + 1] && {test})"
    lines = each(n, [f"{target}[i0] = {test} ? 1.0f : 0.0f;"])
    return (Step(lines, _masked(op.source, context), {op.result: n}, alike=True),)


def clip(op: Clip, context: Context) -> tuple[Step, ...]:
    """Clip each entry to its bounds; NaN stays NaN."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    (low, first), (high, second) = (_bound(op, context, what, n) for what in ("low", "high"))
    lines = [
        f"const float v = {source}[i0];",
        f"{target}[i0] = v < {low} ? {low} : v > {high} ? {high} : v;",
    ]
    return (Step(each(n, lines), (op.source,), {op.result: n}, tables=first + second, alike=True),)


def squash(op: Squash, context: Context) -> tuple[Step, ...]:
    """Squash each entry and scale it to its bounds."""
    n, source, target = context.size(op.source), context.names[op.source], context.names[op.result]
    (low, first), (high, second) = (_bound(op, context, what, n) for what in ("low", "high"))
    lines = each(n, [f"{target}[i0] = {low} + 0.5f * ({context.tanh}({source}[i0]) + 1.0f) * ({high} - {low});"])
    used = functions.tanh_kernels(lines, context.tanh)
    return (Step(lines, (op.source,), {op.result: n}, tables=first + second, kernels=used, alike=True),)


def _bound(op: Clip | Squash, context: Context, what: str, n: int) -> tuple[str, tuple[Table, ...]]:
    """Return a bound's expression: a number where all are equal, else a table."""
    bound = np.broadcast_to(op.low if what == "low" else op.high, (n,)).astype(np.float32)
    if np.all(bound == bound[0]):
        return number(bound[0]), ()
    table = Table(context.table(op.result, what), bound)
    return f"{table.name}[i0]", (table,)


def _masked(source: str, context: Context) -> tuple[str, ...]:
    return (source, ALLOWED) if context.program.allowed else (source,)
