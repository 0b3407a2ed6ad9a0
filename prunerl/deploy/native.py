"""Compile a policy for this machine: the fastest way from an observation to an action in Python.

C is written for the policy, compiled by the system's compiler at the first use, and kept. What is called then is a
function in C, which reads the NumPy array as it lies.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy import build
from prunerl.deploy.kernels import choose, extension
from prunerl.deploy.kernels.choose import Choice
from prunerl.deploy.kernels.fallback import Interpreted, Linked
from prunerl.deploy.kernels.forward import Forward, forward
from prunerl.deploy.kernels.layer import Machine
from prunerl.deploy.kernels.rounding import rounded
from prunerl.deploy.kernels.steps import Sequence as Steps
from prunerl.deploy.kernels.steps import sequence
from prunerl.deploy.program import Affine, Program
from prunerl.errors import BuildError, SpaceError


@runtime_checkable
class CompiledPolicy(Protocol):
    """A policy that is ready to be called.

    ``policy(obs)`` takes an observation as the environment gives it, an array of its shape, and returns the action as
    the environment takes it: an ``int`` of one discrete choice, else an array of its own. A batch has one dimension
    more in front, and so have the actions. ``policy(obs, allowed=mask)`` is for policies that take a mask of allowed
    actions. A recurrent policy keeps its memory until ``reset()``. It raises ``SpaceError`` for an observation of
    another shape, or with NaN. One policy object is not to be called by two threads at a time.

    Attributes:
        kernels: Layer → its kernel and what that takes.
        source: The C, whose tables of weights lie beside it; empty where it is interpreted.
        native: Whether it is compiled.
    """

    @property
    def kernels(self) -> Mapping[str, str]: ...
    @property
    def source(self) -> str: ...
    @property
    def native(self) -> bool: ...
    def __call__(self, obs: Any, /, *, allowed: Any = None) -> Any: ...
    def reset(self) -> None: ...


LEVELS = (("v4", 16), ("v3", 8))
"""Levels of x86-64 with wider vectors than any of it has, the best first, and the floats of a vector."""


SPARSE = 0.5
"""Density below which rows are put into another order."""


@dataclass(frozen=True, eq=False)
class _Level:
    """One of the machines that a library is for."""

    machine: Machine
    choices: Sequence[Choice]
    forward: Forward


def compile(
    subject: Any,
    *,
    quantize: NDArray[Any] | None = None,
    exact_tanh: bool = False,
    march: str = "native",
    cache: str | os.PathLike[str] | None = None,
    tune: bool = True,
) -> CompiledPolicy:
    """Compile a policy for this machine.

    Its actions are those of :func:`prunerl.deploy.interpret.run` up to the order of sums and 1e-6 in each hyperbolic
    tangent. Where there is no C compiler it is interpreted, with a warning.

    Args:
        subject: An agent, or anything with a ``policy``; a policy; or a program.
        quantize: Observations that the policy visits, shape (batch, *observation), by which its layers are rounded to
            int8. What that costs in return is not judged here; :func:`prunerl.compress` does.
        exact_tanh: Call the library's ``tanhf``, for some 15 ns each, in place of a rational function.
        march: What the compiler is to compile for. ``native``: this machine. ``x86-64-v2``: any that has this, and
            wider vectors where they are found when it runs.
        cache: Folder for what is compiled; see :func:`prunerl.deploy.build.folder`.
        tune: Choose each layer's kernel by measuring; else by a rule.

    Returns:
        The policy.

    Raises:
        LowerError: The policy has no program.
        BuildError: The compiler fails, nothing can be written to ``cache``, or this machine does not run ``march``.
        ExportError: An operation has no form in C.
    """
    program = _program(subject)
    program = program if quantize is None else rounded(program, quantize)
    program = _arranged(program)
    compiler = build.find()
    if compiler is None:
        return _interpreted(program)
    kept = build.folder(cache)
    about = (
        f"{sys.implementation.cache_tag} {sysconfig.get_platform()} {build.key(*sorted(build.macros(compiler, march)))}"
    )
    steps = sequence(program, exact_tanh=exact_tanh)
    machines = _machines(steps, compiler, march)
    if not _runs(machines[-1], compiler):
        raise BuildError(f'This machine does not run code for march={march!r}. Use "native", or "x86-64-v2" for any.')
    levels = [_level(steps, machine, compiler, kept, about, tune) for machine in machines]
    headers = _headers()
    if headers is None:
        return _linked(program, levels[-1], compiler, kept, about, march)
    module = _module(program, levels, compiler, kept, f"{about} numpy {np.__version__}", march, headers)
    at = levels[module.level()]
    kernels = _kernels(steps, at.choices)
    words = (_text(program, kernels, at.machine, march), at.forward.source)
    made: CompiledPolicy = module.CompiledPolicy(at.forward.weights, SpaceError, kernels, words[1], words[0])
    return made


def _program(subject: Any) -> Program:
    if isinstance(subject, Program):
        return subject
    from prunerl.deploy.lower import lower
    from prunerl.deploy.passes import simplify

    return simplify(lower(getattr(subject, "policy", subject), getattr(subject, "codings", {})))


def _arranged(program: Program) -> Program:
    """Put rows of similar length together where rows are sparse, for kernels that take several rows at a time."""
    weights = [op.weight.values for op in program.operations if isinstance(op, Affine)]
    if all(np.count_nonzero(weight) > SPARSE * weight.size for weight in weights):
        return program
    from prunerl.deploy.passes import permute_rows

    return permute_rows(program)


def _machines(steps: Steps, compiler: build.Compiler, march: str) -> list[Machine]:
    """Return what code is written for: the machine named, and wider ones that may be found when it runs."""
    width = _width(build.macros(compiler, march))
    wide = ("-mprefer-vector-width=512",) if width == 16 else ()
    named = Machine(march.replace("-", "_"), width, (f"-march={march}", *wide))
    if not march.startswith("x86-64"):
        return [named]
    wider = [Machine(n, w, (f"-march=x86-64-{n}", "-mprefer-vector-width=512")) for n, w in LEVELS if w > width]
    if any(product.layer.input_scale is not None for product in steps.products.values()) and width < 16:
        wider.insert(0, Machine("vnni", 16, ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512")))
    return [*wider, named]


def _width(macros: frozenset[str]) -> int:
    names = {line.split()[1] for line in macros if len(line.split()) > 1}
    if names >= {"__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__"}:
        return 16
    return 8 if names >= {"__AVX2__", "__FMA__"} else 4


def _level(steps: Steps, machine: Machine, compiler: build.Compiler, kept: Path, about: str, tune: bool) -> _Level:
    """Choose the layers' forms, and write the program with them."""
    layers = [product.layer for product in steps.products.values()]
    if tune and layers and _runs(machine, compiler):
        choices = choose.measured(layers, machine, compiler, kept, about)
    else:
        choices = [choose.by_rule(layer, machine) for layer in layers]
    chosen = {i: choice.chosen for i, choice in zip(steps.products, choices, strict=True)}
    return _Level(machine, choices, forward(steps, chosen, machine.width, machine.name))


