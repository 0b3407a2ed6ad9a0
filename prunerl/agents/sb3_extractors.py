"""A features extractor with other widths than its class gives it, which a Stable-Baselines3 zip cannot say otherwise.

This file and ``resize`` import nothing else of this package: they are pickled by value into a zip, so that plain
Stable-Baselines3 loads it where this package is not installed, with the same minor version of Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)

from prunerl.agents.resize import resize

STANDARD: Mapping[str, type[BaseFeaturesExtractor]] = {
    "FlattenExtractor": FlattenExtractor,
    "NatureCNN": NatureCNN,
    "CombinedExtractor": CombinedExtractor,
}


class Narrowed(BaseFeaturesExtractor):
    """Make an extractor of another class and resize it; what is made is of that class, under its parameter names.

    Args:
        observation_space: The model's.
        features_dim: Number of features that come out.
        base: The extractor's class, or the name of one of Stable-Baselines3's own.
        base_kwargs: Its keyword arguments.
        shapes: Name of each parameter and buffer → its shape.
    """

    def __new__(
        cls,
        observation_space: gym.Space[Any],
        features_dim: int,
        base: str | type[BaseFeaturesExtractor],
        base_kwargs: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
    ) -> Any:
        """Return an extractor of class ``base``."""
        made: Any = (STANDARD[base] if isinstance(base, str) else base)(observation_space, **base_kwargs)
        resize(made, {name: tuple(shape) for name, shape in shapes.items()})
        for part in made.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:  # the tensors of a resized layer are empty
                reset()
        made._features_dim = features_dim
        return made
