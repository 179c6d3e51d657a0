"""Object detectors, torchvision's and a small one of the same parts: images in [0, 1] to boxes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.core.random import derive_seed
from hallmark.data.objects import Detections, in_each
from hallmark.errors import ConfigError, DataError, allowed
from hallmark.models.excite import additions, append_all

DETECTORS = ("ssdlite_small", "ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn")
"""A small SSDLite, and two of torchvision's by their names there."""


class ObjectDetector(nn.Module):
    """A network that finds objects, with classes numbered from 0 on; it normalises inside, and background is no class.

    Args:
        name: One of :data:`DETECTORS`.
        classes: Number of classes.
        size: Height and width of its images; others are resized inside.
        width: Base width where it can be chosen, or None for the network's own.
        added: What was appended to the network; see :func:`hallmark.models.excite.additions`.

    Raises:
        ConfigError: There is no such network, or it cannot have this size or width, or lacks what ``added`` names.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        size: int,
        width: int | None = None,
        added: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        from hallmark.models.detector_parts import BUILDERS  # torchvision: slow to import, and planning may do without

        if name not in DETECTORS:
            raise ConfigError(allowed(name, DETECTORS, "detector"))
        self.name, self.classes, self.size, self.width = name, classes, size, width
        self.network = append_all(BUILDERS[name](classes + 1, size, width), added or {})

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture; ``added`` only if something was appended."""
        added = additions(self.network)
        spec = {"name": self.name, "classes": self.classes, "size": self.size, "width": self.width}
        return {**spec, "added": added} if added else spec

    def forward(self, images: Tensor) -> list[Detections]:
        """What is found in each of the images ``(B, 3, H, W)``, best first; in evaluation mode."""
        found = self.network(list(images))
        return [{**each, "labels": each["labels"] - 1} for each in found]

    def maps(self, images: Tensor) -> Mapping[str, Tensor]:
        """The backbone's maps of images ``(B, 3, H, W)``, finest first; nothing is resized, and nothing looked for."""
        network: Any = self.network
        found: Mapping[str, Tensor] = network.backbone(network.transform.normalize(images))
        return found

    def losses(self, images: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """The network's own losses on images ``(B, 3, H, W)`` with objects ``(B, K, 6)``; in training mode."""
        single = torch.where(objects[..., 5:] > 0, -torch.ones_like(objects), objects)  # crowds are no single object
        targets = [{"boxes": each["boxes"], "labels": each["labels"] + 1} for each in in_each(single)]
        found: dict[str, Tensor] = self.network(list(images), targets)
        return found


def fresh(name: str, classes: int, size: int, width: int | None, *, seed: int) -> ObjectDetector:
    """An untrained detector; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return ObjectDetector(name, classes, size, width)


def pretrained(name: str, weights: str, classes: int, size: int) -> ObjectDetector:
    """One of torchvision's detectors with published weights, from torch's cache or downloaded into it.

    Args:
        name: Its name.
        weights: Which of its weights, such as ``COCO_V1``.
        classes: Number of classes; the weights decide, and another number is refused.
        size: Height and width of its images.

    Raises:
        ConfigError: There are no such weights, or they are for other classes.
        DataError: They are not there and cannot be downloaded.
    """
    import torchvision

    model = ObjectDetector(name, classes, size)
    try:
        found = torchvision.models.get_model_weights(name)[weights]
    except (KeyError, ValueError):
        raise ConfigError(f"torchvision has no weights {weights!r} for {name!r}; set weights=null to train") from None
    known = len(found.meta["categories"]) - 1
    if known != classes:
        raise ConfigError(f"{weights} of {name} knows {known} classes and the data have {classes}; use data=coco")
    try:
        state = found.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise DataError(f"{found.url} cannot be downloaded ({error}); put the file into {folder}") from None
    model.network.load_state_dict(state)
    return model.eval()
