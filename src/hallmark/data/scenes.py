"""Scenes drawn on the spot, for detectors: one to four textured shapes before a busy background, with their boxes.

A class is a shape; texture, colour, place, size and rotation are left to chance.  Every scene is a function of its
seed, split, index and size alone, drawn as :mod:`hallmark.data.procedural` draws its images, and
from streams beside theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hallmark.data.drawing import PATTERNS, SHAPES, TEXTURES, coverage, dispatch, place, rgb
from hallmark.data.sources import SPLITS
from hallmark.errors import ConfigError, DataError, allowed

MOST = 4
"""Objects in a scene, at most: one a quarter of the image, so that they hardly cover each other."""
LEAST_SIZE = 32
_BATCH = 64
_BACKGROUND = 11
_OBJECT = 13
_UNIFORMS = _BACKGROUND + MOST + 1 + MOST * _OBJECT


def draw_scenes(
    indices: Tensor | Sequence[int] | int, *, classes: int = 5, size: int = 128, seed: int = 0, split: str = "train"
) -> tuple[Tensor, Tensor]:
    """Draw scenes and say what is in them.

    Args:
        indices: Which scenes of the endless stream, each 0 or more; a number n stands for the first n.
        classes: Number of classes, 1 to 11.
        size: Height and width in pixels, 32 or more.
        seed: Which stream, 0 or more.
        split: ``"train"`` or ``"test"``, two streams that share no scene.

    Returns:
        Images, uint8 ``(N, 3, size, size)``, and objects, float32 ``(N, 4, 6)`` as :mod:`hallmark.data.objects` has
        them.  A box holds all pixels of which the object covers at least half.

    Raises:
        ConfigError: If there is no such split.
        DataError: If another argument is out of its range.
    """
    at = torch.arange(indices) if isinstance(indices, int) else torch.as_tensor(indices, dtype=torch.int64)
    if split not in SPLITS:
        raise ConfigError(allowed(split, SPLITS, "split"))
    if not 1 <= classes <= len(SHAPES):
        raise DataError(f"scenes of {classes} classes; there can be 1 to {len(SHAPES)}")
    if size < LEAST_SIZE or seed < 0 or (len(at) and at.min() < 0):
        raise DataError(
            f"scenes need size >= {LEAST_SIZE}, seed >= 0 and indices >= 0, not size {size} and seed {seed}"
        )
    images = torch.empty(len(at), 3, size, size, dtype=torch.uint8)
    objects = torch.full((len(at), MOST, 6), -1.0)
    for start in range(0, len(at), _BATCH):
        batch = slice(start, start + _BATCH)
        uniforms, noise = _chance(at[batch], size, seed, SPLITS.index(split))
        things = list(_things(uniforms, scene_labels(at[batch], classes), classes, size))
        images[batch] = _paint(uniforms, things, noise)
        objects[batch] = torch.stack([thing.rows() for thing in things], dim=1)
    return images, objects


def scene_labels(indices: Tensor, classes: int) -> Tensor:
    """The class of the first object of each scene: classes take turns, so any run of scenes is balanced in them."""
    return indices % classes


@dataclass(frozen=True)
class _Thing:
    """The k-th object of each scene of a batch.

    Args:
        there: Whether there is one ``(B,)``.
        kinds: Its class ``(B,)``.
        u: Each pixel's coordinate in its frame ``(B, H, W)``.
        v: The other one.
        cover: How much of each pixel it covers, 0 to 1 ``(B, H, W)``.
        look: Uniforms ``(B, 9)`` that decide its texture and colours.
    """

    there: Tensor
    kinds: Tensor
    u: Tensor
    v: Tensor
    cover: Tensor
    look: Tensor

    def rows(self) -> Tensor:
        """Class, box and crowd flag ``(B, 6)``; class -1 where there is none."""
        inside = self.cover >= 0.5
        spans = []
        for line in (inside.any(1), inside.any(2)):  # columns, rows
            low = line.int().argmax(1)
            spans.append((low, line.shape[1] - line.flip(1).int().argmax(1)))
        (left, right), (top, bottom) = spans
        rows = torch.stack([self.kinds, left, top, right, bottom, torch.zeros_like(left)], dim=1).float()
        return torch.where(self.there[:, None], rows, torch.tensor([-1.0, 0, 0, 0, 0, 0]))


def _chance(indices: Tensor, size: int, seed: int, split: int) -> tuple[Tensor, Tensor]:
    """Uniforms in [0, 1), float64 ``(B, _UNIFORMS)``, and noise in [-1, 1], float32 ``(B, 3, size, size)``."""
    pixels = 3 * size * size
    words = _UNIFORMS + -(-2 * pixels // 8)  # two bytes a pixel, whose sum has a triangular distribution
    stream = len(SPLITS) + 1 + split  # beside the images' streams and the one that decides their task
    raw = np.stack(
        [np.random.Philox(key=seed, counter=[0, 0, index, stream]).random_raw(words) for index in indices.tolist()]
    )
    uniforms = (raw[:, :_UNIFORMS] >> np.uint64(11)) * 2.0**-53
    octets = raw[:, _UNIFORMS:].astype("<u8").view(np.uint8)[:, : 2 * pixels].astype(np.float32)
    noise = (octets[:, :pixels] + octets[:, pixels:]) / 255 - 1
    return torch.from_numpy(uniforms), torch.from_numpy(noise).view(-1, 3, size, size)


def _axes(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Pixel centres ``(count, size, size)`` in [-1, 1], across and down."""
    axis = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    return axis.expand(count, size, size), axis.view(-1, 1).expand(count, size, size)


