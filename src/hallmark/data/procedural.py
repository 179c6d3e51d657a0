"""A small vision task drawn on the spot: coloured, textured shapes before a busy background.

Every image is a function of its seed, split and index alone.  Its random numbers are the raw stream of the
counter-based generator Philox, and pixels are computed with +, −, ×, ÷, √, floor, min and max only, whose results do
not depend on how a tensor is cut into vectors and threads.  With any change here raise ``GENERATOR_VERSION``.

A class is a shape, a texture and a hue.  Position, size, rotation, shades, background and noise are left to chance.
Another seed joins shapes, textures and hues otherwise and has another kind of background: it is another task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hallmark.data.drawing import PATTERNS, SHAPES, TEXTURES, box, coverage, dispatch, place, rgb
from hallmark.data.sources import SPLITS
from hallmark.errors import ConfigError, DataError, allowed

_BATCH = 256  # so that the planes being worked on stay in the processor's cache
_UNIFORMS = 32  # random numbers of an image beside its noise


def procedural_images(
    indices: Tensor | Sequence[int] | int,
    *,
    classes: int = 10,
    size: int = 32,
    seed: int = 0,
    split: str = "train",
) -> tuple[Tensor, Tensor]:
    """Draw images of the procedural task ``seed``.

    Args:
        indices: Which images of the endless stream, each 0 or more; a number n stands for the first n.
        classes: Number of classes, 1 to 330.
        size: Height and width in pixels.
        seed: Which task, 0 or more.
        split: ``"train"`` or ``"test"``, two streams that share no image.

    Returns:
        Images, uint8 ``(N, 3, size, size)``, and labels, int64 ``(N,)``.

    Raises:
        ConfigError: If there is no such split.
        DataError: If another argument is out of its range.
    """
    at = torch.arange(indices) if isinstance(indices, int) else torch.as_tensor(indices, dtype=torch.int64)
    if split not in SPLITS:
        raise ConfigError(allowed(split, SPLITS, "split"))
    if not 1 <= classes <= _MAX_CLASSES:
        raise DataError(f"{classes} procedural classes; there can be 1 to {_MAX_CLASSES}")
    if size < 1 or seed < 0 or (len(at) and at.min() < 0):
        raise DataError(f"procedural images need size >= 1, seed >= 0 and indices >= 0, not size {size}, seed {seed}")
    labels = procedural_labels(at, classes)
    task = _Task.of(seed)
    images = torch.empty(len(at), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(at), _BATCH):
        batch = slice(start, start + _BATCH)
        uniforms, noise = _chance(at[batch], size, seed, SPLITS.index(split))
        images[batch] = _draw(task, labels[batch], uniforms, noise)
    return images, labels


def procedural_labels(indices: Tensor, classes: int) -> Tensor:
    """Return the labels of the images at ``indices``: classes take turns, so any run of images is balanced."""
    return indices % classes


def _chance(indices: Tensor, size: int, seed: int, stream: int) -> tuple[Tensor, Tensor]:
    """Return uniforms in [0, 1), float64 ``(B, _UNIFORMS)``, and noise in [-1, 1], float32 ``(B, 3, size, size)``."""
    pixels = 3 * size * size
    words = _UNIFORMS + -(-2 * pixels // 8)  # two bytes a pixel, whose sum has a triangular distribution
    raw = np.stack(
        [np.random.Philox(key=seed, counter=[0, 0, index, stream]).random_raw(words) for index in indices.tolist()]
    )
    uniforms = (raw[:, :_UNIFORMS] >> np.uint64(11)) * 2.0**-53
    octets = raw[:, _UNIFORMS:].astype("<u8").view(np.uint8)[:, : 2 * pixels].astype(np.float32)
    noise = (octets[:, :pixels] + octets[:, pixels:]) / 255 - 1
    return torch.from_numpy(uniforms), torch.from_numpy(noise).view(-1, 3, size, size)


def _draw(task: "_Task", labels: Tensor, uniforms: Tensor, noise: Tensor) -> Tensor:
    """Return the images, uint8 ``(B, 3, H, W)``, that labels, uniforms and noise determine."""
    size = noise.shape[-1]
    columns = iter(uniforms.unbind(1))

    def chance(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns).view(-1, 1, 1)

    axis = (2 * torch.arange(size, dtype=torch.float32) + 1) / size - 1
    x, y = axis.expand(len(labels), size, size), axis.view(-1, 1).expand(len(labels), size, size)

    # The background: two shades of any hue, mixed by the task's pattern.
    u, v = place(x, y, chance(-1, 1), chance(-1, 1), chance(0, 2 * torch.pi), chance(0.6, 1.2))
    weight = PATTERNS[task.background](u, v).unsqueeze(1)
    hue, saturation, value = chance(0, 1), chance(0.0, 0.6), chance(0.25, 0.85)
    dark = rgb(hue, saturation, value - 0.2)
    image = dark + weight * (rgb(hue + chance(-0.15, 0.15), saturation, value + 0.15) - dark)

    # A distractor that says nothing about the class.
    scale = chance(0.15, 0.3)
    u, v = place(x, y, chance(-1, 1), chance(-1, 1), chance(0, 2 * torch.pi), scale)
    cover = coverage(box(u, v, 1.0, 0.4), scale.float() * size / 2)
    image += cover.unsqueeze(1) * (rgb(chance(0, 1), chance(0.2, 1), chance(0.3, 1)) - image)

    # The shape.
    scale = chance(0.38, 0.65)
    u, v = place(x, y, chance(-0.4, 0.4), chance(-0.4, 0.4), chance(0, 2 * torch.pi), scale)
    cover = coverage(dispatch(SHAPES, task.shapes[labels % len(task.shapes)], u, v), scale.float() * size / 2)
    frequency = chance(1.2, 1.7)
    weight = dispatch(
        TEXTURES,
        task.textures[labels % len(task.textures)],
        u * frequency.float() + chance(0, 1).float(),
        v * frequency.float() + chance(0, 1).float(),
    ).unsqueeze(1)
    hue = (task.hues[labels % len(task.hues)].view(-1, 1, 1) + chance(-1, 1)) / _HUES
    saturation, value = chance(0.45, 1), chance(0.65, 1)
    light = rgb(hue, saturation, value)
    fill = light + weight * (rgb(hue, saturation, value * chance(0.25, 0.5)) - light)
    image += cover.unsqueeze(1) * (fill - image)

    image = (image + chance(0.02, 0.15).float().unsqueeze(1) * noise).clamp_(0, 1)
    return (255 * image).round_().to(torch.uint8)


# No two of 11 shapes, 5 textures and 6 hues have a common divisor, so (k mod 11, k mod 5, k mod 6) is another one for
# every class k below their product.
_HUES = 6
_MAX_CLASSES = len(SHAPES) * len(TEXTURES) * _HUES


@dataclass(frozen=True)
class _Task:
    """What a seed decides: the order of shapes, textures and hues that classes take in turn, and the background.

    Args:
        shapes: Permutation of the shapes, int64 ``(11,)``; class k has the shape at k mod 11, and so on.
        textures: Permutation of the textures, int64 ``(5,)``.
        hues: Permutation of the hues, int64 ``(6,)``.
        background: Index of the background's pattern.
    """

    shapes: Tensor
    textures: Tensor
    hues: Tensor
    background: int

    @classmethod
    def of(cls, seed: int) -> "_Task":
        # A stream beside those of the splits.
        raw = np.random.Philox(key=seed, counter=[0, 0, 0, len(SPLITS)]).random_raw(32)
        shapes, textures, hues, rest = np.split(raw, np.cumsum([len(SHAPES), len(TEXTURES), _HUES]))
        return cls(
            shapes=torch.from_numpy(shapes.argsort()),
            textures=torch.from_numpy(textures.argsort()),
            hues=torch.from_numpy(hues.argsort()),
            background=int(rest[0]) % len(PATTERNS),
        )
