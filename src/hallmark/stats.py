"""The one judge: evidence and a null distribution go in, a verdict comes out.

No scheme decides for itself.  α is fixed by the experiment before it runs, and the threshold comes from a null that was
not used to choose anything.  Two nulls are known to be exact:

* :class:`Binomial`, where each of the trials is an independent coin under the null.  That holds for bits read through a
  Gaussian key drawn independently of the suspect.  It does *not* hold for queries that share one trigger: they succeed
  or fail together, and a binomial over them accuses innocents.
* :class:`Ranked`, where the true key is exchangeable with fresh keys of the same law (the suspect never saw any of
  them).  Its rank among M decoys is then uniform, whatever the suspect is and however dependent the queries are; this
  is the Monte-Carlo test of Barnard (1963), exact at every M, with resolution 1/(M + 1).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats as scipy_stats

from hallmark.core.evidence import Evidence


@dataclass(frozen=True)
class Binomial:
    """Matches are Binomial(trials, chance) under the null."""

    chance: float = 0.5


@dataclass(frozen=True)
class Ranked:
    """The true key ranked among decoys of the same law on the same suspect.

    Args:
        decoys: One evidence per decoy key, extracted exactly as the true key's.
    """

    decoys: Sequence[Evidence]

    @cached_property
    def ascending(self) -> list[float]:
        """The decoys' statistics in order.

        A suspect that answers NaN shows no mark: what cannot be compared counts against the owner.
        """
        values = (decoy.statistic() for decoy in self.decoys)
        return sorted(math.inf if math.isnan(value) else value for value in values)


@dataclass(frozen=True)
class Verdict:
    """A decision with everything needed to question it.

    Args:
        statistic: The test statistic of the true key; larger means more like a mark.
        threshold: Smallest statistic that would be detected at ``alpha``; infinite if none would.
        p_value: Probability under the null of a statistic at least this large.
        p_min: Smallest p-value this test can attain.
        alpha: Level fixed beforehand.
        detected: ``p_value <= alpha``.
    """

    statistic: float
    threshold: float
    p_value: float
    p_min: float
    alpha: float
    detected: bool


@dataclass(frozen=True)
class Proportion:
    """A rate with its counts and a confidence interval, all in 0 … 1."""

    count: int
    n: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """``count / n``."""
        return self.count / self.n


def verify(evidence: Evidence, null: Binomial | Ranked, alpha: float) -> Verdict:
    """Judge evidence against a null.

    Args:
        evidence: Extraction with the true key.
        null: Where the null distribution comes from.
        alpha: Level in (0, 1).

    Returns:
        The verdict; ties count against the owner.

    Raises:
        ValueError: ``alpha`` is outside (0, 1), the null does not fit the evidence, or there are no decoys.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    if isinstance(null, Binomial):
        return _binomial(evidence, null.chance, alpha)
    return _ranked(evidence, null, alpha)


def _binomial(evidence: Evidence, chance: float, alpha: float) -> Verdict:
    if evidence.matches is None or evidence.trials is None:
        raise ValueError("a binomial null judges counts, but this evidence holds paired scores; use Ranked")
    law = scipy_stats.binom(evidence.trials, chance)
    p_value = float(law.sf(evidence.matches - 1))
    # smallest k with P(X >= k) <= alpha; law.isf would go through 1 - alpha, which is 1 below 1e-16
    threshold = float((law.sf(np.arange(-1, evidence.trials)) > alpha).sum())
    if threshold > evidence.trials:
        threshold = math.inf
    p_min = float(law.pmf(evidence.trials))
    return Verdict(float(evidence.matches), threshold, p_value, p_min, alpha, p_value <= alpha)


def _ranked(evidence: Evidence, null: Ranked, alpha: float) -> Verdict:
    decoys = null.decoys
    if not decoys:
        raise ValueError("a ranked null needs at least one decoy")
    if any(d.access != evidence.access or (d.scores is None) != (evidence.scores is None) for d in decoys):
        raise ValueError("decoys must be extracted on the same access and in the same form as the evidence")
    statistic, ascending = evidence.statistic(), null.ascending
    total = len(ascending) + 1
    # ties count against the owner, and a statistic that is NaN is below everything
    p_value = (total - bisect_left(ascending, statistic)) / total
    allowed = math.floor(alpha * total + 1e-9) - 1  # decoys that may reach the true key's statistic
    threshold = math.inf if allowed < 0 else (ascending[-1 - allowed] if allowed < len(ascending) else -math.inf)
    return Verdict(statistic, math.nextafter(threshold, math.inf), p_value, 1 / total, alpha, p_value <= alpha)


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> Proportion:
    """Exact interval of a binomial proportion (Clopper and Pearson 1934)."""
    interval = scipy_stats.binomtest(count, n).proportion_ci(confidence_level=confidence, method="exact")
    return Proportion(count, n, float(interval.low), float(interval.high))


def clustered(counts: Sequence[int], sizes: Sequence[int], confidence: float = 0.95) -> Proportion:
    """Interval of a proportion over trials that come in clusters, whose trials need not be independent.

    Clopper and Pearson's interval at the effective sample size (Korn and Graubard 1998): the variance between clusters
    tells how many independent trials the clusters are worth, and Student's quantiles account for how few they are.  It
    is never narrower than :func:`clopper_pearson` on all trials, and the same where nothing shows how clusters differ:
    for a single cluster, or without any success.

    Args:
        counts: Successes of each cluster.
        sizes: Trials of each cluster, at least one.
        confidence: Probability with which the interval covers the rate.

    Raises:
        ValueError: There are no clusters, or the two lists do not match.
    """
    if not sizes or len(counts) != len(sizes) or min(sizes) < 1:
        raise ValueError(f"needed: as many counts as sizes, all of at least one trial; got {counts} of {sizes}")
    count, n, groups = sum(counts), sum(sizes), len(sizes)
    rate = count / n
    effective = float(n)
    if groups > 1 and 0 < count < n:
        between = sum((c - rate * size) ** 2 for c, size in zip(counts, sizes, strict=True))
        variance = groups / (groups - 1) * between / n**2
        tail = (1 + confidence) / 2
        few = (scipy_stats.t.ppf(tail, n - 1) / scipy_stats.t.ppf(tail, groups - 1)) ** 2
        effective = min(float(n), few * rate * (1 - rate) / variance) if variance else float(n)
    return at_worth(count, n, effective, confidence)


def at_worth(count: int, n: int, effective: float, confidence: float = 0.95) -> Proportion:
    """A rate with Clopper and Pearson's interval as if its trials were worth ``effective`` independent ones.

    The interval of Korn and Graubard (1998): the quantiles of the beta laws take counts that are not whole.
    """
    rate, outside = count / n, (1 - confidence) / 2
    hits, misses = rate * effective, (1 - rate) * effective
    low = float(scipy_stats.beta.ppf(outside, hits, misses + 1)) if count else 0.0
    high = float(scipy_stats.beta.isf(outside, hits + 1, misses)) if count < n else 1.0
    return Proportion(count, n, low, high)


def wilson(count: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval of a binomial proportion, for descriptive rates such as accuracy."""
    interval = scipy_stats.binomtest(count, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Proportion(count, n, float(interval.low), float(interval.high))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, such as that of a paired difference over seeds; infinite for a single value.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("an interval of a mean needs at least one value")
    if len(values) == 1:
        return -math.inf, math.inf
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(scipy_stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - reach, mean + reach


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given, for a table that makes many claims at once."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
