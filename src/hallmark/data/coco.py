"""COCO 2017 as images of one size with boxes; pycocotools reads the annotations, through torchvision."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CocoDetection

from hallmark.data.images import decode, resize
from hallmark.data.opened import Opened

_PARTS = {"train": "train2017", "test": "val2017"}
_PADDING = (124, 116, 104)
"""ImageNet's mean colour: zero behind the normalisation that torchvision's networks pad after."""


def open_coco(root: Path, split: str, download: bool, *, padded: bool) -> Opened:
    """Open a split of COCO.  A class is the category's number less one; an image's label is that of its largest object.

    Stretching an image changes no IoU, so a network that stretches its inputs anyway is measured as it would be on the
    files.  Areas change, which matters to AP by size alone.

    Args:
        root: Data folder; COCO is in ``coco/``.
        split: ``"train"`` (train2017) or ``"test"`` (val2017).
        download: Not possible here.
        padded: Whether images keep their proportions and are filled up with :data:`_PADDING`; otherwise they are
            stretched to squares.
    """
    part = _PARTS[split]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        data = CocoDetection(str(root / "coco" / part), str(root / "coco" / "annotations" / f"instances_{part}.json"))
    found = [_objects(data.coco.loadAnns(data.coco.getAnnIds(image))) for image in data.ids]
    files = [data.coco.imgs[image] for image in data.ids]
    sides = torch.tensor([[file["width"], file["height"]] for file in files], dtype=torch.float32)
    most = max(1, max(map(len, found), default=0))

    def read(indices: Tensor, size: int) -> Tensor:
        images = torch.tensor(_PADDING, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(indices), 1, size, size)

        def fill(slot: int) -> None:
            index = int(indices[slot])
            pixels = decode(Path(data.root) / files[index]["file_name"])
            width, height = _scaled(sides[index], size) if padded else (size, size)
            images[slot, :, :height, :width] = resize(pixels[None], (height, width))[0]

        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            list(pool.map(fill, range(len(indices))))
        return images

    def objects(indices: Tensor, size: int) -> Tensor:
        rows = torch.zeros(len(indices), most, 6)
        rows[..., 0] = -1
        for slot, index in enumerate(indices.tolist()):
            scaled = found[index].clone()
            reached = torch.tensor(_scaled(sides[index], size) if padded else (size, size))
            scaled[:, 1:5] *= (reached / sides[index]).repeat(2)
            scaled[:, 1:5] = torch.minimum(scaled[:, 1:5], reached.repeat(2).float())
            rows[slot, : len(scaled)] = scaled
        return rows

    return Opened(torch.tensor([_largest(rows) for rows in found]), read, objects=objects)


def _objects(annotations: list[dict]) -> Tensor:
    """Rows ``(M, 6)`` of an image's annotations, those without an area left out."""
    rows = [
        (a["category_id"] - 1, x, y, x + width, y + height, a.get("iscrowd", 0))
        for a in annotations
        for x, y, width, height in [a["bbox"]]
        if width > 0 and height > 0
    ]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 6)


def _largest(rows: Tensor) -> int:
    if not len(rows):
        return -1
    areas = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])
    return int(rows[areas.argmax(), 0])


def _scaled(sides: Tensor, size: int) -> tuple[int, int]:
    """Width and height of an image whose longer side becomes ``size``."""
    width, height = (sides * (size / sides.max())).round().clamp_min(1).int().tolist()
    return width, height
