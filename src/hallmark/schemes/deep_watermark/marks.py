"""Marks to hide: bit grids, logos and colour images, all drawn at random."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.errors import ConfigError, allowed

BLANK = 1.0
"""Level of the white image that stands for "no mark" (δ0)."""


@dataclass(frozen=True)
class MarkLaw:
    """The distribution marks and decoys are drawn from.

    Args:
        kind: ``bits``, a grid of black and white cells, each a fair coin; ``logo``, dark figures on much white;
            ``colour``, a random colour image.
        cells: Cells a side: of the grid (``bits``), of the places that may hold a figure (``logo``), of the coarse
            colours that are interpolated (``colour``).  The paper's grid has 16.
    """

    kind: str = "bits"
    cells: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(allowed(self.kind, KINDS, "kind of mark"))
        least = 8 if self.kind == "logo" else 4  # fewer may leave a mark empty
        if self.cells < least:
            raise ConfigError(f"a {self.kind} mark needs at least {least} cells a side, got {self.cells}")

    def require(self, side: int) -> None:
        """Raise ConfigError unless the cells fill images of this side evenly, four pixels or more each for logos."""
        least = 4 if self.kind == "logo" else 1
        if side % self.cells or side // self.cells < least:
            raise ConfigError(
                f"{self.cells} cells of at least {least} pixels do not divide a {self.kind} mark of side {side}; "
                "change scheme.mark.cells or pairs.side"
            )


def draw_marks(law: MarkLaw, count: int, side: int, *, generator: torch.Generator) -> Tensor:
    """Independent marks of one law.

    Args:
        law: Kind and cells.
        count: M.
        side: Height and width, a multiple of the cells.
        generator: The only source of randomness.

    Returns:
        uint8 ``(M, 3, side, side)``.
    """
    law.require(side)
    return KINDS[law.kind](law.cells, count, side, generator).mul(255).round().to(torch.uint8)


def read_bits(images: Tensor, cells: int) -> Tensor:
    """Bits of grids: whether each cell is brighter than mid-grey on average.

    Args:
        images: Float ``(B, 3, H, W)`` in [0, 1].
        cells: Cells a side.

    Returns:
        bool ``(B, cells²)``.
    """
    return F.adaptive_avg_pool2d(images, cells).mean(1).flatten(1) > 0.5


def _bits(cells: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, (count, 1, cells, cells), generator=generator).float()
    return F.interpolate(bits, size=side, mode="nearest").expand(-1, 3, -1, -1)


def _logo(cells: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    """A disc, ring, bar or cross in every fourth cell or so, the whole shifted at random; one dark colour a logo."""
    cell = side // cells
    steps = (torch.arange(cell) + 0.5) / cell * 2 - 1
    y, x = steps[:, None], steps[None, :]
    radius = (y.square() + x.square()).sqrt()
    figures = torch.stack(
        [
            radius < 0.8,
            (radius < 0.9) & (radius > 0.5),
            (y.abs() < 0.4) & (x.abs() < 0.95),
            (y.abs() < 0.3) | (x.abs() < 0.3),
        ]
    )
    chosen = figures[torch.randint(0, len(figures), (count, cells, cells), generator=generator)]
    chosen = chosen & (torch.rand(count, cells, cells, 1, 1, generator=generator) < 0.25)
    ink = chosen.permute(0, 1, 3, 2, 4).reshape(count, 1, side, side)
    shifts = torch.randint(0, cell, (count, 2), generator=generator).tolist()
    ink = torch.stack([torch.roll(one, shift, (1, 2)) for one, shift in zip(ink, shifts, strict=True)])
    colour = 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
    return BLANK + ink * (colour - BLANK)


def _colour(cells: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random colours at coarse places, interpolated smoothly."""
    coarse = torch.rand(count, 3, cells, cells, generator=generator)
    return F.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


KINDS = {"bits": _bits, "logo": _logo, "colour": _colour}
"""Marks ``(M, 3, side, side)`` in [0, 1] by kind, from cells, count, side and generator."""
