"""What a lock leaves of a network's use: without its patch, with a wrong one, and with the right one."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, HostKind, Marking, Reading, Survey, Suspect
from hallmark.core.scheme import Images
from hallmark.data.objects import in_each
from hallmark.data.pairs import to_bytes
from hallmark.errors import ConfigError
from hallmark.models.detectors import ObjectDetector
from hallmark.models.steps import FILTERS, Filter, require
from hallmark.schemes.stain_lock.lock import Lock
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.schemes.stain_lock.trigger import Box
from hallmark.tasks.detection import detect, mean_average_precision, require_objects
from hallmark.tasks.probe import accuracy

_BLOCK = 512


@dataclass(frozen=True)
class LockedUse(Survey):
    """How well original, edited and locked network do on test images with and without patches.

    Of a classifier that is its accuracy, as ``locked_accuracy`` and so on; of a detector its ``map``, and the variant
    says which network it is.  The unit says what was done to the images: ``""``, ``patch``, ``random patch`` (a fresh
    one for each image), ``shifted patch``, or ``patch, jpeg 25`` and so on, where the image with its patch went through
    an operation before it reached the network.  Networks answer in float32: an internal lock adds and cancels large
    numbers.

    Args:
        shift: Pixels by which a shifted patch lies further down and right.
        worn: Operations on images with their patch, and how much of each: names and units of
            :data:`hallmark.models.steps.FILTERS`.
    """

    shift: int = 4
    worn: dict[str, float] = field(default_factory=dict)

    name: ClassVar[str] = "locked_use"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER, HostKind.DETECTOR})
    schemes: ClassVar[frozenset[str]] = frozenset({"lock"})
    marks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.shift < 1:
            raise ConfigError(f"locked_use.shift={self.shift} shifts nothing; set it to at least 1")
        for operation, amount in self.worn.items():
            require(operation, amount, FILTERS, "operation of locked_use.worn")

    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """Figures, all on the same test images."""
        if marking is None or not isinstance(marking.scheme, Lock):
            raise TypeError("the use of a lock is that of a network locked by the scheme lock")
        edited, key = marking.scheme.edited(host, owner), marking.key
        boxes = [Box(*place) for place in key.meta["boxes"]]
        patches = [key.tensors[f"patch.{lock}"] for lock in range(len(boxes))]
        plain, patched = test.images, unlock(test.images, key)
        guessed = moved = plain
        for box, patch in zip(boxes, patches, strict=True):
            noise = torch.randint(0, 256, (len(plain), *patch.shape), generator=generator).to(torch.uint8)
            guessed = box.paste(guessed, noise)
            moved = shifted(box, self.shift, plain.shape[-1]).paste(moved, patch[None])
        seen = [
            ("original", host, "", plain),
            ("original", host, "patch", patched),
            ("edited", edited, "", plain),
            ("edited", edited, "patch", patched),
            ("locked", marking.model, "", plain),
            ("locked", marking.model, "random patch", guessed),
            ("locked", marking.model, "shifted patch", moved),
            ("unlocked", marking.model, "patch", patched),
        ]
        for operation, amount in self.worn.items():
            after, unit = worn(patched, operation, amount), f"patch, {operation} {amount:g}"
            seen += [("edited", edited, unit, after), ("unlocked", marking.model, unit, after)]
        read = _precision if isinstance(host, ObjectDetector) else _accuracy
        return [read(role, model, unit, images, test) for role, model, unit, images in seen]


def shifted(box: Box, by: int, size: int) -> Box:
    """A rectangle further down and right, as far as the image allows.

    Args:
        box: The rectangle.
        by: Pixels.
        size: Height and width of the image.
    """
    down, right = min(by, size - box.bottom), min(by, size - box.right)
    return Box(box.top + down, box.left + right, box.bottom + down, box.right + right)


def worn(images: Tensor, operation: str, amount: float) -> Tensor:
    """Images uint8 ``(N, 3, H, W)`` after an operation of :data:`hallmark.models.steps.FILTERS`, uint8 again."""
    step = Filter(operation, amount)
    return torch.cat([to_bytes(step(part.float() / 255)) for part in images.split(_BLOCK)])


def _precision(role: str, model: nn.Module, unit: str, images: Tensor, test: Images) -> Reading:
    there = in_each(require_objects(test))
    return Reading("map", mean_average_precision(detect(model, images), there), unit, variant=role)


def _accuracy(role: str, model: nn.Module, unit: str, images: Tensor, test: Images) -> Reading:
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.LOGITS)
    answers = torch.cat([suspect.logits(part.float() / 255) for part in images.split(_BLOCK)])
    found = accuracy(answers, test.labels, f"{role}_accuracy")
    return Reading(found.metric, found.value, unit, count=found.count, n=found.n)
