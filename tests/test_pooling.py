"""Pooled rates: what groups of dependent trials are worth together, by reference formulas."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from hallmark.pooling import effective_trials, exceeds, pooled
from hallmark.stats import Proportion, clopper_pearson, clustered


def test_groups_of_independent_trials_pool_to_their_clopper_pearson_interval() -> None:
    for parts in ([(3, 200), (9, 1000)], [(0, 50), (4, 60), (1, 10)], [(0, 30), (0, 70)], [(8, 8), (3, 3)]):
        found, exact = pooled([clopper_pearson(*part) for part in parts]), clopper_pearson(*np.sum(parts, 0).tolist())
        assert (found.count, found.n) == (exact.count, exact.n)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-6)


def test_effective_trials_are_what_an_interval_was_made_of() -> None:
    rng = np.random.default_rng(11)
    for _ in range(50):
        n = int(rng.integers(20, 2000))
        count, worth = int(rng.integers(0, n + 1)), float(rng.uniform(2, n))
        hits, misses = count / n * worth, (n - count) / n * worth
        low = beta.ppf(0.025, hits, misses + 1) if count else 0.0
        high = beta.ppf(0.975, hits + 1, misses) if count < n else 1.0
        assert effective_trials(Proportion(count, n, low, high)) == pytest.approx(worth, rel=1e-3)


def test_pooled_rate_of_equal_clusters_is_worth_the_sum_of_what_they_are_worth() -> None:
    group = clustered([9, 1, 0, 6], [25] * 4)
    worth = effective_trials(group)
    assert worth < 50
    assert effective_trials(pooled([group, group])) == pytest.approx(2 * worth, rel=1e-4)
    with pytest.raises(ValueError, match="at least one trial"):
        pooled([])


def test_exceeding_a_level_is_the_exact_binomial_test() -> None:
    for count, n, level in ((9, 300, 0.01), (3, 300, 0.01), (0, 300, 0.01), (5, 5, 0.5)):
        exact = binomtest(count, n, level, alternative="greater").pvalue
        assert exceeds(clopper_pearson(count, n), level) == pytest.approx(exact, rel=1e-6)


def test_a_rate_exceeds_a_level_at_the_tail_where_its_interval_lies_above() -> None:
    rng = np.random.default_rng(12)
    for _ in range(100):
        sizes = [25] * int(rng.integers(1, 6))
        rate, level = clustered(rng.binomial(25, rng.uniform(0, 0.4), len(sizes)).tolist(), sizes), rng.uniform(0, 0.3)
        assert (exceeds(rate, level) < 0.025) == (rate.low > level)
