"""Read and write the RL Zoo's YAML as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prunerl.agents.inert import reason
from prunerl.errors import LoadError, RunError

MAX_BYTES = 2**18
MAX_VALUES = 100_000
"""How many values a file may hold; a part that is named twice counts twice, as for whoever goes through it."""

_ORDERED = "tag:yaml.org,2002:python/object/apply:collections.OrderedDict"
_TUPLE = "tag:yaml.org,2002:python/tuple"


class _Loader(yaml.SafeLoader):
    """Knows two of Python's objects, which are data."""


class _Dumper(yaml.SafeDumper):
    """Keeps tuples apart from lists."""


def _ordered(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("an ordered dict that is not a list of pairs")
    pairs = loader.construct_sequence(node, deep=True)
    return dict(pairs[0]) if pairs else {}


def _tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("a tuple that is not a list")
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor(_ORDERED, _ordered)
_Loader.add_constructor(_TUPLE, _tuple)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(_TUPLE, value))


def read(path: Path) -> dict[str, Any]:
    """Read a file; one that is not there is empty.

    Raises:
        LoadError: It is damaged, holds Python objects, or is too large.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        _check(node)
        result = loader.construct_document(node)
    except Exception as error:  # a hostile or broken file can raise anything
        first = str(error).splitlines()[0] if isinstance(error, yaml.MarkedYAMLError) else reason(error)
        raise LoadError(f"{path} is not a Zoo configuration ({first[:200]}). Mend or remove it.") from error
    return {key: value for key, value in result.items() if isinstance(key, str)} if isinstance(result, dict) else {}


def dump(values: Mapping[str, Any]) -> str:
    """Return the text of a file.

    Raises:
        RunError: A value is not plain.
    """
    try:
        return yaml.dump(dict(sorted(values.items())), Dumper=_Dumper)
    except yaml.YAMLError as error:
        raise RunError(
            f"A setting cannot be written as YAML ({str(error).splitlines()[0]}). Use plain numbers, texts and lists."
        ) from error


def _check(node: yaml.Node) -> None:
    left, waiting = MAX_VALUES, [node]
    while waiting:
        part = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        if isinstance(part, yaml.SequenceNode):
            waiting += part.value
        elif isinstance(part, yaml.MappingNode):
            waiting += [half for pair in part.value for half in pair]
