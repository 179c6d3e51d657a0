"""Triggers reverse-engineered from a network alone: the smallest mask and pattern that bring something about."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trigger:
    """A mask and a pattern that are laid over images.

    Args:
        mask: m ``(H, W)`` in (0, 1).
        pattern: p ``(3, H, W)`` in (0, 1).
    """

    mask: Tensor
    pattern: Tensor

    @property
    def size(self) -> float:
        """Mean of the mask: its L1 norm as a share of the image."""
        return self.mask.mean().item()

    def stamp(self, images: Tensor) -> Tensor:
        """``(1 − m) x + m p`` for images ``(B, 3, H, W)`` in [0, 1]."""
        return (1 - self.mask) * images + self.mask * self.pattern


def smallest_trigger(
    effect: Callable[[Tensor], tuple[Tensor, bool]],
    images: Tensor,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Trigger | None:
    """The smallest trigger found that has an effect on images, or None if none had it.

    Adam, with the β of 0.5 and 0.9 of Neural Cleanse (Wang et al. 2019) and DECREE (Feng et al. 2023), makes the effect
    large and the mean of the mask small; the weight of the mask grows while the effect suffices and shrinks while it
    does not.

    Args:
        effect: From stamped images to a number that is to be large, and whether it suffices.
        images: Those that are stamped, ``(B, 3, H, W)`` in [0, 1].
        steps: Steps.
        lr: Learning rate, on the logits of mask and pattern.
        generator: Draws where both start.
    """
    shape = images.shape[1:]
    pattern = torch.randn(shape, generator=generator).to(images).requires_grad_(True)
    mask = torch.randn(shape[1:], generator=generator).to(images).requires_grad_(True)
    optimiser = torch.optim.Adam([pattern, mask], lr=lr, betas=(0.5, 0.9))
    best, least, weight = None, 1.0, 0.1
    for _ in range(steps):
        with torch.enable_grad():
            shown = Trigger(mask.sigmoid(), pattern.sigmoid())
            reached, suffices = effect(shown.stamp(images))
            if suffices and shown.size < least:
                best, least = Trigger(shown.mask.detach(), shown.pattern.detach()), shown.size
            weight = min(max(weight * (1.1 if suffices else 1 / 1.1), 1e-3), 1e3)
            loss = weight * shown.mask.mean() - reached
            pattern.grad, mask.grad = torch.autograd.grad(loss, [pattern, mask])
        optimiser.step()
    return best
