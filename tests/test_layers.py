"""The architecture's layers: a file imports only from its own layer or from those before it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prunerl"

LAYERS: Mapping[str, int] = {
    **dict.fromkeys(("types", "errors"), 1),
    **dict.fromkeys(("labels", "operators", "graph", "analysis", "trace", "criteria", "decide"), 2),
    **dict.fromkeys(("schedules", "stats", "cost", "heads", "environments", "files"), 2),
    **dict.fromkeys(
        ("evidence", "remove", "masks", "rollout", "visits", "learner", "evaluate", "repair", "journal", "load"), 3
    ),
    "promises": 3,
    "deploy": 3,
    "train": 3,
    "compressions": 3,
    "compress": 4,
    **dict.fromkeys(("task", "students", "attempt", "search", "baselines", "loop", "report", "check"), 4),
    **dict.fromkeys(("progress", "commands", "cli"), 5),
}
"""The first part of a module's name below the package → its layer."""

BRIDGES = "agents"
BRIDGES_MAY_IMPORT = {name for name, layer in LAYERS.items() if layer <= 2} | {"masks", BRIDGES}
"""A bridge knows nothing of pruning but ``masks``: they must be held within the library's own training, after each
update, and only the bridge is there when that happens."""


def module_of(path: Path) -> str:
    """Return the module's name below the package, empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
STAGES = [name for name in FILES if name.split(".")[0] not in ("", "__main__", BRIDGES)]


def imports(path: Path) -> set[str]:
    """Return the package's modules that a file imports, those within functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module is not None and node.module.split(".")[0] == "prunerl":
                base = node.module.removeprefix("prunerl").removeprefix(".")
                inner = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
                found |= {name if name in FILES else base for name in inner}
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("prunerl").removeprefix(".")
                for a in node.names
                if a.name.split(".")[0] == "prunerl"
            }
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_only_from_its_own_layer_or_those_before(name: str) -> None:
    assert name.split(".", maxsplit=1)[0] in LAYERS, f"{name} has no layer; give it one, here and in the docs"
    own = LAYERS[name.split(".", maxsplit=1)[0]]
    others = {other.split(".")[0] for other in imports(FILES[name])} - {BRIDGES}
    assert {other for other in others if LAYERS.get(other, 9) > own} == set()


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] == BRIDGES])
def test_a_bridge_imports_only_nouns_pure_functions_and_masks(name: str) -> None:
    assert {other.split(".")[0] for other in imports(FILES[name])} <= BRIDGES_MAY_IMPORT


def test_only_load_imports_bridges() -> None:
    importers = {name for name in STAGES if any(other.split(".")[0] == BRIDGES for other in imports(FILES[name]))}
    assert importers == {"load"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imports(path) - {name, ""} for name, path in FILES.items() if name}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)
