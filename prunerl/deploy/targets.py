"""Devices that a policy is deployed on: what each allows, read from a small TOML file."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from prunerl.errors import TargetError, unknown

FORMATS = ("f32", "int8", "int4")
"""Numbers that weights are stored as."""

EXPORTS = ("c", "h", "onnx", "pt2", "tflite", "safetensors")
"""Suffixes of exported files."""

BUILT_IN = Path(__file__).parent / "profiles"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a device allows one policy.

    Attributes:
        name: The file's name without its suffix.
        summary: The device in a sentence.
        formats: What weights may be stored as, of :data:`FORMATS`.
        exports: What files it takes, of :data:`EXPORTS`.
        fpu: Whether it computes with float32 in hardware.
        flash: Bytes for weights and code.
        ram: Bytes that one decision needs beside them: intermediate values and memory.
        latency: Of one decision, in microseconds.
        instructions: Of one decision.
        clock: In MHz.
        cycles: Of one instruction, on average.
        lanes: Numbers of 32 bits that one instruction computes with; 1 without vectors.
        sources: Key → where its number is from, or that it is an assumption.
        notes: What else is to be known.
    """

    name: str
    summary: str
    formats: tuple[str, ...]
    exports: tuple[str, ...]
    fpu: bool
    flash: int | None = None
    ram: int | None = None
    latency: float | None = None
    instructions: int | None = None
    clock: float | None = None
    cycles: float = 1.0
    lanes: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


INTEGERS = ("flash", "ram", "instructions", "lanes")
NUMBERS = (*INTEGERS, "latency", "clock", "cycles")
KEYS = tuple(f.name for f in fields(Target) if f.name != "name")
NEEDED = tuple(f.name for f in fields(Target) if f.name in KEYS and f.default is f.default_factory is MISSING)


def load_target(name: str | Path) -> Target:
    """Read a device's profile.

    Args:
        name: Of a profile in one of the :func:`folders`, or the path of a TOML file.

    Raises:
        NameUnknownError: There is no profile of that name.
        TargetError: The file cannot be read, or says something that a profile cannot say.

    >>> load_target("cortex-m4").fpu
    True
    """
    text = str(name)
    if text.endswith(".toml") or len(Path(text).parts) > 1:
        return read(Path(text))
    known = names()
    if text not in known:
        raise unknown("target", text, known)
    return read(known[text])


def names() -> dict[str, Path]:
    """Return the known profiles by name, in order; of equal names that of the first folder."""
    found = {path.stem: path for folder in reversed(list(folders())) for path in folder.glob("*.toml")}
    return dict(sorted(found.items()))


def folders() -> Iterator[Path]:
    """Yield the folders that profiles are looked for in, first those of the user.

    ``$PRUNERL_TARGETS``, ``$XDG_CONFIG_HOME/prunerl/targets`` (by default in ``~/.config``), and those built in.
    """
    if os.environ.get("PRUNERL_TARGETS"):
        yield Path(os.environ["PRUNERL_TARGETS"])
    yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "prunerl" / "targets"
    yield BUILT_IN


def read(path: Path) -> Target:
    """Read a profile from a TOML file.

    Raises:
        TargetError: It cannot be read, or a key or value is wrong.
    """
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"The profile {path} cannot be read ({error}). Give a TOML file or a known name.") from error
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"The profile {path} is not valid TOML: {error}. Mend it there.") from error
    for key in body:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise TargetError(f"The profile {path} has an unknown key {key!r}. {hint}Keys are: {', '.join(KEYS)}.")
    missing = [key for key in NEEDED if key not in body]
    if missing:
        raise TargetError(f"The profile {path} lacks {', '.join(map(repr, missing))}. Add it.")
    target = Target(name=path.stem, **{key: _value(path, key, value) for key, value in body.items()})
    strangers = sorted(key for key in target.sources if key not in NUMBERS or key not in body)
    if strangers:
        raise TargetError(f"The profile {path} has a source for {strangers[0]!r}, but no such number. Leave it out.")
    if target.latency is not None and target.clock is None:
        raise TargetError(f"The profile {path} limits latency, which is not known without a clock. Add 'clock' (MHz).")
    return target


def _value(path: Path, key: str, value: Any) -> Any:
    """Return the value of a key as its field has it."""
    if key in NUMBERS:
        return _number(path, key, value)
    if key in ("formats", "exports", "notes"):
        return _texts(path, key, value)
    if key == "sources":
        if not isinstance(value, dict) or not all(isinstance(text, str) and text.strip() for text in value.values()):
            raise _wrong(path, key, "a table of texts", value)
        return value
    kind, wanted = (bool, "true or false") if key == "fpu" else (str, "a text")
    if not isinstance(value, kind):
        raise _wrong(path, key, wanted, value)
    return value


def _number(path: Path, key: str, value: Any) -> int | float:
    whole = key in INTEGERS
    wanted = f"a {'whole ' if whole else ''}number above 0"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise _wrong(path, key, wanted, value)
    if not (math.isfinite(value) and value > 0):
        raise _wrong(path, key, wanted, value)
    return int(value) if whole else float(value)


def _texts(path: Path, key: str, value: Any) -> tuple[str, ...]:
    choices = {"formats": FORMATS, "exports": EXPORTS}.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong(path, key, "a list of texts", value)
    if choices is not None and (not value or not set(value) <= set(choices)):
        raise _wrong(path, key, f"a list of one or more of {', '.join(choices)}", value)
    return tuple(value)


def _wrong(path: Path, key: str, wanted: str, got: Any) -> TargetError:
    return TargetError(f"The profile {path}: {key!r} must be {wanted}, got {got!r}. Mend it there.")
