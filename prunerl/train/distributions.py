"""How many weights each matrix keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from prunerl import decide, errors
from prunerl.errors import BudgetError
from prunerl.types import Masks

Distribution = Literal["uniform", "er", "erk", "global"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


def kept(shapes: Mapping[str, tuple[int, ...]], sparsity: float, distribution: str) -> dict[str, int]:
    """Return how many weights each matrix keeps, at most ``1 − sparsity`` of all in sum.

    ``uniform`` takes the same share of each, ``erk`` goes by :func:`prunerl.decide.erk`, ``er`` the same without the
    sizes of convolutions' kernels. ``global`` has no shares of its own: only the sum of what it returns counts.

    Args:
        shapes: Matrix → shape.
        sparsity: Share that is removed of all of them together, in [0, 1).
        distribution: One of ``DISTRIBUTIONS``.

    Raises:
        BudgetError: A matrix would keep nothing.

    >>> kept({"a": (8, 2), "b": (8, 8), "c": (2, 8)}, 0.5, "erk")
    {'a': 13, 'b': 21, 'c': 13}
    >>> kept({"a": (8, 2), "b": (8, 8), "c": (2, 8)}, 0.5, "uniform")
    {'a': 8, 'b': 32, 'c': 8}
    """
    if not 0.0 <= sparsity < 1.0:
        raise BudgetError(f"Sparsity is {sparsity}. Set it to at least 0 and less than 1.")
    if distribution not in DISTRIBUTIONS:
        raise errors.unknown("distribution", distribution, DISTRIBUTIONS)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if distribution == "erk":
        densities = decide.erk(list(shapes.values()), 1.0 - sparsity)
    elif distribution == "er":
        densities = _er(list(shapes.values()), 1.0 - sparsity)
    else:
        densities = (1.0 - sparsity,) * len(sizes)
    # The small amount keeps 0.05 · 1000 = 50.000000000000004 at 50, and 49.999999999999993 too.
    counts = {name: math.floor(d * sizes[name] + 1e-9) for name, d in zip(sizes, densities, strict=True)}
    for name, count in counts.items():
        if count < 1 and distribution != "global":
            raise BudgetError(
                f"Matrix {name!r} would keep 0 of {sizes[name]} weights at sparsity {sparsity:g} ({distribution}). "
                "Lower the sparsity or choose another distribution."
            )
    return counts


def best(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Keep the highest scores of each matrix; of equal ones the first.

    >>> best({"a": torch.tensor([[0.1, 0.9], [0.5, 0.9]])}, {"a": 2})
    {'a': tensor([[False,  True],
            [False,  True]])}
    """
    return {name: _top(scores[name].flatten(), count).view_as(scores[name]) for name, count in counts.items()}


def best_of_all(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Keep the highest scores of all matrices together.

    Raises:
        BudgetError: A matrix would keep nothing.
    """
    flat = _top(torch.cat([score.flatten() for score in scores.values()]), count)
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    found = {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}
    check(found)
    return found


def drawn(scores: Mapping[str, Tensor], present: Masks, share: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Let each kept weight go with a probability that falls with its score, a share of all weights on average.

    Args:
        scores: High = keep.
        present: What is kept so far; what is masked stays masked.
        share: Share of all weights, those that are masked included, that is kept afterwards on average.
        generator: Draws what goes.

    Raises:
        BudgetError: A matrix would keep nothing.

    Reference: :func:`prunerl.decide.by_probability`.
    """
    left = {name: scores[name][present[name]] for name in scores}
    total, number = sum(s.numel() for s in scores.values()), sum(len(s) for s in left.values())
    decision = decide.by_probability(left, max(1.0 - share * total / number, 0.0), generator=generator)
    found = {}
    for name, mask in present.items():
        found[name] = mask.clone()
        found[name][mask] = decision[name]
    check(found)
    return found


def at_random(shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, int], seed: torch.Generator) -> Masks:
    """Keep weights drawn at random, so many of each matrix."""
    return best({name: torch.rand(shapes[name], generator=seed) for name in counts}, counts)


def check(masks: Masks) -> None:
    """Refuse masks that empty a matrix.

    Raises:
        BudgetError: One does.
    """
    for name, mask in masks.items():
        if not mask.any():
            raise BudgetError(
                f"Matrix {name!r} would keep 0 of {mask.numel()} weights. Lower the sparsity, or choose the "
                "distribution 'erk', which keeps small matrices dense."
            )


def _top(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.argsort(descending=True, stable=True)[:count]] = True
    return mask


def _er(shapes: Sequence[tuple[int, ...]], density: float) -> tuple[float, ...]:
    """Return ``min(1, ε · (n_in + n_out) / (n_in · n_out))``; what would exceed 1 is dense, the rest share anew."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape[:2]) / math.prod(shape[:2]) for shape in shapes]
    full: set[int] = set()
    while len(full) < len(shapes):
        rest = [i for i in range(len(shapes)) if i not in full]
        left = density * sum(sizes) - sum(sizes[i] for i in full)
        epsilon = left / sum(sizes[i] * raw[i] for i in rest)
        over = {i for i in rest if epsilon * raw[i] > 1.0}
        if not over:
            return tuple(1.0 if i in full else epsilon * raw[i] for i in range(len(shapes)))
        full |= over
    return (1.0,) * len(shapes)
