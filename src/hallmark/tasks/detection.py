"""The task an object detector was trained for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.task import Measurement, Task
from hallmark.data.objects import Detections, in_each
from hallmark.errors import ConfigError, DataError


@dataclass
class Detection(Task):
    """COCO's mean average precision on the test images of a detector's own data set.

    Args:
        batch: Images per forward pass.
    """

    batch: int = 16

    name: ClassVar[str] = "detection"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.DETECTOR})
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"detection needs a batch of at least one image, got batch={self.batch}")

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> None:
        """Nothing to build: the host is the model that is used."""

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """``map``: AP averaged over classes and the IoU thresholds 0.50, 0.55, …, 0.95."""
        there = in_each(require_objects(test))
        found = detect(host, test.images, batch=self.batch)
        return [Measurement("map", mean_average_precision(found, there), n=len(test))]


def require_objects(test: Images) -> Tensor:
    """What is where in test images ``(N, K, 6)``.

    Raises:
        DataError: The set does not say.
    """
    objects: Tensor | None = getattr(test, "objects", None)
    if objects is None:
        raise DataError("detection is measured on images with boxes; set test.name to scenes or coco")
    return objects


def detect(host: nn.Module, images: Tensor, *, batch: int = 16) -> list[Detections]:
    """What a detector in evaluation mode finds in uint8 images ``(N, 3, H, W)``, on the CPU."""
    device = next(host.parameters()).device
    found: list[Detections] = []
    with torch.no_grad():
        for part in images.split(batch):
            found += [{n: t.cpu() for n, t in each.items()} for each in host(part.to(device).float() / 255)]
    return found


def mean_average_precision(found: Sequence[Detections], there: Sequence[Detections]) -> float:
    """COCO's AP@[.50:.95], at most 100 detections an image, by the reference implementation; 0 where nothing is found.

    Args:
        found: Boxes, scores and labels an image.
        there: Boxes, labels and crowds an image; at least one object in all.
    """
    from torchmetrics.detection import MeanAveragePrecision  # slow to import, and planning measures nothing

    if not any(len(each["labels"]) for each in there):
        raise DataError("average precision needs at least one object in the test images")
    metric = MeanAveragePrecision(backend="pycocotools")
    metric.warn_on_many_detections = False  # a detector that is locked may find anything; the best 100 count
    metric.update(list(found), list(there))
    return max(0.0, float(metric.compute()["map"]))
