"""What can stand before or behind a stored model: operations on its images and answers, a patch, a retouching network.

A step is a function of one image or answer at a time: what it makes of one does not depend on the others of the batch,
so that a model behind it still is a function.  Noise is therefore drawn from a stored seed *and* from what it falls on.
An amount of 0 is the identity.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hallmark.core.random import derive_seed
from hallmark.errors import ConfigError, allowed
from hallmark.models.image_to_image import Architecture, ImageToImage

LEVELS = 255


class Filter(nn.Module):
    """An operation on images ``(B, 3, H, W)`` in [0, 1], into the same range and shape.

    Args:
        name: A name of :data:`FILTERS`.
        amount: How much of it, in the operation's unit; see :data:`FILTERS`.
        seed: Of the noise; the other operations have no use for it.

    Raises:
        ConfigError: There is no such operation, or no such amount of it.
    """

    def __init__(self, name: str, amount: float, seed: int = 0) -> None:
        super().__init__()
        require(name, amount, FILTERS, "operation")
        self.name, self.amount, self.seed = name, amount, seed

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the step."""
        return {"step": "filter", "name": self.name, "amount": self.amount, "seed": self.seed}

    def forward(self, images: Tensor) -> Tensor:
        """The images after the operation, without gradients; at an amount of 0 they are handed on."""
        if not self.amount:
            return images
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return _FILTERS[self.name](images.float(), self.amount, self.seed).clamp(0, 1)


class Stamp(nn.Module):
    """One patch for every image.

    Args:
        height: Of the patch, in pixels.
        width: Of the patch.
        top: Row of its first pixel.
        left: Column of its first pixel.
    """

    patch: Tensor

    def __init__(self, height: int, width: int, top: int = 0, left: int = 0) -> None:
        super().__init__()
        self.top, self.left = top, left
        self.register_buffer("patch", torch.zeros(3, height, width, dtype=torch.uint8))

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the step; the patch is in its state."""
        height, width = self.patch.shape[1:]
        return {"step": "stamp", "height": height, "width": width, "top": self.top, "left": self.left}

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] with the patch in."""
        height, width = self.patch.shape[1:]
        stamped = images.clone()
        stamped[:, :, self.top : self.top + height, self.left : self.left + width] = self.patch.to(images) / LEVELS
        return stamped


class Blur(nn.Module):
    """Less exact answers ``(B, …)``.

    Args:
        name: A name of :data:`BLURS`.
        amount: How much of it, in its unit; see :data:`BLURS`.
        seed: Of the noise.

    Raises:
        ConfigError: There is no such name, or no such amount.
    """

    def __init__(self, name: str, amount: float, seed: int = 0) -> None:
        super().__init__()
        require(name, amount, BLURS, "perturbation of answers")
        self.name, self.amount, self.seed = name, amount, seed

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the step."""
        return {"step": "blur", "name": self.name, "amount": self.amount, "seed": self.seed}

    def forward(self, answers: Tensor) -> Tensor:
        """The answers, perturbed; at an amount of 0 they are handed on."""
        return _BLURS[self.name](answers.float(), self.amount, self.seed) if self.amount else answers


class Retouch(ImageToImage):
    """An image-to-image network that touches up answers that are images.

    Args:
        architecture: Which network.
    """

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the step; the weights are in its state."""
        return {"step": "retouch", **super().spec}


FILTERS: Mapping[str, tuple[str, float]] = {
    "noise": ("grey levels", math.inf),
    "gaussian": ("pixels sigma", math.inf),
    "jpeg": ("quality lost of 100", 99),
    "resize": ("share of each side", 0.95),
    "depth": ("bits removed of 8", 7),
    "crop": ("pixels off each edge", math.inf),
    "shift": ("pixels down and right", math.inf),
    "occlude": ("pixels of the top left corner", math.inf),
}
"""Operations on images with the unit of their amount and the largest that makes sense."""

BLURS: Mapping[str, tuple[str, float]] = {
    "noise": ("standard deviations", math.inf),
    "rounding": ("standard deviations", math.inf),
    "top": ("answers withheld", math.inf),
}
"""Perturbations of answers, likewise: noise and grid are in standard deviations of each answer's own numbers."""

_WHOLE = ("depth", "crop", "shift", "occlude", "top")


def require(name: str, amount: float, known: Mapping[str, tuple[str, float]], what: str) -> None:
    """Refuse what is not among the known operations, or an amount that makes no sense.

    Raises:
        ConfigError: One of the two.
    """
    if name not in known:
        raise ConfigError(allowed(name, known, what))
    unit, most = known[name]
    if not 0 <= amount <= most or not math.isfinite(amount):
        bound = f"in 0 … {most:g}" if math.isfinite(most) else "that is finite and at least 0"
        raise ConfigError(f"{what} {name} needs an amount ({unit}) {bound}, got {amount}")
    if name in _WHOLE and amount != int(amount):
        raise ConfigError(f"{what} {name} needs a whole amount ({unit}), got {amount}")


