"""The judge: exact p-values, thresholds that agree with them, nulls that hold their level and one that does not."""

import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from hallmark.core import Access, Evidence
from hallmark.schemes.wpe.responses import label_evidence
from hallmark.stats import Binomial, Ranked, clopper_pearson, clustered, holm, mean_interval, verify, wilson


def counted(matches: int, trials: int) -> Evidence:
    return Evidence(Access.LABELS, matches=matches, trials=trials)


def scored(*values: float) -> list[Evidence]:
    """One evidence a value, whose statistic is that value."""
    return [Evidence(Access.FEATURES, scores=torch.tensor([[value, 0.0]])) for value in values]


# Binomial


def test_binomial_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        trials = int(rng.integers(1, 300))
        matches, chance = int(rng.integers(0, trials + 1)), float(rng.uniform(0.01, 0.99))
        verdict = verify(counted(matches, trials), Binomial(chance), 0.01)
        expected = scipy_stats.binomtest(matches, trials, chance, alternative="greater").pvalue
        # two evaluations of one incomplete beta function
        assert verdict.p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert verdict.detected == (expected <= 0.01)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("trials", [1, 2, 7, 20])
def test_binomial_agrees_with_counting_outcomes(trials: int, chance: float) -> None:
    for matches in range(trials + 1):
        tail = sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(matches, trials + 1))
        verdict = verify(counted(matches, trials), Binomial(chance), 0.05)
        # at most 21 terms of float64
        assert verdict.p_value == pytest.approx(tail, rel=1e-12)
        assert verdict.statistic == matches


def test_smallest_attainable_p() -> None:
    assert verify(counted(0, 10), Binomial(0.5), 0.01).p_min == pytest.approx(2**-10, rel=1e-12)
    assert verify(counted(3, 4), Binomial(0.1), 0.01).p_min == pytest.approx(1e-4, rel=1e-12)
    perfect = verify(counted(10, 10), Binomial(0.5), 0.01)
    assert perfect.p_value == pytest.approx(perfect.p_min, rel=1e-12)
    assert verify(scored(1.0)[0], Ranked(scored(*range(-99, 1))), 0.01).p_min == 1 / 101


def test_too_few_trials_can_detect_nothing() -> None:
    verdict = verify(counted(6, 6), Binomial(0.5), 0.01)  # 2⁻⁶ = 0.016
    assert not verdict.detected
    assert verdict.threshold == math.inf
    assert verdict.p_min > verdict.alpha
    nothing = verify(counted(0, 0), Binomial(0.5), 0.01)
    assert (nothing.p_value, nothing.detected, nothing.threshold) == (1.0, False, math.inf)
    few = verify(scored(5.0)[0], Ranked(scored(*[0.0] * 98)), 0.01)  # 1/99 > 0.01
    assert (few.detected, few.threshold) == (False, math.inf)
    assert verify(scored(5.0)[0], Ranked(scored(*[0.0] * 99)), 0.01).detected


def test_binomial_detects_from_its_threshold_on() -> None:
    rng = np.random.default_rng(1)
    levels = [0.5, 0.25, 0.125, 0.05, 0.01, 1e-3, 1e-6]  # powers of ½ lie exactly on attainable p-values of fair coins
    cases = [(int(rng.integers(0, 60)), float(rng.uniform(0.02, 0.98)), float(rng.choice(levels))) for _ in range(30)]
    cases += [(trials, 0.5, level) for trials in range(9) for level in levels]
    cases += [
        (trials, chance, 1e-30) for trials in (99, 100, 400) for chance in (0.1, 0.5)
    ]  # 1 - 1e-30 is 1 in float64
    for trials, chance, alpha in cases:
        verdicts = [verify(counted(matches, trials), Binomial(chance), alpha) for matches in range(trials + 1)]
        assert len({verdict.threshold for verdict in verdicts}) == 1
        for verdict in verdicts:
            assert verdict.detected == (verdict.p_value <= alpha) == (verdict.statistic >= verdict.threshold)


