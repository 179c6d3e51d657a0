"""How the numbers of a marked model are distributed, beside those of its original, for people to look at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hallmark.errors import ConfigError

Curve = list[list[float]]
"""Centres of bins and the shares of numbers in them."""


@dataclass(frozen=True)
class Bins:
    """Which bins one kind of numbers is counted in.

    Args:
        bins: How many, all of one width.
        low: Where they begin; empty for as far below zero as the largest magnitude of marked and original numbers.
        high: Where they end; empty for as far above zero.
    """

    bins: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f"a histogram needs at least 2 bins, got {self.bins}")
        if (self.low is None) != (self.high is None):
            raise ConfigError("a histogram's low and high are given both or not at all")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"a histogram's low must be below its high, got {self.low} and {self.high}")


def histograms(samples: Mapping[str, Tensor], bins: Bins) -> dict[str, Curve]:
    """Counts of several samples in the same bins, so that they can be drawn over each other.

    Args:
        samples: 1-D numbers by whose they are; those outside the bins are left out.
        bins: The bins.

    Returns:
        For each sample as many ``[centre, share]`` as there are bins, both to six significant digits.
    """
    widest = max(float(numbers.abs().max()) for numbers in samples.values()) or 1.0
    low, high = (-widest, widest) if bins.low is None or bins.high is None else (bins.low, bins.high)
    found = {}
    for whose, numbers in samples.items():
        counts, edges = torch.histogram(numbers.double(), bins.bins, range=(low, high))
        centres = (edges[1:] + edges[:-1]) / 2
        shares = counts / len(numbers)
        found[whose] = [[rounded(x), rounded(y)] for x, y in zip(centres.tolist(), shares.tolist(), strict=True)]
    return found


def rounded(number: float) -> float:
    """Six significant digits, as in the rows; a bin's centre at zero is not −1e-17."""
    return 0.0 if math.isclose(number, 0.0, abs_tol=1e-12) else float(f"{number:.6g}")
