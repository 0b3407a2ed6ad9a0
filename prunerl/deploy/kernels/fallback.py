"""Policies that are called from Python: a library through ctypes, or the interpreter, where there is nothing better."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.kernels.forward import CHUNK, Forward
from prunerl.deploy.program import Program
from prunerl.errors import SpaceError


class _Called:
    """What both have in common: an observation is checked, and a batch is told from a single one.

    Attributes:
        kernels: Layer → its kernel and what it takes.
        source: The C, empty where there is none.
        native: Whether it is compiled.
    """

    native = False

    def __init__(self, program: Program, text: str, kernels: Mapping[str, str], source: str) -> None:
        self.program, self.kernels, self.source, self._text = program, kernels, source, text
        self._rows = 0

    def __str__(self) -> str:
        return self._text

    def __call__(self, obs: Any, *, allowed: Any = None) -> Any:
        """Return the action for an observation, or the actions for a batch."""
        program = self.program
        given = np.asarray(obs)
        if given.dtype.kind not in "biuf":
            raise SpaceError(
                f"The observation is of type {given.dtype}, but the policy takes numbers. Give it as the environment "
                "does."
            )
        single = given.shape == program.observation_shape
        batch = given[None] if single else given
        if batch.shape[1:] != program.observation_shape or batch.ndim != len(program.observation_shape) + 1:
            raise SpaceError(
                f"The observation has shape {given.shape}, but the policy takes {program.observation_shape}, or a "
                "batch of such with one dimension more in front. Give it as the environment does."
            )
        if given.dtype.kind == "f" and np.isnan(given).any():
            raise SpaceError(
                "The observation has an entry that is not a number (NaN). Mend the environment, or replace it before "
                "the policy is asked."
            )
        actions = self._decide(batch, self._mask(allowed, len(batch)))
        if not single:
            return actions
        return int(actions[0]) if program.action_dtype == "int64" and not program.action_shape else actions[0]

    def reset(self) -> None:
        """Forget what was seen: call it at the start of an episode."""
        self._rows = 0

    def _mask(self, allowed: Any, rows: int) -> NDArray[np.bool_] | None:
        count = self.program.allowed
        if allowed is None:
            return np.ones((rows, count), np.bool_) if count else None
        if not count:
            raise SpaceError("A mask of allowed actions is given, but the policy takes none. Leave it out.")
        mask = np.asarray(allowed, np.bool_)
        if mask.size != rows * count:
            raise SpaceError(
                f"The mask of allowed actions has {mask.size} entries, but the policy takes {count} for an "
                f"observation, and there are {rows}. Give it as the environment does."
            )
        return mask.reshape(rows, count)

    def _remember(self, rows: int) -> bool:
        """Return whether an episode begins, and refuse another number of observations in its course."""
        if self._rows not in (0, rows):
            raise SpaceError(
                f"The policy remembers {self._rows} observations at a time, got {rows}. Call reset() before an episode "
                "with another batch begins."
            )
        begins, self._rows = self._rows == 0, rows if self.program.memory else 0
        return begins

    def _decide(self, batch: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
        raise NotImplementedError


class Interpreted(_Called):
    """A policy that the interpreter runs."""

    _memory: Mapping[str, NDArray[Any]] | None = None

    def _decide(self, batch: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
        from prunerl.deploy.interpret import run

        memory = None if self._remember(len(batch)) else self._memory
        actions, self._memory = run(self.program, batch, memory, mask)
        return actions


class Linked(_Called):
    """A policy that a library runs, called through ctypes."""

    native = True

    def __init__(
        self, program: Program, text: str, kernels: Mapping[str, str], made: Forward, library: Path, level: str
    ) -> None:
        super().__init__(program, text, kernels, made.source)
        self._weights = _aligned(np.frombuffer(made.weights, np.uint8))
        self._scratch = _aligned(np.zeros(made.floats * 4, np.uint8))
        self._memory, self._floats = _aligned(np.zeros(0, np.uint8)), made.memory
        self._many = getattr(ctypes.CDLL(str(library)), f"policy_many_{level}")
        self._many.argtypes = [*[ctypes.c_void_p] * 6, ctypes.c_long]

    def _decide(self, batch: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
        rows, program = len(batch), self.program
        if self._remember(rows):
            self._memory = _aligned(np.zeros(rows * self._floats * 4, np.uint8))
        x = np.ascontiguousarray(batch, np.float32).reshape(rows, -1)
        made = np.empty((rows, math.prod(program.shapes[program.action])), np.float32)
        for i in range(0, rows, CHUNK):
            self._many(
                self._weights.ctypes.data,
                self._scratch.ctypes.data,
                self._memory.ctypes.data + 4 * i * self._floats,
                x[i:].ctypes.data,
                None if mask is None else mask[i:].ctypes.data,
                made[i:].ctypes.data,
                min(CHUNK, rows - i),
            )
        return made.reshape(rows, *program.action_shape).astype(program.action_dtype)


def _aligned(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy bytes to where they begin at a multiple of 64."""
    room = np.zeros(len(values) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(values)] = values
    return room[start : start + len(values)]
