"""The values of a graph on its way to a program.

The graph is of a batch of one. A program's shapes have no batch, so a value has its graph's shape without the leading
dimension where that is 1: in a broadcast and in memory the two are the same. Rules think in the graph's dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from prunerl.deploy.program import Shape


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that does not depend on the observation.

    Attributes:
        tensor: Its value.
        roots: Parameters that it is computed from.
        parameter: The parameter that it is, if it is one as it is stored.
        flipped: It is that parameter with its two dimensions exchanged.
    """

    tensor: Tensor
    roots: frozenset[str] = frozenset()
    parameter: str | None = None
    flipped: bool = False


@dataclass(frozen=True, eq=False)
class Made:
    """A value of the program.

    Attributes:
        name: In the program.
        shape: In the graph, with its batch.
        numbers: ``whole`` where all are integers. ``cut`` where the graph has them as integers, but the program has not
            cut off their fractions: only what picks by them does that.
    """

    name: str
    shape: Shape
    numbers: Literal["real", "whole", "cut"] = "real"


@dataclass(frozen=True, eq=False)
class Stacked:
    """Values of equal shape one after another along a new first dimension, such as a memory's layers."""

    parts: tuple[Made, ...]


Value = Any
"""A Known, Made or Stacked; a number, None or a list of these, as an operator takes them."""
Rule = Callable[..., Value]


def stripped(shape: Sequence[int]) -> Shape:
    """Return the shape in the program of a value of this shape in the graph."""
    return tuple(shape[1:] if len(shape) and shape[0] == 1 else shape)