def _things(uniforms: Tensor, first: Tensor, classes: int, size: int) -> Iterator[_Thing]:
    """The objects of each scene, in the order in which they are painted."""
    x, y = _axes(len(uniforms), size)
    _, quarters, rest = uniforms.split([_BACKGROUND, MOST, MOST * _OBJECT + 1], dim=1)
    taken = quarters.argsort(1)  # a quarter each, in random order
    number = 1 + (MOST * rest[:, 0]).long()
    for slot, columns in enumerate(rest[:, 1:].split(_OBJECT, dim=1)):
        kind, left, top, angle, look = columns.split([1, 1, 1, 1, _OBJECT - 4], dim=1)
        scale = 0.2 + 0.16 * look[:, :1]
        across = (taken[:, slot : slot + 1] % 2) - 0.5 + 0.3 * (left - 0.5)
        down = (taken[:, slot : slot + 1] // 2) - 0.5 + 0.3 * (top - 0.5)
        u, v = place(x, y, *(part[..., None] for part in (across, down, 2 * torch.pi * angle, scale)))
        kinds = first if slot == 0 else (classes * kind[:, 0]).long()
        cover = coverage(dispatch(SHAPES, kinds, u, v), scale[..., None].float() * size / 2)
        yield _Thing(slot < number, kinds, u, v, cover, look[:, 1:])


def _paint(uniforms: Tensor, things: Sequence[_Thing], noise: Tensor) -> Tensor:
    """The images, uint8 ``(B, 3, H, W)``."""
    count, size = len(noise), noise.shape[-1]
    x, y = _axes(count, size)
    columns = iter(uniforms[:, :_BACKGROUND, None, None].unbind(1))

    def chance(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns)

    # The background: two shades of any hue, mixed by a pattern.
    u, v = place(x, y, chance(-1, 1), chance(-1, 1), chance(0, 2 * torch.pi), chance(0.3, 0.8))
    weight = dispatch(PATTERNS, (len(PATTERNS) * next(columns)).long().flatten(), u, v).unsqueeze(1)
    hue, saturation, value = chance(0, 1), chance(0.0, 0.6), chance(0.25, 0.85)
    dark = rgb(hue, saturation, value - 0.2)
    image = dark + weight * (rgb(hue + chance(-0.15, 0.15), saturation, value + 0.15) - dark)
    grain = chance(0.02, 0.15).float().unsqueeze(1)

    for thing in things:
        texture, frequency, right, down, hue, saturation, value, darker = thing.look[..., None, None].unbind(1)
        frequency = (1.2 + 0.5 * frequency).float()
        weight = dispatch(
            TEXTURES,
            (len(TEXTURES) * texture).long().flatten(),
            thing.u * frequency + right.float(),
            thing.v * frequency + down.float(),
        ).unsqueeze(1)
        saturation, value = 0.45 + 0.55 * saturation, 0.65 + 0.35 * value
        light = rgb(hue, saturation, value)
        fill = light + weight * (rgb(hue, saturation, value * (0.4 + 0.3 * darker)) - light)
        image += (thing.cover * thing.there[:, None, None]).unsqueeze(1) * (fill - image)
    return (255 * (image + grain * noise).clamp_(0, 1)).round_().to(torch.uint8)
