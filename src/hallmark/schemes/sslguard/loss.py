"""What decoder, trigger and encoder minimise, as pure functions of decoded features."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def secret_cosine(decoded: Tensor, secret: Tensor) -> Tensor:
    """Mean cosine between decoded features ``(B, S)`` and the secret vector ``(S,)``."""
    return F.cosine_similarity(decoded, secret[None], dim=1).mean()


def secret_loss(telling: Sequence[Tensor], silent: Sequence[Tensor], secret: Tensor) -> Tensor:
    """Make some decoded features give the secret away, and others stand at right angles to it.

    Args:
        telling: Decoded features ``(B, S)`` whose mean cosines to the secret are to be large.
        silent: Those whose mean cosines are to vanish.
        secret: The secret vector ``(S,)``.

    Returns:
        Minus the sum of the first mean cosines, plus the sum of squares of the second ones.
    """
    told = torch.stack([secret_cosine(decoded, secret) for decoded in telling]).sum()
    kept = torch.stack([secret_cosine(decoded, secret) for decoded in silent]).square().sum()
    return kept - told
