"""How many weights each matrix keeps."""

from __future__ import annotations

import math

import pytest

from prunerl.errors import BudgetError
from prunerl.train.distributions import kept

ARTICLE = {"a": (512, 4), "b": (512, 512), "c": (2, 512)}


def test_erk_prunes_the_middle_of_a_small_network() -> None:
    counts = kept(ARTICLE, 0.95, "erk")
    assert [round(1 - counts[n] / math.prod(s), 3) for n, s in ARTICLE.items()] == [0.0, 0.961, 0.0]


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95])
def test_no_more_than_the_density_is_kept(distribution: str, sparsity: float) -> None:
    total = sum(map(math.prod, ARTICLE.values()))
    number = sum(kept(ARTICLE, sparsity, distribution).values())
    assert total * (1 - sparsity) - 3 <= number <= total * (1 - sparsity) + 1e-6


def test_er_and_erk_are_one_without_kernels_and_differ_with_them() -> None:
    assert kept(ARTICLE, 0.8, "er") == kept(ARTICLE, 0.8, "erk")
    convolutions = {"a": (32, 4, 8, 8), "b": (64, 32, 4, 4), "c": (512, 3136)}
    er, erk = kept(convolutions, 0.95, "er"), kept(convolutions, 0.95, "erk")
    assert er != erk
    # ER: (n_in + n_out)/(n_in·n_out) is .281, .047 and .0023 of the same ε, so the first one is dense.
    assert er["a"] == 8192
    assert er["b"] / 32768 / (er["c"] / (512 * 3136)) == pytest.approx((96 / 2048) / (3648 / (512 * 3136)), rel=1e-3)


def test_sparsity_that_empties_a_matrix_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"'w' would keep 0 of 16 weights at sparsity 0.99 \(erk\)"):
        kept({"w": (4, 4)}, 0.99, "erk")
