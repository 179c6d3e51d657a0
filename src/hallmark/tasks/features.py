"""Features of a frozen encoder, computed once and shared by every probe."""

import torch
from torch import Tensor, nn

from hallmark.models.inference import Answering
from hallmark.precision import fast


def encode(encoder: nn.Module, images: Tensor, *, batch: int = 4096) -> Tensor:
    """Features of stored images.

    Args:
        encoder: Maps float images in [0, 1] to features ``(B, D)``; a frozen copy is run in bfloat16 where
            that is native.
        images: uint8 ``(N, 3, H, W)``.
        batch: Images moved to the device at a time.

    Returns:
        float32 ``(N, D)`` on the CPU.
    """
    device = next(encoder.parameters()).device
    answering = Answering(encoder)
    with torch.no_grad(), fast(device):
        parts = [answering(part.to(device).float() / 255).float().cpu() for part in torch.split(images, batch)]
    return torch.cat(parts)
