"""Make deep reinforcement-learning agents small and fast, with proof that they still work."""

from __future__ import annotations

from prunerl.agents.module import from_module as from_module
from prunerl.check import check_agent as check_agent
from prunerl.evaluate import compare as compare
from prunerl.evaluate import evaluate as evaluate
from prunerl.load import load as load
from prunerl.load import save_zoo_folder as save_zoo_folder
from prunerl.loop import Result as Result
from prunerl.loop import prune as prune
from prunerl.types import VERSION as VERSION
from prunerl.types import Agent as Agent
from prunerl.types import EnvSpec as EnvSpec

__all__ = [
    "VERSION",
    "Agent",
    "EnvSpec",
    "Result",
    "check_agent",
    "compare",
    "evaluate",
    "from_module",
    "load",
    "prune",
    "save_zoo_folder",
]

__version__ = VERSION
