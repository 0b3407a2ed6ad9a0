"""Find a C compiler, and build shared libraries once: they are kept by the content of what they are made of."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as remembered
from pathlib import Path

from prunerl.errors import BuildError

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
"""Of every file. NaN and infinity keep their meaning, and no sum is reordered."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        command: How it is called.
        version: What it says of itself.
    """

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Unit:
    """A C file of a library, with the flags that it needs beside :data:`FLAGS`."""

    name: str
    text: str
    flags: tuple[str, ...] = ()


def find() -> Compiler | None:
    """Return the compiler that ``$CC`` names, or else the first of cc, gcc and clang; None where there is none.

    Raises:
        BuildError: ``$CC`` names no program that can be started.
    """
    named = os.environ.get("CC")
    return _found(named) if named else next(filter(None, map(_started, ("cc", "gcc", "clang"))), None)


def _found(named: str) -> Compiler:
    compiler = _started(named)
    if compiler is None:
        raise BuildError(f"$CC is {named!r}, which cannot be started. Set CC to a C compiler, or unset it.")
    return compiler


@remembered
def _started(named: str) -> Compiler | None:
    command = tuple(shlex.split(named))
    if not command or shutil.which(command[0]) is None:
        return None
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return Compiler(command, done.stdout.strip()) if done.returncode == 0 else None


@remembered
def macros(compiler: Compiler, march: str) -> frozenset[str]:
    """Return the lines by which a compiler describes the machine of ``-march``.

    Raises:
        BuildError: The compiler does not know that machine.
    """
    command = [*compiler.command, f"-march={march}", "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"{compiler.command[0]} does not know march={march!r}: {done.stderr.strip().splitlines()[0]}. "
            'Use "native", or a name that it knows, such as "x86-64-v2".'
        )
    return frozenset(done.stdout.splitlines())


def folder(cache: str | os.PathLike[str] | None) -> Path:
    """Return the folder in which libraries are kept, and make it.

    Args:
        cache: The folder. None: ``prunerl`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; where nothing can be written there,
            a new temporary folder, with a warning, so that the libraries are built anew in each process.

    Raises:
        BuildError: Nothing can be written to the folder that was given.
    """
    if cache is not None:
        try:
            return _writable(Path(cache))
        except OSError as error:
            raise BuildError(
                f"Compiled policies cannot be kept in {cache}: {error}. Give a folder that can be written as cache=."
            ) from error
    return _default(os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser()))


@remembered
def _default(home: str) -> Path:
    try:
        return _writable(Path(home) / "prunerl")
    except OSError as error:
        made = Path(tempfile.mkdtemp(prefix="prunerl-"))
        warnings.warn(
            f"Compiled policies cannot be kept ({error}); they go to {made}, for this process alone. Give a folder "
            "as cache=, or set XDG_CACHE_HOME.",
            stacklevel=5,
        )
        return made


def _writable(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def key(*parts: object) -> str:
    """Return a name for content: equal parts have equal names, others do not."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def library(
    units: Sequence[Unit], compiler: Compiler, kept: Path, *, flags: Sequence[str] = (), about: str = "", name: str = ""
) -> Path:
    """Compile and link a shared library, unless the same one is there already.

    Several processes may do so at once: a library is built aside, and takes its place whole.

    Args:
        units: The files.
        compiler: What compiles them.
        kept: The folder for libraries.
        flags: For every file and for linking, beside :data:`FLAGS`.
        about: What else the library depends on, such as Python's version.
        name: Of its file, before the hash.

    Raises:
        BuildError: The compiler refuses; with its message.
    """
    described = [(unit.name, unit.text, unit.flags) for unit in units]
    path = kept / f"{name or 'policy'}-{key(described, compiler, FLAGS, tuple(flags), about)}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=kept) as aside:
        objects = [_compiled(unit, compiler, flags, Path(aside)) for unit in units]
        made = Path(aside, "made.so")
        _run([*compiler.command, *FLAGS, *flags, "-shared", "-o", str(made), *map(str, objects), "-lm"])
        made.replace(path)
    return path


def _compiled(unit: Unit, compiler: Compiler, flags: Sequence[str], aside: Path) -> Path:
    source, made = aside / f"{unit.name}.c", aside / f"{unit.name}.o"
    source.write_text(unit.text)
    _run([*compiler.command, *FLAGS, *flags, *unit.flags, "-c", str(source), "-o", str(made)])
    return made


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"The compiler failed on a policy: {shlex.join(command)}\n{done.stderr.strip()}\n"
            "Use another compiler by the environment variable CC, or another march=."
        )
