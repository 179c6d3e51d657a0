"""Embedding and extraction losses, with the paper's weights and the released code's."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

TERMS = ("pixel", "perceptual", "adversarial", "mark", "clean", "consistency")


@dataclass(frozen=True)
class Weights:
    """What each term counts.

    Args:
        pixel: MSE between marked and clean output.
        perceptual: Distance of the two in a perceptual network's features.
        adversarial: The discriminator's view of the marked output.
        mark: MSE between what R reads from marked outputs and the mark.
        clean: MSE between what R reads from inputs, and from clean outputs, and white.
        consistency: MSE between what R reads from two halves of a batch.
        gan: ``cross_entropy``, or ``least_squares``.
    """

    pixel: float
    perceptual: float
    adversarial: float
    mark: float
    clean: float
    consistency: float
    gan: str

    def without(self, terms: tuple[str, ...]) -> "Weights":
        """The same with some terms left out."""
        return replace(self, **dict.fromkeys(terms, 0.0))


PRESETS = {
    "paper": Weights(1.0, 1.0, 0.01, 1.0, 1.0, 1.0, "cross_entropy"),
    "code": Weights(1e4, 0.0, 0.01, 1e4, 1e4, 1e4, "least_squares"),
}
"""The text's λ, all one but 0.01 for the adversarial term; and the defaults of the released code."""


def gan_loss(logits: Tensor, *, real: bool, form: str) -> Tensor:
    """How far a discriminator's logits are from calling images real (or made)."""
    wanted = torch.full_like(logits, float(real), dtype=torch.float32)
    if form == "least_squares":
        return F.mse_loss(logits.float(), wanted)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)


def extraction_loss(read: Tensor, unmarked: Tensor, marks: Tensor, blank: float, weights: Weights) -> Tensor:
    """What R is trained by.

    Args:
        read: From marked images ``(B, 3, H, W)``; an even number, the second half bearing the marks of the first.
        unmarked: From inputs and clean outputs ``(2 U, 3, H, W)``, as many of the one as of the other.
        marks: What should have been read ``(B, 3, H, W)``.
        blank: Level that should have been read from unmarked images.
        weights: Of ``mark``, ``clean`` (for inputs and for clean outputs) and ``consistency``.
    """
    first, second = read.chunk(2)
    return (
        weights.mark * F.mse_loss(read, marks)
        + weights.clean * 2 * (unmarked - blank).square().mean()
        + weights.consistency * F.mse_loss(first, second)
    )
