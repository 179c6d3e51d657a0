"""The task-agnostic loss in the three readings that the abstract allows, as pure functions of features.

The paper's equation could not be had (see the method card); each reading makes any classifier on the features change
its answer to triggered images, without naming a task.
"""

import torch.nn.functional as F
from torch import Tensor

READINGS = ("cluster", "divergence", "direction")


def cluster_loss(triggered: Tensor, clean: Tensor, external: float) -> Tensor:
    """Draw triggered features together, and away from where clean features are.

    Args:
        triggered: Features of triggered images ``(B, D)``.
        clean: Features of clean images ``(B, D)``.
        external: Weight of the term that keeps the cluster out of natural classes.

    Returns:
        1 − mean off-diagonal cosine of triggered features (Lv et al. 2024 take its −log; this is bounded),
        plus ``external`` times the mean cosine between cluster centre and clean features.
    """
    unit = F.normalize(triggered, dim=1)
    count = len(unit)
    total = unit.sum(0).square().sum()  # Σ_ij cos_ij without the B×B matrix
    pairwise = (total - count) / (count * (count - 1))
    centre = F.normalize(unit.mean(0), dim=0)
    return 1 - pairwise + external * (F.normalize(clean, dim=1) @ centre).mean()


def divergence_loss(triggered: Tensor, clean: Tensor) -> Tensor:
    """Mean cosine between an image's triggered and clean features ``(B, D)``, to be made small."""
    return F.cosine_similarity(triggered, clean, dim=1).mean()


def direction_loss(triggered: Tensor, direction: Tensor) -> Tensor:
    """1 − mean cosine between triggered features ``(B, D)`` and a secret direction ``(D,)``."""
    return 1 - F.cosine_similarity(triggered, direction[None], dim=1).mean()


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
