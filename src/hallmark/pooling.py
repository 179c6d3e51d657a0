"""Rates of several groups of trials as one rate, and whether it lies above a level.

Trials on one suspect share much, so a group's interval may be wider than its count of trials tells; what is pooled here
is what the groups are worth, not what they count.
"""

from collections.abc import Sequence

from scipy import optimize
from scipy import stats as scipy_stats

from hallmark.stats import Proportion, at_worth


def pooled(rates: Sequence[Proportion], confidence: float = 0.95) -> Proportion:
    """One rate of several independent groups of trials, each of which may be worth fewer trials than it counts.

    What each group is worth shows in its interval (:func:`effective_trials`); under one common rate the groups' sum has
    the variance of ``N² / Σ (nᵢ² / eᵢ)`` independent trials, N = Σ nᵢ (the design effect of Kish 1965), at which
    Clopper and Pearson's interval is taken.  Of groups of independent trials it is :func:`clopper_pearson` of them all.

    Args:
        rates: The groups, with intervals by :func:`clopper_pearson` or :func:`clustered` at the same confidence.
        confidence: Probability with which the interval covers the rate.

    Raises:
        ValueError: There are no groups, or one has no trials.
    """
    if not rates or min(rate.n for rate in rates) < 1:
        raise ValueError(f"needed: groups of at least one trial each; got {rates}")
    count, n = sum(rate.count for rate in rates), sum(rate.n for rate in rates)
    effective = n**2 / sum(rate.n**2 / effective_trials(rate, confidence) for rate in rates)
    return at_worth(count, n, effective, confidence)


def effective_trials(rate: Proportion, confidence: float = 0.95) -> float:
    """How many independent trials a rate's interval is worth: those whose Clopper-Pearson interval is as wide.

    Args:
        rate: A rate with an interval by :func:`clopper_pearson` or :func:`clustered`.
        confidence: Of that interval.

    Returns:
        A number in (0, n].
    """

    def excess(trials: float) -> float:
        there = at_worth(rate.count, rate.n, trials, confidence)
        return (there.high - there.low) - (rate.high - rate.low)

    least = 1e-6 * rate.n
    if excess(rate.n) >= 0:
        return float(rate.n)
    return least if excess(least) <= 0 else float(optimize.brentq(excess, least, rate.n))


def exceeds(rate: Proportion, level: float, confidence: float = 0.95) -> float:
    """p-value of the hypothesis that the true rate is at most ``level``, by the trials that the interval is worth.

    It is at most ``(1 − confidence) / 2`` exactly where the interval lies above the level; of :func:`clopper_pearson`
    it is the exact binomial test's.
    """
    effective = effective_trials(rate, confidence)
    hits = rate.rate * effective
    return float(scipy_stats.beta.cdf(level, hits, effective - hits + 1)) if rate.count else 1.0
