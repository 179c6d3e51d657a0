"""The receiver operating characteristic of a detector, from the scores it gave to marked and to unmarked networks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from hallmark.stats import Proportion, clopper_pearson

Scores = Sequence[float]
_BESIDE = 1e-9


@dataclass(frozen=True)
class Area:
    """The area under the curve, the probability that a marked network outscores an unmarked one, with its interval."""

    value: float
    low: float
    high: float


def curve(marked: Scores, unmarked: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates at every threshold, rising from (0, 0) to (1, 1)."""
    fpr, tpr, _ = roc_curve(*_labelled(marked, unmarked), drop_intermediate=False)
    return fpr, tpr


def area(marked: Scores, unmarked: Scores, confidence: float = 0.95) -> Area:
    """Area under the curve; ties count half.

    The interval is Newcombe's fifth (Statistics in Medicine 25, 2006): the areas whose distance from the one found is
    within the normal quantile of their *own* standard error.  Unlike those of Hanley and McNeil or of DeLong it does
    not shrink to a point where all marked networks outscore all others, and stays within 0 … 1.
    """
    found = float(roc_auc_score(*_labelled(marked, unmarked)))
    z = float(norm.ppf((1 + confidence) / 2))
    m, n = len(marked), len(unmarked)

    def variance(theta: float) -> float:
        more = ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return theta * (1 - theta) * (1 + more) / (m * n)

    def beyond(theta: float) -> float:
        return float((theta - found) ** 2 - z**2 * variance(theta))

    # both ends of 0 … 1 lie beyond, unless the area found is there itself; just beside it nothing does
    low = brentq(beyond, 0.0, min(found, 1 - _BESIDE)) if found > 0 else 0.0
    high = brentq(beyond, max(found, _BESIDE), 1.0) if found < 1 else 1.0
    return Area(found, low, high)


def true_positives(marked: Scores, unmarked: Scores, fpr: float) -> Proportion:
    """Marked networks found at the lowest threshold that accuses at most a share ``fpr`` of the unmarked ones.

    The interval is that of a proportion at a given threshold; it does not know that the threshold was read off the
    same unmarked networks.
    """
    false, true = curve(marked, unmarked)
    found = round(float(true[false <= fpr].max()) * len(marked))
    return clopper_pearson(found, len(marked))


def _labelled(marked: Scores, unmarked: Scores) -> tuple[NDArray[np.int64], list[float]]:
    return np.repeat([1, 0], [len(marked), len(unmarked)]), [*marked, *unmarked]
