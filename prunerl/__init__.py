"""Make deep reinforcement-learning agents small and fast, with proof that they still work."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunerl.agents.module import from_module as from_module
    from prunerl.check import check_agent as check_agent
    from prunerl.compress import compress as compress
    from prunerl.deploy.export import export as export
    from prunerl.deploy.native import compile as compile
    from prunerl.evaluate import compare as compare
    from prunerl.evaluate import evaluate as evaluate
    from prunerl.load import load as load
    from prunerl.load import save_zoo_folder as save_zoo_folder
    from prunerl.loop import Result as Result
    from prunerl.loop import prune as prune
    from prunerl.types import VERSION as VERSION
    from prunerl.types import Agent as Agent
    from prunerl.types import EnvSpec as EnvSpec

    __version__: str

_HOMES = {
    "VERSION": "types",
    "Agent": "types",
    "EnvSpec": "types",
    "Result": "loop",
    "check_agent": "check",
    "compare": "evaluate",
    "compile": "deploy.native",
    "compress": "compress",
    "evaluate": "evaluate",
    "export": "deploy.export",
    "from_module": "agents.module",
    "load": "load",
    "prune": "loop",
    "save_zoo_folder": "load",
}
"""Name → the module below the package that it comes from, which is imported when the name is first asked for."""

__all__ = [
    "VERSION",
    "Agent",
    "EnvSpec",
    "Result",
    "check_agent",
    "compare",
    "compile",
    "compress",
    "evaluate",
    "export",
    "from_module",
    "load",
    "prune",
    "save_zoo_folder",
]


def __getattr__(name: str) -> Any:
    known = "VERSION" if name == "__version__" else name
    if known not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[known]}"), known)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing prunerl.load sets the package's attribute "load" to that module, where the function is meant.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