def _runs(machine: Machine, compiler: build.Compiler) -> bool:
    """Whether this machine runs code for that one, as wide as its own vectors."""
    if machine.name == "native":
        return True
    own = build.macros(compiler, "native")
    march = machine.flags[0].removeprefix("-march=")
    names = {line.split()[1] for line in build.macros(compiler, march) if line.startswith("#define __AVX")}
    vnni = {"__AVX512VNNI__"} if "-mavx512vnni" in machine.flags else set()
    return (names | vnni) <= {line.split()[1] for line in own if len(line.split()) > 1}


def _headers() -> tuple[str, ...] | None:
    """Return where the headers of Python and NumPy are; None where they are not installed."""
    folders = (sysconfig.get_paths()["include"], np.get_include())
    there = Path(folders[0], "Python.h").exists() and Path(folders[1], "numpy", "arrayobject.h").exists()
    return folders if there and sys.implementation.name == "cpython" else None


def _module(
    program: Program,
    levels: Sequence[_Level],
    compiler: build.Compiler,
    kept: Path,
    about: str,
    march: str,
    headers: Sequence[str],
) -> ModuleType:
    """Build and load the module with the policy's type."""
    floats, memory = levels[0].forward.floats, levels[0].forward.memory
    floats = max(floats, *(level.forward.floats for level in levels)) if len(levels) > 1 else floats
    text = extension.source(program, [level.machine.name for level in levels], floats, memory)
    units = [build.Unit(level.machine.name, level.forward.source, level.machine.flags) for level in levels]
    flags = tuple(f"-I{folder}" for folder in headers)
    linking = ("-Wl,-undefined,dynamic_lookup",) if sys.platform == "darwin" else ()
    units.append(build.Unit("module", text, (f"-march={march}", *flags)))
    path = build.library(units, compiler, kept, flags=("-fvisibility=hidden", *linking), about=about)
    loader = importlib.machinery.ExtensionFileLoader(extension.NAME, str(path))
    spec = importlib.util.spec_from_file_location(extension.NAME, path, loader=loader)
    assert spec is not None  # a loader is given
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _linked(
    program: Program, level: _Level, compiler: build.Compiler, kept: Path, about: str, march: str
) -> CompiledPolicy:
    """Build a library for ctypes: without Python's headers there is no type in C."""
    warnings.warn(
        "The headers of Python or NumPy are not installed: the policy is called through ctypes, which takes some "
        "microseconds. Install them (python3-dev).",
        stacklevel=3,
    )
    unit = build.Unit(level.machine.name, level.forward.source, level.machine.flags)
    path = build.library([unit], compiler, kept, flags=("-fvisibility=hidden",), about=about, name="linked")
    kernels: dict[str, str] = {}
    text = _text(program, kernels, level.machine, march) + "\nCalled through ctypes: the headers of Python are missing."
    return Linked(program, text, kernels, level.forward, path, level.machine.name)


def _interpreted(program: Program) -> CompiledPolicy:
    warnings.warn(
        "There is no C compiler: the policy is interpreted in NumPy, some hundred times slower. Install gcc or clang, "
        "or set CC.",
        stacklevel=3,
    )
    return Interpreted(program, "Policy, interpreted in NumPy: there is no C compiler.", {}, "")


def _kernels(steps: Steps, choices: Sequence[Choice]) -> dict[str, str]:
    """Say of each layer which kernel does it."""
    said = {}
    for product, choice in zip(steps.products.values(), choices, strict=True):
        one, many = choice.chosen.one.kernel, choice.chosen.many.kernel
        times = choice.nanoseconds
        took = ["", ""] if times is None else [f", {t / 1000:.3g} µs" for t in times]
        said[product.name] = f"{one}{took[0]}; in batches {many}{took[1]} each"
    return said


def _text(program: Program, kernels: Mapping[str, str], machine: Machine, march: str) -> str:
    shape = f"{program.observation_dtype} {program.observation_shape} to {program.action_dtype} {program.action_shape}"
    head = f"Policy from {shape}, compiled for march={march}, {machine.width} floats a vector"
    return "\n".join([head, *(f"  {name}: {kernel}" for name, kernel in kernels.items())])
