"""The verdict is what the definition says, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prunerl import stats
from prunerl.errors import BudgetError


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert stats.iqm([0.0, 1.0, 2.0, 100.0]) == 1.5
    assert stats.iqm([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]) == 4.5
    assert stats.iqm([3.0]) == 3.0


def test_the_interval_of_constants_is_the_constant() -> None:
    assert stats.interval([2.0] * 30) == (2.0, 2.0)
    assert stats.interval([2.0]) == (2.0, 2.0)


def test_the_interval_of_a_spread() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400).tolist()
    low, high = stats.interval(values)
    error = 1.96 * np.std(values) / np.sqrt(400)
    assert (low, high) == pytest.approx((np.mean(values) - error, np.mean(values) + error), abs=0.2 * error)
    assert stats.interval(values) == (low, high)
    wide = stats.interval(values, confidence=0.99)
    assert wide[0] < low < high < wide[1]


def test_a_verdict_worked_out() -> None:
    dense, pruned = [100.0] * 10, [90.0] * 10
    found = stats.verdict(dense, pruned, 50.0, tolerance=0.25, first_seed=7)
    assert found.normalized == pytest.approx(0.8)  # (90 − 50) / (100 − 50)
    assert found.iqm == pytest.approx(0.8)
    assert found.interval == pytest.approx((-0.2, -0.2))
    assert found.seeds == (7, 10)
    assert found.satisfied
    assert not stats.verdict(dense, pruned, 50.0, tolerance=0.19, first_seed=7).satisfied


def test_negative_returns_are_normalised_the_same_way() -> None:
    found = stats.verdict([-100.0] * 4, [-150.0] * 4, -1100.0, tolerance=0.06, first_seed=0)
    assert found.normalized == pytest.approx(0.95)
    assert found.interval == pytest.approx((-0.05, -0.05))
    assert found.satisfied


def test_a_loss_of_exactly_the_tolerance_does_not_pass() -> None:
    assert not stats.verdict([1.0] * 4, [0.5] * 4, 0.0, tolerance=0.5, first_seed=0).satisfied


def test_differences_are_paired_by_seed() -> None:
    dense = list(range(100, 200))
    better = stats.verdict(dense, [d + 1.0 for d in dense], 0.0, tolerance=0.01, first_seed=0)
    assert better.satisfied  # though the spread of returns is far wider than the difference
    assert better.interval == pytest.approx((1 / 149.5, 1 / 149.5))


def test_few_noisy_episodes_do_not_pass() -> None:
    noise = np.random.default_rng(0).normal(0.0, 50.0, size=10)
    assert not stats.verdict([100.0] * 10, (100.0 + noise).tolist(), 0.0, tolerance=0.05, first_seed=0).satisfied


@pytest.mark.parametrize("tolerance", [0.0, -0.1, float("nan"), float("inf")])
def test_a_tolerance_that_allows_nothing_is_refused(tolerance: float) -> None:
    with pytest.raises(BudgetError, match=r"tolerance must be above 0, got .*0\.05 allows"):
        stats.verdict([1.0], [1.0], 0.0, tolerance=tolerance, first_seed=0)


@pytest.mark.parametrize("random", [10.0, 11.0, float("nan")])
def test_a_dense_agent_no_better_than_random_is_refused(random: float) -> None:
    with pytest.raises(
        BudgetError, match=r"mean return 10 is not above the random policy's.*Check that the environment"
    ):
        stats.verdict([10.0] * 5, [10.0] * 5, random, tolerance=0.05, first_seed=0)
