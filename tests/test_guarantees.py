"""Bounds of stain and lock against closed forms and Monte-Carlo."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hallmark.schemes.stain_lock.guarantees import (
    averaged_cap_bound,
    cap,
    cap_bound,
    combined,
    height_for,
    holdout_bound,
    intrinsic_bound,
    intrinsic_dimension,
    intrinsic_level,
    log_cap,
    mean_cap,
    pair_probability,
    subspace_bound,
    worst_direction_bound,
)

DRAWS = 200_000


def sphere(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, dimension))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def within(measured: int, trials: int, probability: float) -> bool:
    """Whether a count is compatible with a probability: fixed seeds, a fair one fails once in ten thousand."""
    return scipy_stats.binomtest(measured, trials, probability).pvalue > 1e-4


# The cap


@pytest.mark.parametrize("a", [-1.0, -0.6, 0.0, 0.3, 0.9, 1.0])
def test_the_cap_in_two_three_and_five_dimensions(a: float) -> None:
    assert float(cap(a, 2)) == pytest.approx(math.acos(a) / math.pi, abs=1e-12)
    assert float(cap(a, 3)) == pytest.approx((1 - a) / 2, abs=1e-12)  # Archimedes
    assert float(cap(a, 5)) == pytest.approx((2 - 3 * a + a**3) / 4, abs=1e-12)


@pytest.mark.parametrize(("dimension", "a"), [(16, 0.3), (64, 0.3), (64, -0.1), (300, 0.1)])
def test_the_cap_is_the_share_of_directions(dimension: int, a: float) -> None:
    directions = sphere(DRAWS // dimension * 8, dimension)
    fixed = sphere(1, dimension, seed=1)[0]
    assert within(int((directions @ fixed >= a).sum()), len(directions), float(cap(a, dimension)))


@pytest.mark.parametrize(("a", "dimension"), [(0.1, 20), (0.5, 576), (0.9, 576), (0.999, 2304), (1 - 2**-23, 4608)])
def test_the_logarithm_goes_on_where_the_cap_ends(a: float, dimension: int) -> None:
    p, x = (dimension - 1) / 2, 1 - a * a
    # ∫₀ˣ s^{p−1} (1−s)^{−½} ds as a power series: every factor (½)_n / n! is C(2n, n) / 4^n
    series, factor = 0.0, 1.0
    for n in range(3000):
        series += factor * x**n / (p + n)
        factor *= (2 * n + 1) / (2 * n + 2)
    beta = math.lgamma(p) + math.lgamma(0.5) - math.lgamma(p + 0.5)
    assert log_cap(a, dimension) == pytest.approx(math.log(0.5) + p * math.log(x) + math.log(series) - beta, rel=1e-9)


def test_independent_p_values_combine_by_fishers_method() -> None:
    p = [0.03, 0.4, 1e-5, 0.9]
    expected = scipy_stats.combine_pvalues(p, method="fisher").pvalue
    assert math.exp(combined([-math.log(value) for value in p])) == pytest.approx(expected, rel=1e-9)
    assert combined([2.5]) == pytest.approx(-2.5)
    assert combined([0.0, 0.0]) == pytest.approx(0)
    assert combined([2000.0] * 3) == pytest.approx(-6000 + math.log(1 + 6000 + 6000**2 / 2))


# Bounds over the draw of v


def test_the_cap_bound_over_places_and_inputs() -> None:
    dimension, threshold, places = 32, 1.2, 5
    rng = np.random.default_rng(2)
    features = rng.standard_normal((places, dimension)) * np.linspace(0.3, 0.7, places)[:, None]
    fires = sphere(DRAWS // 4, dimension) @ features.T >= threshold
    radius = np.linalg.norm(features, axis=1)
    for place in range(places):
        exact = float(cap_bound(threshold, radius[place], dimension))
        assert within(int(fires[:, place].sum()), len(fires), exact)
    anywhere = fires.any(axis=1).mean()
    bound = float(cap_bound(threshold, radius.max(), dimension, places=places))
    assert anywhere <= bound < 1
    assert float(cap_bound(threshold, radius.max(), dimension, places=places, acceptance=0.5)) == pytest.approx(
        2 * bound
    )
    assert (np.diff(cap_bound(threshold, radius, dimension)[radius.argsort()]) >= 0).all()  # longer features fire more
    assert float(cap_bound(threshold, 0.0, dimension)) == 0


@pytest.mark.parametrize("places", [1, 4])
def test_the_averaged_bound_holds_and_its_mean_is_tight(places: int) -> None:
    dimension, threshold = 24, 1.5
    law = np.random.default_rng(3)

    def images(count: int) -> np.ndarray:
        lengths = law.gamma(4.0, 0.5, (count, places, 1))
        return lengths * (law.standard_normal((count, places, dimension)) / math.sqrt(dimension) + 0.1)

    population = images(4000)
    fires = np.einsum("npm,vm->nvp", population, sphere(50, dimension)) >= threshold
    rate = fires.any(axis=2).mean()
    held = [
        averaged_cap_bound(threshold, np.linalg.norm(images(200), axis=2), dimension, eta=0.2) >= rate
        for _ in range(50)
    ]
    assert sum(held) >= 40  # 80 % are promised; the price of the sample is slack, so all hold in fact
    norms = np.linalg.norm(population, axis=2)
    mean, deviation = mean_cap(threshold, norms, dimension)
    each = np.minimum(1, cap(threshold / norms, dimension).sum(axis=1))
    assert deviation == pytest.approx(each.std(ddof=1))
    if places == 1:
        assert mean == pytest.approx(rate, rel=0.1)  # an identity; what is left is the Monte-Carlo over v
    else:
        assert rate <= mean * 1.1
    width = 0.5 if places == 1 else 1.0
    few, many = (averaged_cap_bound(3, norms[:n], dimension) - mean_cap(3, norms[:n], dimension)[0] for n in (20, 4000))
    assert few == pytest.approx(width * math.sqrt(math.log(40) / 40))  # Hoeffding is better for few images
    assert many < 0.5 * width * math.sqrt(math.log(40) / 8000)  # Maurer and Pontil for many that seldom fire


def test_the_subspace_bound_is_the_law_of_the_worst_input() -> None:
    dimension, subspace, radius, residual, threshold = 64, 10, 1.0, 0.1, 0.6
    directions = sphere(40_000, dimension)
    # the worst of all inputs e + r: e along the projection of v, and r along v
    worst = radius * np.linalg.norm(directions[:, :subspace], axis=1) + residual
    bound = subspace_bound(threshold, radius, residual, subspace, dimension)
    assert within(int((worst >= threshold).sum()), len(worst), bound)
    assert subspace_bound(0.05, radius, residual, subspace, dimension) == 1
    assert subspace_bound(5.0, radius, residual, subspace, dimension) == 0
    assert subspace_bound(threshold, radius, residual, dimension, dimension) == 1


def test_the_height_for_a_rate_keeps_it_without_waste() -> None:
    for dimension in (27, 144, 576):
        a = height_for(1e-6, dimension, places=3136)
        assert 1e-9 < float(cap_bound(a, 1.0, dimension, places=3136)) <= 1e-6
    assert height_for(0.5, 10) == 0


# Bounds for one detector


@pytest.mark.parametrize(("fired", "images"), [(0, 50), (3, 200), (40, 100)])
def test_the_holdout_bound_is_clopper_and_pearsons(fired: int, images: int) -> None:
    bound = holdout_bound(fired, images, eta=0.05)
    assert bound == pytest.approx(scipy_stats.beta.ppf(0.95, fired + 1, images - fired), rel=1e-9)
    assert scipy_stats.binom.cdf(fired, images, bound) == pytest.approx(0.05, rel=1e-6)
    if not fired:
        assert bound == pytest.approx(1 - 0.05 ** (1 / images))


def test_the_worst_direction_is_bounded_by_the_moments() -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((5000, 12)) * np.linspace(0.2, 1.5, 12) + 0.4
    mean = features.mean(axis=0)
    second = np.linalg.eigvalsh(features.T @ features / len(features))[-1]
    covariance = np.cov(features.T, bias=True)
    spread, axes = np.linalg.eigh(covariance)
    length = float(np.linalg.norm(mean))
    for direction in (axes[:, -1], mean / length, *sphere(20, 12)):
        for threshold in (1.5, 2.5, 4.0):  # true of every law, so of the sample's own too
            rate = max((features @ direction >= threshold).mean(), (features @ -direction >= threshold).mean())
            assert rate <= worst_direction_bound(threshold, float(second))
            assert rate <= worst_direction_bound(threshold, float(spread[-1]), mean=length)
    assert worst_direction_bound(0.0, 1.0) == worst_direction_bound(1.0, 1.0, mean=2.0) == 1


def test_the_intrinsic_dimension_of_a_sphere() -> None:
    dimension, level = 8, -0.6
    x = sphere(800, dimension)
    expected = float(cap(1 + level, dimension))  # ⟨x − y, y⟩ ≥ level means ⟨x, y⟩ ≥ 1 + level
    assert pair_probability(x, level) == pytest.approx(expected, rel=0.05)
    assert intrinsic_dimension(x, level) == pytest.approx(-1 - math.log2(expected), abs=0.1)
    brute = np.mean([(x[i] - x[j]) @ x[j] >= level for i in range(40) for j in range(40) if i != j])
    assert pair_probability(x[:40], level) == pytest.approx(brute)
    assert intrinsic_dimension(np.eye(4), 0.5) == math.inf
    assert intrinsic_bound(math.inf) == 0


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.7])
def test_the_intrinsic_bound_holds_for_every_centre(theta: float) -> None:
    x = sphere(1500, 6, seed=5) + np.array([0.8, 0, 0, 0, 0, 0])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bound = intrinsic_bound(intrinsic_dimension(x, intrinsic_level(theta)))
    centres = np.concatenate([sphere(50, 6, seed=6), x[:50], x.mean(axis=0)[None] / np.linalg.norm(x.mean(axis=0))])
    rates = (x @ centres.T >= 1 - theta).mean(axis=0)
    assert rates.max() <= bound + 1e-2  # n is estimated from the same 1,500 samples
