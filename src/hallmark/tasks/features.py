"""Features of a frozen encoder, computed once and shared by every probe."""

import torch
from torch import Tensor, nn


def encode(encoder: nn.Module, images: Tensor, *, batch: int = 512) -> Tensor:
    """Features of stored images.

    Args:
        encoder: Maps float images in [0, 1] to features ``(B, D)``; run in evaluation mode under bfloat16 autocast.
        images: uint8 ``(N, 3, H, W)``.
        batch: Images per forward pass.

    Returns:
        float32 ``(N, D)`` on the CPU.
    """
    device = next(encoder.parameters()).device
    modes = [(module, module.training) for module in encoder.modules()]  # a frozen BatchNorm may differ from the rest
    encoder.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        parts = [encoder(part.to(device).float() / 255).float().cpu() for part in torch.split(images, batch)]
    for module, mode in modes:
        module.training = mode
    return torch.cat(parts)
