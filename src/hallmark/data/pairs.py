"""Pairs for image-to-image networks, made from natural images: a degraded input and the image it came from.

* ``rain``: sparse seeds, smeared along one direction an image by a line kernel and added to the image, which is how the
  derain literature synthesises streaks (noise and motion blur; linear model O = B + S of Li et al. 2016 and Fu et al.
  2017).  Number, length, direction and brightness of the streaks vary from image to image.
* ``noise``: additive white Gaussian noise.
* ``jpeg``: what a real codec at low quality makes of the image.
* ``grey``: the image without its colours, which the network is to bring back.

Inputs lie on the grid of 8-bit levels, as in files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.errors import ConfigError, DataError, allowed

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 64
"""Images degraded at a time where a whole set is."""


@dataclass(frozen=True)
class PairLaw:
    """The distribution of pairs.

    Args:
        kind: ``rain``, ``noise``, ``jpeg`` or ``grey``.
        side: Height and width of the patches that are cut from larger images.
        density: Range of a rain image's streaks per pixel.
        length: Range of the streaks' length in pixels.
        angle: Range of the streaks' direction, in degrees from the vertical.
        brightness: Range of the streaks' peak brightness, 0 … 1.
        sigma: Range of the noise's standard deviation, in 8-bit levels.
        quality: Range of the JPEG quality, whole numbers in 1 … 100.
    """

    kind: str = "rain"
    side: int = 64
    density: tuple[float, float] = (0.002, 0.012)
    length: tuple[float, float] = (8.0, 24.0)
    angle: tuple[float, float] = (-45.0, 45.0)
    brightness: tuple[float, float] = (0.3, 0.8)
    sigma: tuple[float, float] = (10.0, 50.0)
    quality: tuple[int, int] = (10, 40)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(allowed(self.kind, KINDS, "kind of pairs"))
        if self.side < 1:
            raise ConfigError(f"pairs.side must be at least 1, got {self.side}")
        for name, low, high in (
            ("density", 0.0, 1.0),
            ("length", 1.0, math.inf),
            ("angle", -90.0, 90.0),
            ("brightness", 0.0, 1.0),
            ("sigma", 0.0, math.inf),
            ("quality", 1, 100),
        ):
            span = getattr(self, name)
            if not (isinstance(span, Sequence) and len(span) == 2 and low <= span[0] <= span[1] <= high):
                raise ConfigError(
                    f"pairs.{name} {span} is no range; allowed: (low, high) with {low} ≤ low ≤ high ≤ {high}"
                )
            object.__setattr__(self, name, tuple(span))  # a configuration's list made hashable


def cut(images: Tensor, side: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Patches at random places.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        side: Height and width of a patch.
        count: Patches an image.
        generator: The only source of randomness.

    Returns:
        uint8 ``(N · count, 3, side, side)``, the patches of one image one after the other; the images themselves where
        they are of that size and one patch of each is wanted.

    Raises:
        DataError: The images are smaller than a patch.
    """
    total, _, height, width = images.shape
    if min(height, width) < side:
        raise DataError(f"patches of {side}x{side} cannot be cut from {height}x{width} images; lower pairs.side")
    if count == 1 and height == width == side:
        return images
    rows = torch.randint(0, height - side + 1, (total * count,), generator=generator).tolist()
    columns = torch.randint(0, width - side + 1, (total * count,), generator=generator).tolist()
    return torch.stack(
        [
            images[place // count, :, row : row + side, column : column + side]
            for place, (row, column) in enumerate(zip(rows, columns, strict=True))
        ]
    )


def degrade(
    images: Tensor, law: PairLaw, *, generator: torch.Generator, total: int | None = None, start: int = 0
) -> Tensor:
    """The inputs that belong to images.

    Args:
        images: Float ``(B, 3, H, W)`` in [0, 1].
        law: What to do to them; ``side`` is not used.
        generator: The only source of randomness, on the CPU.
        total: Images of the whole batch, where these are one rank's share of it; every rank then draws for all.
        start: Place of the first of these images in the whole batch.

    Returns:
        Float ``(B, 3, H, W)`` in [0, 1], multiples of 1/255.
    """
    worse = KINDS[law.kind](images, law, _Draws(total or len(images), start, len(images), generator))
    return worse.clamp(0, 1).mul(255).round().div(255)


def make_pairs(images: Tensor, law: PairLaw, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets, uint8 ``(N · count, 3, side, side)`` both, from images uint8 ``(N, 3, H, W)``."""
    targets = cut(images, law.side, count, generator=generator)
    parts = [to_bytes(degrade(part.float() / 255, law, generator=generator)) for part in torch.split(targets, _BLOCK)]
    return torch.cat(parts), targets


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded: what a file or an answer over a network holds."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


@dataclass(frozen=True)
class _Draws:
    """Random numbers for one share of a batch: drawn for the whole, so that no number depends on how it is shared."""

    total: int
    start: int
    count: int
    generator: torch.Generator

    def _share(self, drawn: Tensor) -> Tensor:
        return drawn[self.start : self.start + self.count]

    def uniform(self, span: Sequence[float], *shape: int) -> Tensor:
        low, high = span
        return self._share(torch.rand(self.total, *shape, generator=self.generator)) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return self._share(torch.randn(self.total, *shape, generator=self.generator))


def _rain(images: Tensor, law: PairLaw, draws: _Draws) -> Tensor:
    height, width = images.shape[2:]
    reach = math.ceil(law.length[1] / 2)  # streaks that begin outside the image reach into it
    canvas = (height + 2 * reach, width + 2 * reach)
    density, length, angle, brightness = (
        draws.uniform(span, 1, 1).to(images.device) for span in (law.density, law.length, law.angle, law.brightness)
    )
    seeds = draws.uniform((0.0, 1.0), *canvas).to(images.device)
    weights = draws.uniform((0.5, 1.0), *canvas).to(images.device)
    streaks = F.conv2d(((seeds < density) * weights)[None], _line(length, angle, reach)[:, None], groups=len(images))
    return images + brightness[:, None] * streaks[0][:, None].clamp(max=1)


def _line(length: Tensor, angle: Tensor, reach: int) -> Tensor:
    """Anti-aliased line segments ``(B, k, k)`` of peak 1, k = 2 · reach + 1, from lengths and angles ``(B, 1, 1)``."""
    steps = torch.arange(-reach, reach + 1, device=length.device, dtype=length.dtype)
    y, x = steps[:, None], steps[None, :]
    turn = angle * (math.pi / 180)
    along = (x * turn.sin() + y * turn.cos()).abs()
    across = (x * turn.cos() - y * turn.sin()).abs()
    return (1 - across).clamp(0, 1) * (length / 2 + 0.5 - along).clamp(0, 1)


def _noise(images: Tensor, law: PairLaw, draws: _Draws) -> Tensor:
    sigma = draws.uniform(law.sigma, 1, 1, 1) / 255
    return images + (sigma * draws.normal(*images.shape[1:])).to(images.device)


def _jpeg(images: Tensor, law: PairLaw, draws: _Draws) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg  # slow to import, and planning makes no pair

    low, high = law.quality
    qualities = draws.uniform((low, high + 1)).floor().clamp(max=high).int().tolist()
    coded = [
        decode_jpeg(encode_jpeg(image, quality), mode=ImageReadMode.RGB)
        for image, quality in zip(to_bytes(images).cpu(), qualities, strict=True)
    ]
    return torch.stack(coded).to(images.device).float() / 255


def _grey(images: Tensor, law: PairLaw, draws: _Draws) -> Tensor:
    luma = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return luma.expand_as(images)


KINDS = {"rain": _rain, "noise": _noise, "jpeg": _jpeg, "grey": _grey}
"""Degradation by name: images in [0, 1], law and draws to images."""
