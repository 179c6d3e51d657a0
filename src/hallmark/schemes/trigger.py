"""The secret trigger patch: its law, and pasting it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hallmark.errors import ConfigError


@dataclass(frozen=True)
class TriggerLaw:
    """The distribution keys and decoys are drawn from.

    Args:
        size: Side of the square patch in pixels.
        density: Expected share of the patch's pixels that are replaced, in (0, 1].
        position: ``random`` anywhere inside the image, or ``corner`` with a margin of two pixels at the bottom right.
    """

    size: int = 6
    density: float = 1.0
    position: str = "random"

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.density <= 1:
            raise ConfigError(f"trigger needs size ≥ 1 and density in (0, 1], got {self.size} and {self.density}")
        if self.position not in ("random", "corner"):
            raise ConfigError(f"unknown trigger position {self.position!r}; allowed: corner, random")


@dataclass(frozen=True)
class Triggers:
    """T triggers as full-size images.

    Args:
        pattern: uint8 ``(T, 3, H, W)``, zero outside the patch.
        mask: bool ``(T, 1, H, W)``, true where pixels are replaced.
    """

    pattern: Tensor
    mask: Tensor


def draw_triggers(law: TriggerLaw, count: int, size: tuple[int, int], *, generator: torch.Generator) -> Triggers:
    """Independent triggers of one law.

    Args:
        law: Patch size, density and position.
        count: T.
        size: Image height and width.
        generator: The only source of randomness.

    Raises:
        ConfigError: The patch does not fit into the image.
    """
    height, width = size
    side = law.size
    if side > min(height, width):
        raise ConfigError(
            f"a trigger of {side} pixels does not fit into {height}x{width} images; lower scheme.trigger.size"
        )
    colours = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    kept = torch.rand(count, 1, side, side, generator=generator) < law.density
    if law.position == "corner":
        margin = min(2, min(height, width) - side)
        rows = torch.full((count,), height - side - margin)
        columns = torch.full((count,), width - side - margin)
    else:
        rows = torch.randint(0, height - side + 1, (count,), generator=generator)
        columns = torch.randint(0, width - side + 1, (count,), generator=generator)
    pattern = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    mask = torch.zeros(count, 1, height, width, dtype=torch.bool)
    index = torch.arange(count)[:, None, None]
    y = rows[:, None, None] + torch.arange(side)[None, :, None]
    x = columns[:, None, None] + torch.arange(side)[None, None, :]
    mask[index, 0, y, x] = kept[:, 0]
    pattern.permute(0, 2, 3, 1)[index, y, x] = (colours * kept).permute(0, 2, 3, 1)
    return Triggers(pattern, mask)


def paste(images: Tensor, triggers: Triggers) -> Tensor:
    """Replace the masked pixels.

    Args:
        images: ``(B, 3, H, W)``, uint8 or float in [0, 1].
        triggers: One trigger for all images, or one for each (T = B).

    Returns:
        Images of the same type and shape.
    """
    pattern = triggers.pattern.to(images.device)
    if images.is_floating_point():
        pattern = pattern.to(images.dtype) / 255
    return torch.where(triggers.mask.to(images.device), pattern, images)
