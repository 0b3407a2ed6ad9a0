"""Statistics of returns: normalisation, robust means, intervals and the verdict. SciPy does the work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from prunerl.errors import BudgetError
from prunerl.types import Verdict

CONFIDENCE = 0.95
RESAMPLES = 4999


def iqm(values: Sequence[float]) -> float:
    """Return the interquartile mean (Agarwal 2021).

    >>> iqm([0.0, 1.0, 2.0, 100.0])
    1.5
    """
    return float(stats.trim_mean(np.asarray(values), 0.25))


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron 1979).

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    data = np.asarray(values, dtype=float)
    if len(data) < 2 or np.ptp(data) == 0.0:
        return float(data.mean()), float(data.mean())
    found = stats.bootstrap(
        (data,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="percentile", rng=seed, batch=500
    ).confidence_interval
    return float(found.low), float(found.high)


def verdict(
    dense: Sequence[float], pruned: Sequence[float], random: float, *, tolerance: float, first_seed: int
) -> Verdict:
    """Judge whether the pruned agent is not worse than the dense one.

    Returns are normalised: 0 is the random policy's mean, 1 the dense agent's mean on these seeds. The pruned agent
    passes when the lower end of the interval of the mean paired difference is above ``-tolerance``
    (non-inferiority).

    Args:
        dense, pruned: Return of each episode, paired by seed.
        random: Mean return of the random policy.
        tolerance: Largest normalised loss that is still satisfactory.
        first_seed: Seed of the first episode; the others follow it.

    Raises:
        BudgetError: The tolerance is not positive, or the dense agent is not better than random.
    """
    check_tolerance(tolerance)
    d, p = np.asarray(dense, dtype=float), np.asarray(pruned, dtype=float)
    scale = gain(dense, random)
    low, high = interval(((p - d) / scale).tolist())
    return Verdict(
        dense=tuple(d.tolist()),
        pruned=tuple(p.tolist()),
        seeds=(first_seed, len(d)),
        random=random,
        normalized=float((p.mean() - random) / scale),
        iqm=(iqm(p.tolist()) - random) / scale,
        interval=(low, high),
        confidence=CONFIDENCE,
        tolerance=tolerance,
        satisfied=low > -tolerance,
    )


def gain(dense: Sequence[float], random: float) -> float:
    """Return what the dense agent's mean return is above the random policy's: 1 on the normalised scale.

    Raises:
        BudgetError: It is not above.
    """
    mean = float(np.mean(dense))
    if not mean > random:
        raise BudgetError(
            f"The dense agent's mean return {mean:.4g} is not above the random policy's {random:.4g}, so no loss "
            "can be measured. Check that the environment is the one it was trained in, with its statistics."
        )
    return mean - random


def check_tolerance(tolerance: float) -> None:
    """Raise BudgetError unless the tolerance is a positive number."""
    if not (0.0 < tolerance < float("inf")):
        raise BudgetError(
            f"tolerance must be above 0, got {tolerance}. 0.05 allows a loss of 5 % of the dense agent's gain."
        )