def test_binomial_holds_its_level_on_independent_coins() -> None:
    for trials, chance, alpha in [(64, 0.5, 0.01), (30, 0.1, 0.05), (200, 0.9, 0.001)]:
        law = scipy_stats.binom(trials, chance)
        rate = sum(
            law.pmf(k) for k in range(trials + 1) if verify(counted(k, trials), Binomial(chance), alpha).detected
        )
        assert 0 < rate <= alpha * (1 + 1e-9)


# Ranked


def test_rank_counts_decoys_at_or_above() -> None:
    decoys = scored(3.0, 1.0, 2.0, 2.0)
    expected = {3.5: 1, 3.0: 2, 2.5: 2, 2.0: 4, 1.5: 4, 1.0: 5, 0.0: 5}  # ties count against the owner
    for value, rank in expected.items():
        assert verify(scored(value)[0], Ranked(decoys), 0.05).p_value == rank / 5


def test_ranked_detects_from_its_threshold_on() -> None:
    rng = np.random.default_rng(2)
    for case in range(200):
        count = int(rng.integers(1, 120))
        values = rng.integers(0, 8, count + 1) if case % 2 else rng.normal(size=count + 1)
        alpha = float(rng.choice([0.001, 0.01, 0.05, 0.07, 0.29, 0.5, rng.uniform(0.001, 0.999)]))
        true, *decoys = scored(*map(float, values))
        verdict = verify(true, Ranked(decoys), alpha)
        null = sorted(d.statistic() for d in decoys)
        rank = 1 + len([value for value in null if value >= true.statistic()])
        assert verdict.p_value == rank / (count + 1)
        assert verdict.detected == (verdict.p_value <= alpha) == (verdict.statistic >= verdict.threshold)


