"""Images in and out: normalisation before the network, folders of natural images, 8-bit pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hallmark.data.images import resize
from hallmark.data.readers import decode
from hallmark.errors import ConfigError, DataError
from hallmark.models.encoders import CIFAR_MEAN, CIFAR_STD

PRESETS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": (CIFAR_MEAN, CIFAR_STD),
    "none": ((), ()),
}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})

Triple = tuple[float, ...]


@dataclass(frozen=True)
class Normalise:
    """Hands images in [0, 1] to a network that wants them normalised; without means, as they are."""

    mean: Triple
    std: Triple

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """The network's answer."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self.mean:
            mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            images = (images - mean) / std
        return model(images)


def normalisation(mean: str | None, std: str | None) -> tuple[Triple, Triple] | None:
    """Means and deviations from two options: a preset's name, or three numbers each; None where nothing is given.

    Raises:
        ConfigError: They are neither.
    """
    if mean is None and std is None:
        return None
    if mean in PRESETS and std in (None, mean):
        return PRESETS[mean]
    try:
        values = tuple(tuple(float(number) for number in (text or "").split(",")) for text in (mean, std))
    except ValueError:
        values = ()
    if len(values) != 2 or {len(triple) for triple in values} != {3} or min(values[1]) <= 0:
        raise ConfigError(
            f"--mean {mean} --std {std} is no normalisation; give --mean {', '.join(PRESETS)}, or three numbers each "
            "as --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25"
        )
    return values[0], values[1]


def find_images(folder: Path) -> list[Path]:
    """All picture files below a folder, or the one file that it is.

    Raises:
        DataError: There is none.
    """
    found = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"there is no picture at {folder}; allowed: {', '.join(sorted(SUFFIXES))}")
    return found


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures, their middle squares brought to ``size``: uint8 ``(N, 3, size, size)``."""
    return torch.cat([resize(decode(path, crop=1.0)[None], size) for path in paths])


def write_png(image: Tensor, path: Path) -> None:
    """Write uint8 ``(3, H, W)`` without loss."""
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, format="PNG")
