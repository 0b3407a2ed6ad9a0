"""Agents and architectures that other tests build, found from here too."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(folder) for folder in (TESTS, TESTS / "agents") if str(folder) not in sys.path]