def test_alpha_on_the_grid_of_ranks_is_attained() -> None:
    for total in (49, 100, 200):
        decoys = scored(*map(float, range(total - 1)))
        awkward = [rank for rank in range(1, total) if rank / total * total < rank]  # such as 29 of 100, as floats go
        assert awkward
        for rank in [1, total // 20, total - 1, *awkward]:
            true = scored(total - 1 - rank + 0.5)[0]  # exactly rank − 1 decoys above
            verdict = verify(true, Ranked(decoys), rank / total)
            assert verdict.p_value == rank / total
            assert verdict.detected
            assert verdict.statistic >= verdict.threshold


@pytest.mark.parametrize("law", ["continuous", "ties", "heavy ties"])
def test_ranked_holds_its_level_among_exchangeable_keys(law: str) -> None:
    rng = np.random.default_rng(3)
    trials, decoys, alpha = 1500, 19, 0.05
    detected = 0
    for _ in range(trials):
        # every suspect is another one: a shift that all keys share makes keys dependent, not less exchangeable
        values = rng.normal(size=decoys + 1) + 3 * rng.normal()
        if law == "ties":
            values = np.round(values * 3)
        elif law == "heavy ties":
            values = np.round(values / 2)
        true, *others = scored(*map(float, values))
        detected += verify(true, Ranked(others), alpha).detected
    # 99.9 % one-sided limit of 1500 trials at α, which an exact test passes; ties can only make it conservative
    assert detected <= scipy_stats.binom.ppf(0.999, trials, alpha)
    if law == "continuous":  # exact, not merely safe: α (M + 1) is whole
        assert detected >= scipy_stats.binom.ppf(0.001, trials, alpha)


def test_p_values_of_ranked_are_uniform_on_their_grid() -> None:
    rng = np.random.default_rng(4)
    ranks = []
    for _ in range(2000):
        true, *others = scored(*rng.normal(size=10).tolist())
        ranks.append(round(10 * verify(true, Ranked(others), 0.1).p_value))
    # 2000 draws over ten equal cells; the seed is fixed, and a fair judge fails one seed in a thousand
    assert scipy_stats.chisquare(np.bincount(ranks, minlength=11)[1:]).pvalue > 1e-3


def test_a_statistic_that_is_no_number_accuses_nobody() -> None:
    nan = float("nan")
    blank = verify(scored(nan)[0], Ranked(scored(*[nan] * 99)), 0.05)
    assert (blank.p_value, blank.detected) == (1.0, False)
    assert verify(scored(nan)[0], Ranked(scored(*map(float, range(99)))), 0.05).p_value == 1.0
    rng = np.random.default_rng(9)
    for _ in range(50):  # a decoy without a number counts against the owner, wherever it stands among the others
        decoys = scored(*rng.choice([nan, *range(10)], size=39).tolist())
        above = sum(not d.statistic() < 8.5 for d in decoys)
        some = verify(scored(8.5)[0], Ranked(decoys), 0.3)
        assert some.p_value == (1 + above) / 40
        assert some.detected == (some.statistic >= some.threshold) == (above < 12)


# Why queries that share a trigger are no coins


def shared_trigger_counts(rng: np.random.Generator, keys: int, queries: int) -> np.ndarray:
    """Flips of innocent keys: each trigger happens to move its own share of all queries into one class."""
    shares = rng.beta(0.5, 4.5, keys)  # one in ten on average: some patches do nothing, a few look like a class
    return rng.binomial(queries, shares)


def test_a_binomial_over_queries_of_one_trigger_accuses_innocents() -> None:
    rng = np.random.default_rng(5)
    trials, queries, decoys, alpha = 2000, 100, 99, 0.01
    binomial = ranked = 0
    for _ in range(trials):
        true, *others = (counted(int(k), queries) for k in shared_trigger_counts(rng, decoys + 1, queries))
        # the binomial is given the true mean flip rate of innocent triggers, and still fails
        binomial += verify(true, Binomial(0.1), alpha).detected
        ranked += verify(true, Ranked(others), alpha).detected
    limit = scipy_stats.binom.ppf(0.999, trials, alpha)  # 35 of 2000
    assert ranked <= limit
    assert binomial > 10 * alpha * trials  # more than ten times the level it claims
    assert clopper_pearson(binomial, trials, 0.999).low > 10 * alpha


def test_dependence_arises_from_answers_alone() -> None:
    """The same from labels, through the evidence that schemes give: a patch that pushes towards one class."""
    rng = np.random.default_rng(6)
    trials, queries, classes, alpha = 300, 100, 10, 0.01
    margin = torch.from_numpy(rng.normal(size=(queries, classes))).float()  # a suspect's logits of the clean queries
    clean = margin.argmax(1)

    def evidence() -> Evidence:
        push = torch.from_numpy(rng.exponential(0.25, classes)).float()  # one push a trigger, the same for all queries
        return label_evidence("cluster", (margin + push).argmax(1), clean)

    keys = [[evidence() for _ in range(100)] for _ in range(trials)]
    chance = float(np.mean([k[0].matches / k[0].trials for k in keys]))
    binomial = sum(verify(k[0], Binomial(chance), alpha).detected for k in keys)
    ranked = sum(verify(k[0], Ranked(k[1:]), alpha).detected for k in keys)
    assert ranked <= scipy_stats.binom.ppf(0.999, trials, alpha)
    assert binomial > 5 * alpha * trials


# What verify refuses


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        verify(counted(1, 2), Binomial(), alpha)


def test_nulls_that_do_not_fit_are_refused() -> None:
    score = scored(1.0)[0]
    with pytest.raises(ValueError, match="use Ranked"):
        verify(score, Binomial(), 0.05)
    with pytest.raises(ValueError, match="at least one decoy"):
        verify(score, Ranked([]), 0.05)
    with pytest.raises(ValueError, match="same form"):
        verify(score, Ranked([Evidence(Access.FEATURES, matches=1, trials=2)]), 0.05)
    with pytest.raises(ValueError, match="same access"):
        verify(score, Ranked([Evidence(Access.LOGITS, scores=torch.zeros(1, 2))]), 0.05)


# Intervals and corrections


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (3, 10), (1, 1000), (512, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_clopper_pearson_is_two_beta_quantiles(count: int, n: int, confidence: float) -> None:
    tail = (1 - confidence) / 2
    low = scipy_stats.beta.ppf(tail, count, n - count + 1) if count else 0.0
    high = scipy_stats.beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0
    interval = clopper_pearson(count, n, confidence)
    # scipy finds the same roots by bracketing
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert interval.low <= interval.rate <= interval.high
    assert interval.rate == count / n


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (3, 10), (1, 1000), (512, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_is_its_closed_form(count: int, n: int, confidence: float) -> None:
    z = scipy_stats.norm.ppf(1 - (1 - confidence) / 2)
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = wilson(count, n, confidence)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_holm_is_its_definition() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        p = rng.choice([rng.uniform(), 0.01, 0.02, 0.5], size=int(rng.integers(1, 9))).tolist()
        order = sorted(range(len(p)), key=lambda i: p[i])
        expected = [0.0] * len(p)
        for place, index in enumerate(order):  # the largest of all earlier steps, capped at 1
            expected[index] = min(1.0, max((len(p) - j) * p[order[j]] for j in range(place + 1)))
        assert holm(p) == pytest.approx(expected, rel=1e-15)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        p = (rng.uniform(size=6) ** 4).tolist()
        alpha = 0.05
        rejected = set()
        for step, index in enumerate(sorted(range(6), key=lambda i: p[i])):
            if p[index] > alpha / (6 - step):
                break
            rejected.add(index)
        assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected
    assert holm([]) == []


def test_one_cluster_and_unvaried_clusters_have_clopper_and_pearsons_interval() -> None:
    exact = clopper_pearson(8, 400)
    for counts, sizes in (([8], [400]), ([2, 2, 2, 2], [100] * 4)):
        found = clustered(counts, sizes)
        assert (found.count, found.n) == (8, 400)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-9)
    none, whole = clustered([0, 0], [50, 50]), clustered([50, 50], [50, 50])
    assert (none.low, none.high) == pytest.approx((0, clopper_pearson(0, 100).high))
    assert (whole.low, whole.high) == pytest.approx((clopper_pearson(100, 100).low, 1))


def test_clusters_that_rise_and_fall_together_are_worth_less() -> None:
    """Half of the clusters wholly true: the 1,000 trials are worth about as many as there are clusters."""
    found = clustered([50, 0] * 10, [50] * 20)
    exact = clopper_pearson(10, 20)
    assert found.high - found.low >= 0.95 * (exact.high - exact.low)


def test_the_clustered_interval_covers_where_the_plain_one_does_not() -> None:
    """Rates of clusters spread as Beta(1, 9); 400 draws resolve a coverage of 0.95 to 0.011."""
    draws = np.random.default_rng(0)
    plain = robust = 0
    for _ in range(400):
        counts = draws.binomial(100, draws.beta(1, 9, size=25)).tolist()
        found, naive = clustered(counts, [100] * 25), clopper_pearson(sum(counts), 2500)
        robust += found.low <= 0.1 <= found.high
        plain += naive.low <= 0.1 <= naive.high
    assert robust / 400 >= 0.90  # few and skewed clusters cost it a few points
    assert plain / 400 <= 0.60


def test_clusters_must_have_trials() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        clustered([0], [0])


def test_the_interval_of_a_mean_is_students() -> None:
    low, high = mean_interval([1.0, 2.0, 4.0, 5.0])  # mean 3, standard deviation sqrt(10/3), t(0.975, 3) = 3.18245
    assert (low, high) == pytest.approx((3 - 3.18245 * math.sqrt(10 / 12), 3 + 3.18245 * math.sqrt(10 / 12)), abs=1e-4)
    assert mean_interval([1.0]) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
