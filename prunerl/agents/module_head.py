"""What the output of a module means in an environment's action space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from prunerl import errors
from prunerl.errors import SpaceError
from prunerl.types import Head

Meaning = Literal["logits", "q_values", "mean", "squashed_mean", "bernoulli"]
MEANINGS: dict[str, tuple[type[gym.Space[Any]], ...]] = {
    "logits": (spaces.Discrete, spaces.MultiDiscrete),
    "q_values": (spaces.Discrete, spaces.MultiDiscrete),
    "mean": (spaces.Box,),
    "squashed_mean": (spaces.Box,),
    "bernoulli": (spaces.MultiBinary,),
}


def head_of(meaning: str, space: gym.Space[Any], env: str, std: ArrayLike | None = None) -> Head:
    """Return the head for an action space.

    Args:
        meaning: ``logits`` or ``q_values`` of each choice; the ``mean`` of the action, clipped to the space's bounds;
            ``squashed_mean``, the mean before the tanh whose result is scaled to the bounds; ``bernoulli``, logits.
        space: The action space of the environment.
        env: Name of the environment, for errors.
        std: Standard deviation of each action, for means; 1 by default. Only the loss of distillation uses it.

    Raises:
        NameUnknownError: The meaning is not known.
        SpaceError: It does not fit the space.
    """
    if meaning not in MEANINGS:
        raise errors.unknown("head", str(meaning), MEANINGS)
    if not isinstance(space, MEANINGS[meaning]):
        fitting = [name for name, kinds in MEANINGS.items() if isinstance(space, kinds)]
        mend = f"Use one of {fitting}" if fitting else "Such actions are not supported"
        raise SpaceError(f"Head {meaning!r} does not fit the actions of {env!r}, which are {space}. {mend}.")
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.Discrete):
        return Head("q_values" if meaning == "q_values" else "categorical", sizes=(int(space.n),), shape=shape)
    if isinstance(space, spaces.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        return Head("q_values" if meaning == "q_values" else "categorical", sizes=sizes, shape=shape)
    if isinstance(space, spaces.Box):
        return _gaussian(space, env, squashed=meaning == "squashed_mean", std=std)
    return Head("bernoulli", shape=shape)


def outputs_of(head: Head) -> int:
    """Return how many numbers a head needs for one action."""
    if head.sizes:
        return sum(head.sizes)
    return int(np.prod(head.shape))


def check_output(output: Any, batch: Sequence[int], head: Head, where: str) -> None:
    """Check that ``where`` gave what a head needs for a batch.

    Raises:
        SpaceError: It did not.
    """
    wanted = (*batch, outputs_of(head))
    shape = getattr(output, "shape", None)
    if shape is None:
        raise SpaceError(
            f"{where} gives a {type(output).__name__}, not a tensor. Pick the {head.kind} output in forward=, "
            "such as forward=lambda module, observations: module(observations)[0]."
        )
    if tuple(shape) != wanted:
        raise SpaceError(
            f"{where} gives shape {tuple(shape)} for {batch[0]} observations, but the head needs {wanted}. "
            "Choose in forward= the output that says the action, and the env that the module was trained in."
        )


def _gaussian(space: spaces.Box, env: str, *, squashed: bool, std: ArrayLike | None) -> Head:
    if squashed and not bool(space.is_bounded()):
        raise SpaceError(f"A squashed mean needs bounds, but the actions of {env!r} are {space}. Use head='mean'.")
    shape = tuple(space.shape)
    deviations = None
    if std is not None:
        deviations = np.asarray(std, dtype=np.float64).reshape(-1)
        if deviations.shape != (int(np.prod(shape)),) or not bool((deviations > 0).all()):
            raise SpaceError(f"std must hold {int(np.prod(shape))} positive numbers, got {deviations.tolist()}.")
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return Head("gaussian", low=low, high=high, std=deviations, squashed=squashed, shape=shape)
