"""Labelled images, in memory or, where that is too small, in their files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hallmark.data.objects import check_objects
from hallmark.data.stored import StoredImages
from hallmark.errors import DataError

_RESIZE_BATCH = 1024


@dataclass(frozen=True, eq=False)
class ImageSet:
    """RGB images with labels.

    Args:
        name: Name that results carry.
        images: uint8 ``(N, 3, H, W)``, N at least 1; a :class:`~hallmark.data.stored.StoredImages` may stand in for it.
        labels: int64 ``(N,)`` in 0 … classes - 1, or -1 where there is none.
        classes: Number of classes.
        groups: int64 ``(N,)`` or None.  Samples of one group are near-duplicates, such as frames of one video, and
            fall on one side of any split.
        indices: int64 ``(N,)`` or None.  Places of the samples in the split they were loaded from.
        objects: float32 ``(N, K, 6)`` or None.  What is where in each image; see :mod:`hallmark.data.objects`.

    Raises:
        DataError: If any of these does not hold.
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: int
    groups: Tensor | None = field(default=None, repr=False)
    indices: Tensor | None = field(default=None, repr=False)
    objects: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or not all(shape):
            raise DataError(f"images of {self.name!r} are {self.images.dtype} {shape}; they must be uint8 (N, 3, H, W)")
        for what, ids in (("labels", self.labels), ("groups", self.groups), ("indices", self.indices)):
            if ids is not None and (ids.dtype != torch.int64 or ids.shape != shape[:1]):
                raise DataError(
                    f"{what} of {self.name!r} are {ids.dtype} {tuple(ids.shape)}; they must be int64 ({shape[0]},)"
                )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= self.classes:
            raise DataError(f"labels of {self.name!r} are {low} to {high}; they must be -1 to {self.classes - 1}")
        if self.objects is not None:
            check_objects(self.objects, self.images, self.classes, self.name)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | Sequence[int], name: str | None = None) -> "ImageSet":
        """Return the samples at ``indices``, in that order.

        Args:
            indices: One or more int64 in 0 … N - 1.
            name: Name of the subset; by default that of the whole.

        Raises:
            DataError: If they are not that.
        """
        at = torch.as_tensor(indices, device=self.images.device)
        if at.dtype != torch.int64 or at.ndim != 1 or not len(at) or at.min() < 0 or at.max() >= len(self):
            raise DataError(f"a subset of {self.name!r} takes one or more int64 indices in 0 to {len(self) - 1}")
        return replace(
            self,
            name=self.name if name is None else name,
            images=self.images.take(at) if isinstance(self.images, StoredImages) else self.images[at],
            labels=self.labels[at],
            groups=None if self.groups is None else self.groups[at],
            indices=None if self.indices is None else self.indices[at],
            objects=None if self.objects is None else self.objects[at],
        )

    def unlabelled(self) -> "ImageSet":
        """Return the same images with every label -1 and no objects, for whoever must not see labels."""
        return replace(self, labels=torch.full_like(self.labels, -1), objects=None)


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize uint8 ``(N, C, H, W)`` to a side, or a height and width, by antialiased bilinear interpolation."""
    height, width = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == (height, width):
        return images
    return torch.cat(
        [
            F.interpolate(batch.float(), (height, width), mode="bilinear", antialias=True).round_().to(torch.uint8)
            for batch in images.split(_RESIZE_BATCH)
        ]
    )


def decode(path: str | Path, crop: float = 0.0) -> Tensor:
    """Return the image in a file as RGB, uint8 ``(3, H, W)``.

    Args:
        path: The file.
        crop: Side of the central square that is kept, as a share of the shorter side; 0 keeps all.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        with Image.open(path) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB")))
    except (OSError, SyntaxError, ValueError) as error:  # all that Pillow raises on a damaged file
        raise DataError(f"image {str(path)!r} cannot be read: {error}") from error
    if crop:
        height, width, _ = pixels.shape
        side = round(crop * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    return pixels.permute(2, 0, 1)
