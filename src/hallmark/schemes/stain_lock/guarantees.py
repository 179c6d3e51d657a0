"""How often a detector neuron fires on what it should not: bounds that can be computed, each with its proof.

A detector answers ``f(y) = (Δ − δ)/T · v·y + δ`` to features y ∈ R^m, with ‖v‖ = 1, T = v·y* its trigger's response and
δ < 0 < Δ.  So ``f(y) > 0`` exactly where ``v·y > τT`` with ``τ = |δ| / (Δ + |δ|)``; a *threshold* below is that τT.  T
depends on v.  For a bound over the draw of v, fix a least response T₀ beforehand, keep v only if T ≥ T₀, use the
threshold τT₀, and divide the bound by the probability of keeping (``acceptance``), since
P(fire | kept) ≤ P(v·y > τT₀) / P(kept).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from hallmark.stats import clopper_pearson

Floats = NDArray[np.float64]


def cap(height: ArrayLike, dimension: int) -> Floats:
    """P(v·e ≥ a) for v uniform on the unit sphere of R^m and any fixed unit vector e: the area of a spherical cap.

    *Proof.*  By symmetry (v·e)² ~ Beta(1/2, (m−1)/2), as v = g/‖g‖ with g standard normal and (v·e)² = g₁²/Σgᵢ².  For
    a ≥ 0, P(v·e ≥ a) = ½ P((v·e)² ≥ a²) = ½ I_{1−a²}((m−1)/2, ½); for a < 0 it is the complement.  ∎

    Args:
        height: a, any shape.
        dimension: m ≥ 2.
    """
    a = np.clip(np.asarray(height, dtype=np.float64), -1.0, 1.0)
    tail = 0.5 * special.betainc((dimension - 1) / 2, 0.5, 1 - a * a)
    return np.where(a >= 0, tail, 1 - tail)


def log_cap(height: float, dimension: int) -> float:
    """Ln of :func:`cap` at one height, finite where the cap itself is below the smallest float.

    There ``I_x(p, q) = x^p (1−x)^q / (p B(p, q)) · ₂F₁(p+q, 1; p+1; x)`` with x = 1 − a² is taken in logarithms.
    """
    value = float(cap(height, dimension))
    if value > 1e-290 or height >= 1:
        return math.log(value) if value > 0 else -math.inf
    p, q, x = (dimension - 1) / 2, 0.5, 1 - height * height
    series = float(special.hyp2f1(p + q, 1.0, p + 1, x))
    terms = p * math.log(x) + q * math.log1p(-x) - math.log(p) - float(special.betaln(p, q)) + math.log(series)
    return terms - math.log(2)


def combined(surprises: ArrayLike) -> float:
    """Ln of the exact p-value of several independent p-values together (Fisher), from K surprises −ln pₖ.

    *Proof.*  Each pₖ is uniform under the null, so each −ln pₖ is Exp(1) and their sum s is Gamma(K, 1), whose upper
    tail is e^{−s} Σ_{i<K} sⁱ/i!.  Surprises that are too small, as after a union bound, only make it larger.  ∎
    """
    values = np.asarray(surprises, dtype=np.float64)
    total, orders = float(values.sum()), np.arange(len(values))
    return float(special.logsumexp(special.xlogy(orders, total) - special.gammaln(orders + 1)) - total)


def cap_bound(threshold: float, norm: ArrayLike, dimension: int, *, places: int = 1, acceptance: float = 1.0) -> Floats:
    """Probability over v that a fixed input fires, or any input whose features are no longer than ``norm``.

    *Proof.*  v·y ≥ t means v·(y/‖y‖) ≥ t/‖y‖, a cap; the cap shrinks with height and t/‖y‖ ≥ t/R where ‖y‖ ≤ R and
    t ≥ 0.  An image fires if one of its L places does: the union bound multiplies by L.  ∎

    Args:
        threshold: t = τT₀ ≥ 0.
        norm: ‖y‖, or the largest R that is considered.
        dimension: m.
        places: L, positions or tokens of an image that the neuron looks at.
        acceptance: Probability that a draw of v is kept.
    """
    heights = threshold / np.maximum(np.asarray(norm, dtype=np.float64), 1e-300)
    return np.minimum(1.0, places * cap(heights, dimension) / acceptance)


def mean_cap(threshold: float, norms: ArrayLike, dimension: int) -> tuple[float, float]:
    """Mean over images of the probability over v that an image fires, and its standard deviation over images.

    For one place an image the mean *is* the false positive rate over v and these images, an identity; for several, the
    union bound min(1, Σ_l cap(t/‖y_l‖)) stands for each image.

    Args:
        threshold: t = τT₀ ≥ 0.
        norms: ‖y‖ of N images ``(N,)`` or of their L places ``(N, L)``.
        dimension: m.
    """
    lengths = np.asarray(norms, dtype=np.float64)
    lengths = lengths.reshape(len(lengths), -1)
    heights = np.minimum(1.0, cap(threshold / np.maximum(lengths, 1e-300), dimension).sum(axis=1))
    return float(heights.mean()), float(heights.std(ddof=1)) if len(heights) > 1 else 0.0


def averaged_cap_bound(
    threshold: float, norms: ArrayLike, dimension: int, *, eta: float = 0.05, acceptance: float = 1.0
) -> float:
    """False positive rate over v *and* natural images, from the feature norms of N ≥ 2 independent natural images.

    *Proof.*  For v independent of the images, image i fires with probability at most hᵢ, see :func:`mean_cap`.  The hᵢ
    are independent and lie in [0, 1] (in [0, ½] for one place and t ≥ 0), and their expectation is at least the rate
    sought.  With probability 1 − η/2 each it is at most (Hoeffding) h̄ + w √(ln(2/η)/(2N)), with w the width of the
    interval, and (Maurer and Pontil 2009, Theorem 4) h̄ + s √(2 ln(4/η)/N) + 7 w ln(4/η)/(3(N−1)), with s the standard
    deviation of the sample; so with probability 1 − η it is at most the lesser.  ∎  h̄ is tight, only what pays for N
    is slack.

    Args:
        threshold: t = τT₀ ≥ 0.
        norms: ‖y‖ of N images ``(N,)`` or of their L places ``(N, L)``.
        dimension: m.
        eta: η, probability that the bound does not hold.
        acceptance: Probability that a draw of v is kept.
    """
    mean, deviation = mean_cap(threshold, norms, dimension)
    shape = np.shape(norms)
    count, width = shape[0], 0.5 if math.prod(shape[1:]) == 1 else 1.0
    hoeffding = width * math.sqrt(math.log(2 / eta) / (2 * count))
    price = math.log(4 / eta)
    bernstein = deviation * math.sqrt(2 * price / count) + 7 * width * price / (3 * (count - 1))
    return min(1.0, (mean + min(hoeffding, bernstein)) / acceptance)


def subspace_bound(threshold: float, radius: float, residual: float, subspace: int, dimension: int) -> float:
    """Probability over v that *any* input near a low-dimensional subspace fires: the bound by PCA dimension.

    *Proof.*  Let every natural y = e + r with e in a fixed d-dimensional subspace E, ‖e‖ ≤ R and ‖r‖ ≤ ρ.  Then
    sup v·y ≤ R ‖P_E v‖ + ρ, and ‖P_E v‖² ~ Beta(d/2, (m−d)/2), the share of d of m squared normals.  So
    P(some y fires) ≤ P(Beta ≥ ((t − ρ)/R)²) where t > ρ.  ∎  Features that gather round a point c are treated by
    handing in t − v·c for t.

    Args:
        threshold: t.
        radius: R.
        residual: ρ.
        subspace: d, 1 … m.
        dimension: m.
    """
    if threshold <= residual:
        return 1.0
    share = ((threshold - residual) / radius) ** 2 if radius > 0 else math.inf
    if share >= 1:
        return 0.0
    if subspace >= dimension:
        return 1.0
    return float(special.betaincc(subspace / 2, (dimension - subspace) / 2, share))


def holdout_bound(fired: int, images: int, *, eta: float = 0.05) -> float:
    """False positive rate of *this* detector, from a hold-out that chose nothing (Clopper–Pearson, one-sided).

    *Proof.*  The number of false fires among n independent images is Binomial(n, FPR).  The bound is the largest rate
    under which k or fewer fires have a probability of at least η, so a larger true rate gives such a k with probability
    below η.  For k = 0 it is 1 − η^{1/n} ≈ ln(1/η)/n.  ∎  No law of v or of the features is assumed.
    """
    return clopper_pearson(fired, images, confidence=1 - 2 * eta).high


def worst_direction_bound(threshold: float, largest: float, *, mean: float | None = None) -> float:
    """False positive rate over natural features for *every* unit v at once, also one that an adversary picked.

    *Proof.*  Chebyshev: P(v·y ≥ t) ≤ E(v·y)²/t² = vᵀE[yyᵀ]v/t² ≤ λ/t².  With the mean μ known, v·y has a mean of at
    most ‖μ‖ and a variance of at most the largest eigenvalue λ of the covariance, so Cantelli gives
    λ/(λ + (t − ‖μ‖)²) for t > ‖μ‖.  ∎  Eigenvalues are of the natural law; those of a sample estimate them.

    Args:
        threshold: t > 0.
        largest: λ, of the second moments E[yyᵀ], or of the covariance where ``mean`` is given.
        mean: ‖μ‖.
    """
    if mean is None:
        return min(1.0, largest / threshold**2) if threshold > 0 else 1.0
    return largest / (largest + (threshold - mean) ** 2) if threshold > mean else 1.0


def pair_probability(features: ArrayLike, level: float) -> float:
    """Share of ordered pairs of different samples with ⟨x − y, y⟩ ≥ ``level``; features ``(N, m)``, N ≥ 2.

    It is an unbiased estimate of P(⟨x − y, y⟩ ≥ level) = 2^−(n+1), which defines the intrinsic dimension n
    (Sutton et al. 2023), and no confidence bound.
    """
    x = np.asarray(features, dtype=np.float64)
    products = x @ x.T
    fires = products - np.diag(products)[None, :] >= level
    np.fill_diagonal(fires, False)
    return float(fires.sum() / (len(x) * (len(x) - 1)))


def intrinsic_dimension(features: ArrayLike, level: float) -> float:
    """N = −1 − log₂ P(⟨x − y, y⟩ ≥ level); infinite where no pair of the sample reaches the level."""
    share = pair_probability(features, level)
    return math.inf if share == 0 else -1 - math.log2(share)


def intrinsic_bound(dimension: float) -> float:
    """√(2^−(1+n)): false positive rate of a detector centred *anywhere* on the unit sphere of the features.

    For unit features, a detector at z fires on x where ⟨x, z⟩ ≥ 1 − θ, and n is the intrinsic dimension at the level
    2(1−θ)² − 2.

    *Proof.*  Two independent x, y that both fire lie in one cap of angle arccos(1−θ), so their angle is at most twice
    that: ⟨x, y⟩ ≥ 2(1−θ)² − 1 and ⟨x − y, y⟩ = ⟨x, y⟩ − 1 ≥ 2(1−θ)² − 2.  Hence FPR² ≤ P(⟨x − y, y⟩ ≥ level) =
    2^−(1+n).  ∎

    Args:
        dimension: n at that level.
    """
    return min(1.0, math.sqrt(2.0 ** -(1 + dimension)))


def intrinsic_level(theta: float) -> float:
    """The level 2(1−θ)² − 2 at which :func:`intrinsic_bound` needs the intrinsic dimension."""
    return 2 * (1 - theta) ** 2 - 2


def height_for(rate: float, dimension: int, *, places: int = 1) -> float:
    """Least t/‖y‖ for which :func:`cap_bound` is at most ``rate``, to choose layer and τ by.

    *Proof.*  cap(a) ≤ ½ (1 − a²)^{(m−1)/2} for a ≥ 0: with x = 1 − a² and p = (m−1)/2 the ratio of
    I_x(p, ½) = ∫₀ˣ s^{p−1} (1−s)^{−½} ds / B(p, ½) to x^p grows in x, since both vanish at 0 and the ratio of their
    derivatives, (1−x)^{−½} / (p B(p, ½)), grows; so it is at most its value at x = 1, which is 1.  Solve
    L/2 · (1 − a²)^{(m−1)/2} = rate.  ∎
    """
    return math.sqrt(max(0.0, 1 - min(1.0, 2 * rate / places) ** (2 / (dimension - 1))))
