"""Stage one: universal adversarial perturbations of an unmarked encoder, many at once.

A perturbation is kept in levels, whole multiples of 1/255, so that adding it to an 8-bit image and clipping gives the
8-bit image that a suspect is asked about, and the bound on it is exact there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hallmark.errors import ConfigError
from hallmark.models.inference import Answering, block_size
from hallmark.precision import fast


@dataclass(frozen=True)
class PerturbationLaw:
    """How perturbations are made, the true one and decoys alike.

    Args:
        epsilon: Bound ε on ‖w‖∞ in pixel space [0, 1], before normalisation; at least one level, 1/255.
        images: Number n of the owner's images that perturbations are optimised on.
        steps: Sign steps.
        batch: Images a step; the images are gone through in one order, over and over.
        step: Length of the first step, as a share of ε; it falls linearly to zero.
        away: Weight of the term that drives samples away from their own place.
    """

    epsilon: float = 8 / 255
    images: int = 1024
    steps: int = 32
    batch: int = 16
    step: float = 0.25
    away: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError(
                f"scheme.perturbation.epsilon must lie in (0, 1], pixels being 0 to 1; got {self.epsilon}"
            )
        if self.radius < 1:
            raise ConfigError(
                f"scheme.perturbation.epsilon={self.epsilon} is less than one of 255 levels, which rounding to 8 bits "
                f"takes away; give at least {1 / 255:.4f}"
            )
        if min(self.images, self.steps, self.batch) < 1 or not 0 < self.step <= 1 or not 0 <= self.away < math.inf:
            raise ConfigError(
                "scheme.perturbation needs images, steps and batch ≥ 1, step in (0, 1] and a finite away ≥ 0; got "
                f"{self.images}, {self.steps}, {self.batch}, {self.step} and {self.away}"
            )

    @property
    def radius(self) -> int:
        """The bound in levels: the largest whole number of 1/255 that is not above ε."""
        return math.floor(self.epsilon * 255 + 1e-9)


def add(images: Tensor, levels: Tensor) -> Tensor:
    """Add a perturbation to images and clip them.

    Args:
        images: ``(…, 3, H, W)``, uint8 or float in [0, 1].
        levels: Perturbation in levels, ``(3, H, W)`` or one for each image; whole numbers where images are uint8.

    Returns:
        Images of the same type; each pixel differs by no more than its level.
    """
    if images.dtype == torch.uint8:
        return (images.to(torch.int16) + levels).clamp(0, 255).to(torch.uint8)
    return (images + levels / 255).clamp(0, 1)


def fitted(levels: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """A perturbation for images of another size: resized bilinearly (antialiased), rounded, clipped to the bound again.

    Args:
        levels: int16 ``(3, h, w)``.
        size: Height and width wanted.
        radius: The bound in levels.

    Returns:
        int16 ``(3, H, W)``.
    """
    if levels.shape[1:] == size:
        return levels
    resized = F.interpolate(levels[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(-radius, radius).to(torch.int16)


def features(encoder: Answering, images: Tensor) -> Tensor:
    """Features ``(N, D)`` of uint8 images ``(N, 3, H, W)``, on the encoder's device.

    Raises:
        ConfigError: The encoder does not take images of this size.
    """
    like = next(encoder.parameters())
    images = images.to(like.device)
    try:
        with torch.no_grad(), fast(like.device):
            answers = [encoder(part.to(like.dtype) / 255) for part in torch.split(images, block_size(images))]
    except (AssertionError, RuntimeError, ValueError) as error:  # what networks of a fixed input size raise
        height, width = images.shape[2:]
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the host does not take the owner's {height}x{width} images ({line}); use images of the host's own size"
        ) from None
    return torch.cat(answers).to(like.dtype)


def optimise(encoder: Answering, images: Tensor, targets: Tensor, law: PerturbationLaw) -> Tensor:
    """Universal perturbations that gather images around given places in feature space.

    Each minimises the mean over the images of ``1 − cos(E(x + w), target) + away · cos(E(x + w), E(x))`` under
    ``‖w‖∞ ≤ ε`` by projected sign steps from w = 0.  No perturbation depends on which others are made with it.

    Args:
        encoder: The unmarked encoder E, frozen.
        images: The owner's images, uint8 ``(n, 3, H, W)``, in the order in which they are used.
        targets: Features ``(K, D)`` of the K key images.
        law: Bound and schedule.

    Returns:
        int16 ``(K, 3, H, W)`` on the CPU, in levels.
    """
    own = features(encoder, images)
    images = images.to(own.device)
    together = max(1, block_size(images) // law.batch)  # so many perturbations share a pass, and no more memory
    found = [_descend(encoder, images, own, part, law) for part in torch.split(targets.to(own), together)]
    return torch.cat(found).round().to(torch.int16).cpu()


def _descend(encoder: Answering, images: Tensor, own: Tensor, targets: Tensor, law: PerturbationLaw) -> Tensor:
    levels = own.new_zeros(len(targets), *images.shape[1:])
    for number in range(law.steps):
        rows = torch.arange(number * law.batch, (number + 1) * law.batch, device=own.device) % len(images)
        levels.requires_grad_(True)
        shown = add(images[rows].to(own.dtype) / 255, levels[:, None]).flatten(0, 1)
        with fast(own.device):
            answers = encoder(shown)
        moved = answers.to(own.dtype).unflatten(0, (len(levels), len(rows)))
        gathered = F.cosine_similarity(moved, targets[:, None], dim=2).mean(1)
        stayed = F.cosine_similarity(moved, own[rows], dim=2).mean(1)
        (gradient,) = torch.autograd.grad((law.away * stayed - gathered).sum(), levels)
        length = law.radius * law.step * (1 - number / law.steps)
        levels = (levels.detach() - length * gradient.sign()).clamp(-law.radius, law.radius)
    return levels
