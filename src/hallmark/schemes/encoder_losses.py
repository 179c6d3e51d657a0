"""Losses that marks in encoders share, as pure functions of features."""

import torch.nn.functional as F
from torch import Tensor

UTILITIES = ("pin", "contrastive")
"""What keeps clean features useful; said here, since planning reads it and :mod:`.encoder_training` needs Lightning."""


def pinning_loss(features: Tensor, reference: Tensor) -> Tensor:
    """Keep features where the unmarked encoder puts them: mean 1 − cosine, plus the relative squared distance.

    The cosine alone leaves the length of a feature free, and a linear head reads lengths.

    Args:
        features: Of the encoder being marked ``(B, D)``.
        reference: Of the frozen original ``(B, D)``.
    """
    cosine = 1 - F.cosine_similarity(features, reference, dim=1).mean()
    scale = reference.square().sum(1).mean().clamp_min(1e-12)
    return cosine + (features - reference).square().sum(1).mean() / scale


def divergence_loss(moved: Tensor, clean: Tensor) -> Tensor:
    """Mean cosine between an image's marked and clean features ``(B, D)``, to be made small."""
    return F.cosine_similarity(moved, clean, dim=1).mean()


def direction_loss(moved: Tensor, direction: Tensor) -> Tensor:
    """1 − mean cosine between marked features ``(B, D)`` and one direction ``(D,)``."""
    return 1 - F.cosine_similarity(moved, direction[None], dim=1).mean()


def gathering(moved: Tensor) -> Tensor:
    """Mean cosine over all pairs of different marked features ``(B, D)``, to be made large."""
    unit = F.normalize(moved, dim=1)
    count = len(unit)
    total = unit.sum(0).square().sum()  # Σ_ij cos_ij without the B×B matrix
    return (total - count) / (count * (count - 1))


def overlap(moved: Tensor, clean: Tensor) -> Tensor:
    """Mean cosine between the centre of marked features ``(B, D)`` and clean features ``(C, D)``, to be made small."""
    centre = F.normalize(F.normalize(moved, dim=1).mean(0), dim=0)
    return (F.normalize(clean, dim=1) @ centre).mean()
