"""Images that are made for a key, and data sets that hold them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hallmark.core.scheme import Images
from hallmark.data.pairs import to_bytes

RADIUS = 8 / 255
"""Change of a pixel that nobody notices, the usual one of adversarial examples."""


def adapted(
    images: Tensor, loss: Callable[[Tensor], Tensor], *, steps: int, like: nn.Module, radius: float = RADIUS
) -> Tensor:
    """Images near given ones that make a loss small, by sign steps whose length falls linearly to zero.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        loss: Of float images of that shape in [0, 1], one number.
        steps: Number of steps.
        like: The network that the loss asks; images go to its device.
        radius: Bound on the change of a pixel in [0, 1]; 1 leaves them free.

    Returns:
        uint8 ``(N, 3, H, W)``, no pixel further off than the bound.
    """
    device = next((p.device for p in like.parameters()), torch.device("cpu"))
    start = images.to(device).float() / 255
    change = torch.zeros_like(start)
    for number in range(steps):
        change.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss((start + change).clamp(0, 1)), change)
        length = radius / 4 * (1 - number / steps)
        change = (change.detach() - length * gradient.sign()).clamp(-radius, radius)
    return to_bytes(start + change.detach()).cpu()


def replaced(images: Images, before: Tensor, after: Tensor) -> Images:
    """A data set in which some images ``before`` are others ``after``, both uint8 ``(N, 3, H, W)``, in their place."""
    found = images.images.clone()
    for old, new in zip(before.to(found.device), after.to(found.device), strict=True):
        found[(images.images == old).flatten(1).all(1)] = new
    return replace(images, images=found)  # type: ignore[type-var]


def grown(images: Images, count: int, *, generator: torch.Generator) -> Images:
    """So many images in random order; where there are not as many, also shifted ones."""
    rows = torch.randperm(len(images), generator=generator)[:count]
    found = images.subset(rows)
    copies = -(-count // len(images))
    if copies == 1:
        return found
    shifted = torch.cat([torch.roll(found.images, copy, dims=3) for copy in range(copies)])[:count]
    repeated = torch.arange(count) % len(images)
    return replace(found.subset(repeated), images=shifted)  # type: ignore[type-var]
