"""Choose the form of each layer: by measuring all of them, or by a rule where that cannot be."""

from __future__ import annotations

import ctypes
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunerl.deploy import build
from prunerl.deploy.kernels import blocks, dense, pell, pell_whole, sparse, vector, whole
from prunerl.deploy.kernels.forward import CHUNK, Chosen
from prunerl.deploy.kernels.layer import Form, Kernel, Layer, Machine, define, packed

KERNELS: tuple[Kernel, ...] = (
    dense.by_row,
    sparse.rows,
    sparse.formulae,
    pell.permuted,
    partial(pell.permuted, sliding=True),
    pell_whole.permuted,
    partial(pell_whole.permuted, sliding=True),
)
"""Those without a size of blocks."""

BLOCKED: tuple[tuple[Any, int], ...] = (
    *((dense.dense, vectors) for vectors in (1, 2, 4, 8)),
    *((partial(dense.dense, ahead=True), vectors) for vectors in (1, 2, 4, 8)),
    *((blocks.blocks, vectors) for vectors in (1, 2, 4)),
    *((whole.whole, vectors) for vectors in (1, 2, 4, 8)),
)
"""Those with blocks, each with the vectors of a block."""

TURNS = 3
"""Times that each form is measured, all others in between, so that what else the machine does meets not one alone."""

TIMER = r"""
#include <time.h>

typedef void (*one)(float *, const float *, const char *);
typedef void (*many)(float *, const float *, const char *, long, long, long);

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static void call(int k, long n, float *y, const float *x, const char *w, long ys, long xs)
{
    if (n == 0) {
        ONES[k](y, x, w);
    } else if (MANY[k]) {
        MANY[k](y, x, w, n, ys, xs);
    } else {
        for (long i = 0; i < n; i++) {
            ONES[k](y + i * ys, x + i * xs, w);
        }
    }
}

/* Nanoseconds of one call: the least of some rounds of about 20 microseconds. */
__attribute__((visibility("default")))
double policy_time(int k, long n, float *y, const float *x, const char *w, long ys, long xs)
{
    double least = 1e30;
    call(k, n, y, x, w, ys, xs);
    double start = now();
    call(k, n, y, x, w, ys, xs);
    double once = now() - start;
    long times = once > 20000 ? 1 : (long)(20000 / (once + 1)) + 1;
    for (int round = 0; round < 3; round++) {
        start = now();
        for (long i = 0; i < times; i++) {
            call(k, n, y, x, w, ys, xs);
        }
        double taken = (now() - start) / times;
        least = taken < least ? taken : least;
    }
    return least;
}
"""


@dataclass(frozen=True, eq=False)
class Choice:
    """The forms of a layer, and what they take.

    Attributes:
        chosen: For one vector and for many.
        nanoseconds: Of one vector and of a vector among many; None where it was not measured.
    """

    chosen: Chosen
    nanoseconds: tuple[float, float] | None


def forms(layer: Layer, machine: Machine) -> list[Form]:
    """Return all forms that a layer has on a machine, at least one."""
    sized: list[Kernel] = [partial(kernel, block=machine.width * vectors) for kernel, vectors in BLOCKED]
    # One register is a choice where two cost more: AVX-512 takes from two as fast as from one.
    fewer: list[Kernel] = [partial(pell.permuted, registers=1)] if machine.width == 8 else []
    made = [kernel(layer, machine) for kernel in (*sized, *KERNELS, *fewer)]
    return [form for form in made if form is not None]


