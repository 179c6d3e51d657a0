"""What a lock leaves of a classifier's use: without its patch, with a wrong one, and with the right one."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, HostKind, Marking, Reading, Survey, Suspect
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.lock import Lock
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.schemes.stain_lock.trigger import Box
from hallmark.tasks.probe import accuracy


@dataclass(frozen=True)
class LockedUse(Survey):
    """Accuracies of original, edited and locked network on test images with and without patches.

    The unit says what was done to the images: ``""``, ``patch``, ``random patch`` (a fresh one for each image) or
    ``shifted patch``.  Networks answer in float32: an internal lock adds and cancels large numbers.

    Args:
        shift: Pixels by which a shifted patch lies further down and right.
    """

    shift: int = 4

    name: ClassVar[str] = "locked_use"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    schemes: ClassVar[frozenset[str]] = frozenset({"lock"})
    marks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.shift < 1:
            raise ConfigError(f"locked_use.shift={self.shift} shifts nothing; set it to at least 1")

    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """Accuracies, all on the same test images."""
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
            ("original_accuracy", host, "", plain),
            ("original_accuracy", host, "patch", patched),
            ("edited_accuracy", edited, "", plain),
            ("edited_accuracy", edited, "patch", patched),
            ("locked_accuracy", marking.model, "", plain),
            ("locked_accuracy", marking.model, "random patch", guessed),
            ("locked_accuracy", marking.model, "shifted patch", moved),
            ("unlocked_accuracy", marking.model, "patch", patched),
        ]
        return [_accuracy(metric, model, unit, images, test.labels) for metric, model, unit, images in seen]


def shifted(box: Box, by: int, size: int) -> Box:
    """A rectangle further down and right, as far as the image allows.

    Args:
        box: The rectangle.
        by: Pixels.
        size: Height and width of the image.
    """
    down, right = min(by, size - box.bottom), min(by, size - box.right)
    return Box(box.top + down, box.left + right, box.bottom + down, box.right + right)


def _accuracy(metric: str, model: nn.Module, unit: str, images: Tensor, labels: Tensor) -> Reading:
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.LOGITS)
    answers = torch.cat([suspect.logits(part.float() / 255) for part in images.split(512)])
    found = accuracy(answers, labels, metric)
    return Reading(metric, found.value, unit, count=found.count, n=found.n)
