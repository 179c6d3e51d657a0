"""The invariant representation of triggered images, as a pure function of features."""

import torch
from torch import Tensor

from hallmark.schemes.encoder_losses import gathering, overlap


def invariance_loss(moved: Tensor, clean: Tensor, external: float) -> Tensor:
    """Gather triggered features in one place, apart from clean ones.

    Args:
        moved: Features of triggered images ``(B, D)``.
        clean: Features of clean images ``(C, D)``.
        external: Weight β / α of the second term.

    Returns:
        −log of the mean cosine between different triggered features, plus ``external`` times the mean cosine between
        their centre and clean features.  As in the authors' code, a term counts only where its mean cosine is positive.
    """
    together, among = gathering(moved), overlap(moved, clean)
    cluster = torch.where(together > 0, -together.clamp_min(1e-12).log(), torch.zeros_like(together))
    return cluster + external * among.clamp_min(0)
