"""Objects in images as one tensor, so that they travel with the images they are in.

``(N, K, 6)`` float32: class, left, top, right, bottom in pixels, and 1 for a crowd that nobody has to find one by one
(COCO's ``iscrowd``).  An image with fewer than K objects is filled up with rows of class -1.
"""

from typing import TypedDict

import torch
from torch import Tensor

from hallmark.errors import DataError


class Detections(TypedDict, total=False):
    """What is in one image, as torchvision and torchmetrics name it."""

    boxes: Tensor
    """float32 ``(M, 4)``: left, top, right, bottom in pixels."""
    labels: Tensor
    """int64 ``(M,)``: classes from 0 on."""
    scores: Tensor
    """float32 ``(M,)``, of what a network found."""
    iscrowd: Tensor
    """int64 ``(M,)``, of what is there."""


def check_objects(objects: Tensor, images: Tensor, classes: int, name: str) -> None:
    """Refuse objects that do not fit the images ``(N, 3, H, W)`` of a set.

    Raises:
        DataError: They are of another shape or type, of no class, empty, or outside their image.
    """
    if objects.dtype != torch.float32 or objects.ndim != 3 or objects.shape[::2] != (len(images), 6):
        raise DataError(
            f"objects of {name!r} are {objects.dtype} {tuple(objects.shape)}; they must be float32 "
            f"({len(images)}, K, 6): class, left, top, right, bottom, crowd"
        )
    there = objects[objects[..., 0] >= 0]
    if len(there) and int(there[:, 0].max()) >= classes:
        raise DataError(f"objects of {name!r} have class {int(there[:, 0].max())}; there are {classes}")
    height, width = images.shape[2:]
    corners, far = there[:, 1:3], there[:, 3:5]
    if bool(((corners < 0) | (far <= corners) | (far > far.new_tensor([width, height]))).any()):
        raise DataError(f"objects of {name!r} have boxes that are empty or leave their {height}x{width} image")


def in_each(objects: Tensor) -> list[Detections]:
    """What is in each image, without the filling, from ``(N, K, 6)``."""
    there = [rows[rows[:, 0] >= 0] for rows in objects]
    return [{"boxes": rows[:, 1:5], "labels": rows[:, 0].long(), "iscrowd": rows[:, 5].long()} for rows in there]
