"""Turn a report into JSON and back, exactly. ``docs/report.md`` describes every key."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from prunerl.errors import RunError
from prunerl.types import Report, Size

SCHEMA = 1

_MEND = "Give the report.json of a run of this package, or repeat the run."


def to_json(report: Report) -> str:
    """Return the report as JSON text; floats keep every bit.

    A ``Size`` is flattened into the row or round that holds it. Tuples become arrays; those inside of ``settings``
    and keyword arguments, whose types are free, come back as lists.

    Raises:
        RunError: A number is NaN or infinite, or a value has no counterpart in JSON.
    """
    body = {"schema": SCHEMA, **plain(report, "")}
    body["verdict"] = body["pruned"]["verdict"]
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    # Hundreds of returns with a line each hide the rest. A line break is never part of a JSON string, so this is safe.
    return re.sub(r'\[\n[^\[\]{}"]*\n *\]', lambda match: re.sub(r"\n *", "", match[0]).replace(",", ", "), text) + "\n"


def from_json(text: str) -> Report:
    """Return the report that ``to_json`` wrote; keys that are not known are passed over.

    Raises:
        RunError: The text is not JSON, is not a report, is of another schema, or contradicts itself.
    """
    try:
        body = json.loads(text, parse_constant=_constant, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise RunError(f"The report is not valid JSON: {error}. {_MEND}") from error
    if not isinstance(body, dict) or "schema" not in body:
        raise RunError(f"This JSON is not a report: it has no key 'schema'. {_MEND}")
    if body["schema"] != SCHEMA:
        raise RunError(
            f"The report has schema {body['schema']!r}, this version of the package reads {SCHEMA}. "
            "Read it with the version that wrote it, which it names under 'versions'."
        )
    report: Report = read(Report, body, "")
    if body.get("verdict") != body["pruned"]["verdict"]:
        raise RunError(f"The report contradicts itself: 'verdict' is not 'pruned.verdict'. {_MEND}")
    return report


def plain(value: Any, where: str = "") -> Any:
    """Return a record (or what it holds) as JSON types; ``where`` names it in errors."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"{where!r} is {value}, but a report holds finite numbers only. Mend what measured it.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): plain(item, _join(where, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_record(value, where)
    raise RunError(
        f"{where!r} is a {type(value).__name__}, which JSON cannot hold. "
        "Use numbers, text, booleans, None, lists, and dictionaries of them."
    )


def _plain_record(record: Any, where: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Size):
            body.update(_plain_record(value, where))
        else:
            body[field.name] = plain(value, _join(where, field.name))
    return body


def _key(key: object, where: str) -> str:
    # json.dumps would turn 1 into "1" in silence, and it would come back as another key.
    if not isinstance(key, str):
        raise RunError(f"{where!r} has the key {key!r}, but JSON allows text only. Use a string.")
    return key


def read(hint: Any, value: Any, where: str = "") -> Any:
    """Return the value of type ``hint`` that :func:`plain` turned into JSON types."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _read_record(hint, value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is Mapping:
        _expect(isinstance(value, dict), "an object", value, where)
        return {key: read(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if origin is Literal:
        _expect(value in arguments, f"one of {', '.join(arguments)}", value, where)
        return value
    return value if hint is Any else _read_scalar(hint, value, where)


def _read_record(record: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    found = {}
    for name, hint in _hints(record).items():
        if hint is Size:
            found[name] = _read_record(Size, value, where)
            continue
        if name not in value:
            raise RunError(f"The report has no key {_join(where, name)!r}. {_MEND}")
        found[name] = read(hint, value[name], _join(where, name))
    return record(**found)


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), "an array", value, where)
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    _expect(len(value) == len(hints), f"an array of {len(hints)}", value, where)
    return tuple(read(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _read_scalar(hint: type, value: Any, where: str) -> Any:
    # To Python a bool is an int, and 1 written for 1.0 is a float all the same.
    kinds = (int, float) if hint is float else (hint,)
    _expect(isinstance(value, kinds) and isinstance(value, bool) == (hint is bool), hint.__name__, value, where)
    return float(value) if hint is float else value


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _expect(holds: bool, wanted: str, got: Any, where: str) -> None:
    if not holds:
        raise RunError(f"Key {where!r} of the report must be {wanted}, got {repr(got)[:60]}. {_MEND}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return value