def by_rule(layer: Layer, machine: Machine) -> Choice:
    """Choose without measuring: what was the fastest elsewhere."""
    made = {form.kernel: form for form in forms(layer, machine)}
    wide = [machine.width * vectors for vectors in (8, 4, 2, 1)]
    density = float((layer.weight != 0).mean())
    permuted = f"permuted {machine.width} × {2 * machine.width}"
    wins, slides = (0.5, [f"{permuted}, sliding"]) if machine.width == 16 else (0.3, [])
    sparse_first = [*slides, permuted, "sparse rows"] if density < wins else []
    order = ["formulae"] if density * layer.weight.size <= 64 else []
    end = ", fetched ahead" if machine.width == 8 else ""
    fetched = [f"{kind} by {n} rows{end}" for kind in ("dense int8", "dense") for n in wide]
    order += [
        *sparse_first,
        *fetched,
        *(f"{kind} by {n} rows" for kind in ("int8", "dense int8", "dense") for n in wide),
    ]
    one = next((made[name] for name in order if name in made), next(iter(made.values())))
    batched = ["sparse rows"] if density < 0.25 else []
    batched += [*(f"dense by {n} rows" for n in wide[-2:]), one.kernel]
    many = next(made[name] for name in batched if name in made)
    return Choice(Chosen(one, many), None)


def measured(
    layers: Sequence[Layer], machine: Machine, compiler: build.Compiler, kept: Path, about: str
) -> list[Choice]:
    """Choose by measuring every form of every layer, for one vector and for many.

    What was measured is kept beside the libraries, by the code, the tables and the machine.
    """
    made = [forms(layer, machine) for layer in layers]
    flat = [form for several in made for form in several]
    text = _source(flat, machine)
    path = build.library([build.Unit("measure", text, machine.flags)], compiler, kept, about=about, name="measure")
    times = _times(path, made, layers)
    choices = []
    for several in made:
        own, times = times[: len(several)], times[len(several) :]
        one, many = (min(range(len(several)), key=lambda k, s=s: own[k][s]) for s in (0, 1))  # type: ignore[misc]
        choices.append(Choice(Chosen(several[one], several[many]), (own[one][0], own[many][1])))
    return choices


def _source(flat: Sequence[Form], machine: Machine) -> str:
    functions = "\n".join(define(f"k{k}", form) for k, form in enumerate(flat))
    ones = ", ".join(f"k{k}" for k in range(len(flat)))
    several = ", ".join(f"k{k}_many" if form.many is not None else "0" for k, form in enumerate(flat))
    tables = f"static const one ONES[] = {{{ones}}};\nstatic const many MANY[] = {{{several}}};\n"
    timer = TIMER.replace("static double now", tables + "\nstatic double now", 1)
    return f"#define _POSIX_C_SOURCE 199309L\n{vector.prelude(machine.width, functions)}\n{functions}\n{timer}"


def _times(path: Path, made: Sequence[Sequence[Form]], layers: Sequence[Layer]) -> list[tuple[float, float]]:
    """Return the times of all forms, from the file where they are kept, or measured now."""
    tables = [packed(form.arrays) for several in made for form in several]
    place = path.with_name(f"times-{build.key(path.name, _processor(), *tables)}.json")
    if place.exists():
        return [(one, many) for one, many in json.loads(place.read_text())]
    time = ctypes.CDLL(str(path)).policy_time
    time.restype = ctypes.c_double
    time.argtypes = [ctypes.c_int, ctypes.c_long, *[ctypes.c_void_p] * 3, ctypes.c_long, ctypes.c_long]
    times = [(math.inf, math.inf)] * len(tables)
    for _ in range(TURNS):
        k = 0
        for layer, several in zip(layers, made, strict=True):
            x, y = _room(CHUNK * layer.columns * 4), _room(CHUNK * layer.rows * 4)
            x.view(np.float32)[:] = 0.5
            for _ in several:
                table = _room(len(tables[k]))
                table[:] = np.frombuffer(tables[k], np.uint8)
                call = partial(time, k)
                rest = (y.ctypes.data, x.ctypes.data, table.ctypes.data, layer.rows, layer.columns)
                times[k] = (min(times[k][0], call(0, *rest)), min(times[k][1], call(CHUNK, *rest) / CHUNK))
                k += 1
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as aside:
        json.dump(times, aside)
    os.replace(aside.name, place)
    return times


def _room(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return memory that begins at a multiple of 64 bytes."""
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def _processor() -> str:
    """Return what the machine says of its processor, so that times are not taken for those of another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        import platform

        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "cpu family", "model", "stepping")))
