"""Weights without a mark, from the host alone, where the paper trains 500 networks to collect them.

Hidden channels have no order: permuting the input channels of a layer, with the filters of the layer before, changes no
answer.  So every order of the host's channels is an unmarked network as good as the host.
"""

import torch
from torch import Tensor


def relatives(mean: Tensor, channels: int, count: int, noise: float, *, generator: torch.Generator) -> Tensor:
    """Mean filters ``(count, M)`` of networks related to the host: itself, noisy copies, and reordered ones.

    Row 0 is the host.  Of the others every second one keeps the host's order of channels, as what was trained on from
    it does; the rest have orders of their own.  All are disturbed by Gaussian noise whose standard deviation is uniform
    between 0 and ``noise`` root mean squares of the host's.

    Args:
        mean: The host's mean filter ``(M,)``.
        channels: Its input channels D, the first factor of M.
        count: How many, at least 1.
        noise: The largest noise, at least 0.
        generator: The only source of randomness.
    """
    rows = mean.view(channels, -1)
    found = [mean]
    for number in range(1, count):
        order = torch.arange(channels) if number % 2 else torch.randperm(channels, generator=generator)
        strength = noise * torch.rand((), generator=generator) * mean.square().mean().sqrt()
        found.append(rows[order].flatten() + strength * torch.randn(len(mean), generator=generator))
    return torch.stack(found)


def resampled(mean: Tensor, channels: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Mean filters ``(count, M)`` whose channels are drawn from the host's with replacement.

    Their values are distributed as the host's are, up to what another draw of channels would differ in: the detector
    must not learn the host's values by heart.
    """
    rows = mean.view(channels, -1)
    return rows[torch.randint(channels, (count, channels), generator=generator)].flatten(1)
