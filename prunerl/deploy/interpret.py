"""Run a program in NumPy, for many observations at once: what every other way of running it must compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.functions import F32
from prunerl.deploy.meaning import RULES, Values, step
from prunerl.deploy.program import ALLOWED, OBSERVATION, Constant, Operation, Program, Recurrent, Shape


def run(
    program: Program,
    observations: NDArray[Any],
    memory: Mapping[str, NDArray[Any]] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Compute the actions for a batch of raw observations.

    Args:
        program: What acts.
        observations: Shape (batch, *observation).
        memory: Of each name in ``program.memory`` its value, shape (batch, *value); None at the start of an episode.
        allowed: Which actions may be taken, shape (batch, ``program.allowed``); None for all.

    Returns:
        The actions, shape (batch, *action), as the environment takes them, and the next memory.

    Raises:
        ValueError: The observations or the mask have another shape than the program takes.
    """
    computed = values(program, observations, memory, allowed)
    actions = computed[program.action].reshape(len(observations), *program.action_shape)
    return actions.astype(program.action_dtype), {name: computed[after] for name, after in program.memory.items()}


def values(
    program: Program,
    observations: NDArray[Any],
    memory: Mapping[str, NDArray[Any]] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> Values:
    """Compute every value of a program by name, shape (batch, *value); see :func:`run`."""
    batch = len(observations)
    if observations.shape[1:] != program.observation_shape:
        raise ValueError(
            f"The program takes observations of shape {program.observation_shape}, got {observations.shape[1:]} in a "
            f"batch of {batch}. Give (batch, *observation)."
        )
    computed: Values = {OBSERVATION: observations.astype(F32)}
    if allowed is not None:
        if not program.allowed:
            raise ValueError("A mask of allowed actions is given, but the program takes none. Leave it out.")
        computed[ALLOWED] = np.asarray(allowed, np.bool_).reshape(batch, program.allowed)
    for name in program.memory:
        empty = np.zeros((batch, *program.shapes[name]), F32)
        computed[name] = empty if memory is None else np.asarray(memory[name], F32)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        for operation in program.operations:
            _compute(operation, computed, program.shapes, batch)
    return computed


def _compute(operation: Operation, computed: Values, shapes: Mapping[str, Shape], batch: int) -> None:
    if isinstance(operation, Recurrent):
        computed.update(zip(operation.following, step(operation, computed), strict=True))
        return
    made = RULES[type(operation)](operation, computed)
    shape = (batch, *shapes[operation.result])
    computed[operation.result] = np.broadcast_to(made, shape) if isinstance(operation, Constant) else _as(made, shape)


def _as(made: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Return a value in its shape, in which a product of broadcasting may lack a leading 1."""
    return made.astype(F32, copy=False).reshape(shape)
