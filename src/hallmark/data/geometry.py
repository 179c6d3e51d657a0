"""Moving images about: what geometric augmentation does to pairs of images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TURN = 30.0
"""Largest turn, in degrees either way."""
ZOOM = 1.5
"""Largest magnification: a crop of at least 1 / ZOOM of each side is resized to the whole."""


def move(images: Tensor, *, generator: torch.Generator, total: int | None = None, start: int = 0) -> Tensor:
    """Turn, crop, resize and mirror images, each by an amount and at a place of its own.

    Args:
        images: Float ``(B, C, H, W)``; what has to be moved together, such as a pair, is one image of more channels.
        generator: The only source of randomness, on the CPU.
        total: Images of the whole batch, where these are one rank's share of it; every rank then draws for all.
        start: Place of the first of these images in the whole batch.

    Returns:
        ``(B, C, H, W)``, bilinear; what would lie outside is reflected at the edge.
    """
    drawn = torch.rand(total or len(images), 5, generator=generator)[start : start + len(images)].to(images.device)
    turn, zoom, across, down, mirrored = drawn.unbind(1)
    angle = (2 * turn - 1) * (TURN * math.pi / 180)
    side = 1 / (1 + (ZOOM - 1) * zoom)  # of the crop, as a share of the image's
    flip = torch.where(mirrored < 0.5, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    to = [(2 * place - 1) * (1 - side) for place in (across, down)]  # a crop that is not turned stays inside
    matrix = torch.stack([flip * cos, -sin, to[0], flip * sin, cos, to[1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
