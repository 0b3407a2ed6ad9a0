"""What is imported when: nothing heavy before it is needed, and every public name when it is."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import prunerl

HEAVY = {"torch", "stable_baselines3", "scipy", "gymnasium", "matplotlib"}


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that are loaded after some code ran in a fresh interpreter."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["prunerl", "prunerl.errors", "prunerl.types", "prunerl.cli", "prunerl.commands.prune", "prunerl.deploy"]
)
def test_importing_does_not_import_what_is_heavy(module: str) -> None:
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_help_needs_neither_the_heavy_nor_the_parser_of_options() -> None:
    code = "from prunerl.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) & (HEAVY | {"tyro", "numpy", "rich"}) == set()


def test_help_of_a_command_does_not_import_what_is_heavy() -> None:
    code = "from prunerl.cli import main\ntry:\n    main(['prune', '--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) & HEAVY == set()


@pytest.mark.parametrize("name", prunerl.__all__)
def test_a_public_name_is_what_its_module_says(name: str) -> None:
    home = importlib.import_module(f"prunerl.{prunerl._HOMES[name]}")
    assert getattr(prunerl, name) is getattr(home, name)
    assert name in dir(prunerl)


def test_the_functions_win_over_modules_of_the_same_name() -> None:
    importlib.import_module("prunerl.load")
    importlib.import_module("prunerl.evaluate")
    assert callable(prunerl.load)
    assert callable(prunerl.evaluate)
    assert loaded_by("import prunerl.load, prunerl\nassert callable(prunerl.load)")


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(prunerl.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {
        alias.asname: (node.module.removeprefix("prunerl."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    assert seen == {name: (home, name) for name, home in prunerl._HOMES.items()}
    assert sorted(seen) == sorted(prunerl.__all__)


def test_the_version_is_there_and_other_names_are_not() -> None:
    assert prunerl.__version__ == prunerl.VERSION
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prunerl.nothing  # type: ignore[attr-defined]  # noqa: B018
