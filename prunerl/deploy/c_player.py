"""Play a policy in C on this machine: compiled, loaded, and called for one observation at a time."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.program import Program
from prunerl.errors import ExportError

FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared", "-Wall", "-Wno-unused-function")
SECONDS = 300


def c_player(path: Path, program: Program, name: str) -> tuple[Callable[..., Any], Callable[[], None]]:
    """Compile a ``.c`` or ``.h`` file beside itself and return its two functions: act, and reset the memory.

    Raises:
        ExportError: There is no C compiler, or it refuses the file.
    """
    library = path.with_suffix(".so")
    unit = path.with_name("unit.c")
    reset = f"void play_reset(void) {{ {name}_reset(); }}\n" if program.memory else ""
    mask = ", const unsigned char *allowed" if program.allowed else ""
    # Of a header everything is static, so a name of its own is put around it; of a source the same does no harm.
    unit.write_text(
        f'#include "{path.name}"\n'
        f"void play(const float *obs, float *action{mask}) {{ {name}(obs, action{', allowed' if mask else ''}); }}\n"
        f"{reset}"
    )
    _compile(unit, library)
    loaded = ctypes.CDLL(str(library))

    def act(observations: NDArray[Any], memory: Any, allowed: NDArray[np.bool_] | None) -> Any:
        count = len(observations)
        given = np.ascontiguousarray(observations.reshape(count, -1), dtype=np.float32)
        made = np.zeros((count, int(np.prod(program.action_shape))), dtype=np.float32)
        everything = np.ones((count, program.allowed), dtype=np.bool_)
        masks = np.ascontiguousarray(everything if allowed is None else allowed, dtype=np.uint8)
        for one, action, may in zip(given, made, masks, strict=True):
            arrays = (one, action, may) if program.allowed else (one, action)
            loaded.play(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        return made.reshape(count, *program.action_shape).astype(program.action_dtype), memory

    return act, loaded.play_reset if program.memory else lambda: None


def _compile(unit: Path, library: Path) -> None:
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise ExportError("Checking a C file needs a C compiler. Install gcc or clang, or name yours in CC.")
    command = [*compiler.split(), *FLAGS, str(unit), "-o", str(library), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"The C compiler {compiler!r} did not run: {error}. Name another one in CC.") from error
    if done.returncode != 0:
        raise ExportError(f"The C compiler {compiler!r} refuses the file: {done.stderr.strip()[:500]}. Report this.")
