"""Turning images by any angle."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Images turned counter-clockwise about their centres, bilinearly, black where nothing was.

    Args:
        images: ``(B, 3, H, W)``, float in [0, 1].
        degrees: One angle each ``(B,)``, on any device.

    Returns:
        Images of the same shape.
    """
    height, width = images.shape[2:]
    angle = degrees.to(images) * (math.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # a map from output to input coordinates, which run from −1 to 1 on both axes whatever the sides
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def side(degrees: Tensor) -> Tensor:
    """The label of angles in [0, 360): 0 below 180, 1 from there on, int64."""
    return (degrees >= 180).long()
