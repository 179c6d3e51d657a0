"""Owner, attacker and test data that never share an image."""

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from hallmark.core.random import generator
from hallmark.errors import DataError


def split_indices(
    n: int, fractions: Mapping[str, float], *, seed: int, groups: Tensor | None = None
) -> dict[str, Tensor]:
    """Split ``range(n)`` at random into disjoint parts.

    Groups stay whole, so with few or large ones the sizes are as near to the fractions as that allows.

    Args:
        n: Number of samples.
        fractions: Share of each part, e.g. ``{"owner": 2 / 3, "attacker": 1 / 3}``; positive, at most 1 together.  The
            parts cover everything if they sum to 1.
        seed: Seed of the draw; equal arguments give equal parts.
        groups: Group of each sample, int64 ``(n,)``.

    Returns:
        Sorted int64 indices by part.

    Raises:
        DataError: If the fractions or groups do not fit, or a part would be empty.
    """
    total = math.fsum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total > 1 + 1e-9:
        raise DataError(f"split fractions {dict(fractions)} must be positive and sum to at most 1")
    if groups is None:
        groups = torch.arange(n)
    elif groups.shape != (n,):
        raise DataError(f"groups of shape {tuple(groups.shape)} do not fit {n} samples")

    members, counts = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)[1:]
    order = torch.randperm(len(counts), generator=generator(seed, "split"))
    # Lay the shuffled groups end to end on [0, n]; a group belongs to the part its middle falls in.
    sizes = counts[order].double()
    middles = torch.empty_like(sizes)
    middles[order] = sizes.cumsum(0) - sizes / 2
    ends = n * torch.tensor(list(fractions.values()), dtype=torch.float64).cumsum(0)
    if math.isclose(total, 1):
        ends[-1] = n
    part_of = torch.bucketize(middles, ends, right=True)[members]
    parts = {name: (part_of == i).nonzero().squeeze(1) for i, name in enumerate(fractions)}
    for name, indices in parts.items():
        if not len(indices):
            raise DataError(f"split part {name!r} of {n} samples in {len(counts)} groups is empty; use more data")
    return parts


def check_disjoint(parts: Mapping[str, Tensor], groups: Tensor | None = None) -> None:
    """Check that no sample, and no group of samples, is in two parts.

    Args:
        parts: Indices by part, each int64 ``(k,)``.
        groups: Group of each sample that the indices point at.

    Raises:
        DataError: If two parts share a sample or a group.
    """
    for (first, a), (second, b) in combinations(parts.items(), 2):
        what = "samples"
        if groups is not None:
            a, b, what = groups[a], groups[b], "groups"
        shared = int(torch.isin(a.unique(), b).sum())
        if shared:
            raise DataError(f"data parts {first!r} and {second!r} share {shared} {what}; they must be disjoint")