def build_step(spec: Mapping[str, Any]) -> nn.Module:
    """The step of a ``spec`` that it, or its like, once gave.

    Raises:
        ConfigError: There is no such step.
    """
    fields = dict(spec)
    kind = fields.pop("step", None)
    if kind not in _STEPS:
        raise ConfigError(allowed(kind, _STEPS, "step"))
    return _STEPS[kind](**fields)


def own_noise(values: Tensor, marks: Tensor, seed: int) -> Tensor:
    """Standard normal noise of the shape of ``values`` ``(B, …)``; each row's depends on the seed and its mark alone.

    Args:
        values: What the noise is for.
        marks: Integers ``(B, …)`` by which rows are told apart, the same however a row was computed.
        seed: The stored seed.
    """
    drawn = []
    for row in marks.flatten(1).cpu().numpy():
        rng = torch.Generator().manual_seed(derive_seed(seed, "noise", row.tobytes().hex()))
        drawn.append(torch.randn(values.shape[1:], generator=rng))
    return torch.stack(drawn).to(values) if drawn else torch.zeros_like(values)


def _noise(images: Tensor, amount: float, seed: int) -> Tensor:
    return images + own_noise(images, (images * LEVELS).round().to(torch.uint8), seed) * (amount / LEVELS)


def _gaussian(images: Tensor, amount: float, seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional  # slow to import, and planning filters nothing

    reach = min(math.ceil(3 * amount), (min(images.shape[2:]) - 1))  # the border is reflected
    return cast(Tensor, functional.gaussian_blur(images, [2 * reach + 1] * 2, [amount] * 2))


def _jpeg(images: Tensor, amount: float, seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    eight = (images * LEVELS).round().to(torch.uint8).cpu()
    coded = [functional.jpeg(image, quality=max(1, round(100 - amount))) for image in eight]
    return torch.stack(coded).to(images) / LEVELS if coded else images


def _resize(images: Tensor, amount: float, seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    size = list(images.shape[2:])
    small = functional.resize(images, [max(1, round(side * (1 - amount))) for side in size], antialias=True)
    return cast(Tensor, functional.resize(small, size, antialias=True))


def _depth(images: Tensor, amount: float, seed: int) -> Tensor:
    steps = 2 ** (8 - int(amount)) - 1
    return (images * steps).round() / steps


def _crop(images: Tensor, amount: float, seed: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    size = list(images.shape[2:])
    edge, most = int(amount), (min(size) - 1) // 2
    if edge > most:
        raise ConfigError(f"cropping {edge} pixels off each edge leaves nothing of {size[0]}x{size[1]}; at most {most}")
    inner = images[:, :, edge : size[0] - edge, edge : size[1] - edge]
    return cast(Tensor, functional.resize(inner, size, antialias=True))


def _shift(images: Tensor, amount: float, seed: int) -> Tensor:
    by = int(amount)
    height, width = images.shape[2:]
    rows, columns = ((torch.arange(side, device=images.device) - by).clamp_min(0) for side in (height, width))
    return images[:, :, rows][:, :, :, columns]  # the edge is repeated


def _occlude(images: Tensor, amount: float, seed: int) -> Tensor:
    covered = images.clone()
    covered[:, :, : int(amount), : int(amount)] = 0.5
    return covered


def _answer_noise(answers: Tensor, amount: float, seed: int) -> Tensor:
    spread = _spread(answers)
    marks = (16 * answers / spread.clamp_min(torch.finfo(answers.dtype).tiny)).round().to(torch.int32)
    return answers + own_noise(answers, marks, seed) * amount * spread


def _rounding(answers: Tensor, amount: float, seed: int) -> Tensor:
    step = amount * _spread(answers).clamp_min(torch.finfo(answers.dtype).tiny)
    return (answers / step).round() * step


def _top(answers: Tensor, amount: float, seed: int) -> Tensor:
    shown = max(1, answers.shape[1] - int(amount))
    least = answers.topk(shown, dim=1).values[:, -1:]
    return answers.maximum(least)  # what is withheld looks like the last that is shown


def _spread(answers: Tensor) -> Tensor:
    """Standard deviation of each answer's numbers, to be broadcast."""
    return answers.flatten(1).std(1, correction=0).view(-1, *[1] * (answers.ndim - 1))


_Operation = Callable[[Tensor, float, int], Tensor]
_FILTERS: Mapping[str, _Operation] = {
    "noise": _noise,
    "gaussian": _gaussian,
    "jpeg": _jpeg,
    "resize": _resize,
    "depth": _depth,
    "crop": _crop,
    "shift": _shift,
    "occlude": _occlude,
}
_BLURS: Mapping[str, _Operation] = {"noise": _answer_noise, "rounding": _rounding, "top": _top}
_STEPS: Mapping[str, Callable[..., nn.Module]] = {
    "filter": Filter,
    "stamp": Stamp,
    "blur": Blur,
    "retouch": lambda **architecture: Retouch(Architecture(**architecture)),
}
