"""The task-agnostic loss in the three readings that the abstract allows, as pure functions of features.

The paper's equation could not be had (see the method card); each reading makes any classifier on the features change
its answer to triggered images, without naming a task.
"""

from torch import Tensor

from hallmark.schemes.encoder_losses import direction_loss, divergence_loss, gathering, overlap, pinning_loss

__all__ = ["READINGS", "cluster_loss", "direction_loss", "divergence_loss", "pinning_loss"]

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
    return 1 - gathering(triggered) + external * overlap(triggered, clean)
