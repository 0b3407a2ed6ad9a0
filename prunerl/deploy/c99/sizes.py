"""What a policy takes of a microcontroller: counted, estimated, and measured where a compiler is asked."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunerl.deploy.c99.step import Kernel, Step
from prunerl.errors import ExportError

WEIGHT, LINE = 19, 12
"""Bytes of Thumb-2 code at -O2, of a weight in a formula and of another line; sums were within a factor of two."""


@dataclass(frozen=True)
class Measured:
    """Sizes of an object file: ``flash`` is code and constants, ``ram`` is what is not constant, in bytes."""

    flash: int
    ram: int


def constants(steps: Sequence[Step]) -> int:
    """Return the bytes of all tables."""
    return sum(table.values.nbytes for step in steps for table in step.tables)


def code(steps: Sequence[Step], kernels: Sequence[Kernel]) -> int:
    """Estimate the bytes of code."""
    weights = sum(step.unrolled for step in steps)
    lines = sum(kernel.text.count(";") for kernel in kernels) + sum(
        len(step.lines) for step in steps if not step.unrolled
    )
    return WEIGHT * weights + LINE * lines


def measure(source: str, compiler: Sequence[str]) -> Measured:
    """Compile a C file and read the sizes of its sections.

    Args:
        source: The file.
        compiler: A gcc and its flags, such as ``("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-O2")``. The program ``size``
            that belongs to it is taken from beside it.

    Raises:
        ExportError: The compiler or its ``size`` is absent, or the compiler refuses the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, result = Path(folder, "policy.c"), Path(folder, "policy.o")
        path.write_text(source)
        _run([*compiler, "-c", str(path), "-o", str(result)])
        table = _run([compiler[0].removesuffix("gcc") + "size", str(result)])
    text, data, bss = (int(word) for word in table.splitlines()[1].split()[:3])
    return Measured(text + data, data + bss)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ExportError(f"{command[0]} cannot be started: {error}. Install it, or give another compiler.") from error
    if done.returncode:
        raise ExportError(f"{' '.join(command)} failed: {done.stderr.strip()}. Mend the compiler's flags.")
    return done.stdout
