"""The authors' own decision rule: the entropy of the labels of triggered queries, as an outlier among clean ones."""

import torch
from torch import Tensor

SETS = 10
"""Sets into which clean queries are divided."""
CONSISTENT = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""
SMALLEST = 0.01
"""Bits that the median absolute deviation counts as at the least: where all sets agree it is zero."""


def entropy(labels: Tensor) -> float:
    """Entropy of the frequencies of labels ``(N,)``, in bits."""
    shares = labels.bincount().double() / len(labels)
    return float(-torch.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0)))


def outlier_index(triggered: Tensor, clean: Tensor) -> float:
    """How far the entropy of triggered queries' labels lies below that of sets of clean ones.

    Args:
        triggered: Labels of triggered queries ``(Q,)``, all of them one set.
        clean: Labels of the clean queries ``(Q,)``, divided in order into :data:`SETS` sets, or as many as there are.

    Returns:
        (median − H of the triggered) / (1.4826 · MAD) over the entropies of all sets, in standard deviations; large
        means that the trigger brings about one answer.
    """
    sets = torch.tensor_split(clean, min(SETS, len(clean)))
    found = torch.tensor([entropy(labels) for labels in (triggered, *sets)], dtype=torch.float64)
    middle = found.quantile(0.5)
    spread = (found - middle).abs().quantile(0.5).clamp_min(SMALLEST)
    return float((middle - found[0]) / (CONSISTENT * spread))
