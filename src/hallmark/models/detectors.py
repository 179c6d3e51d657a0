"""Object detectors, torchvision's and a small one of the same parts: images in [0, 1] to boxes."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops.misc import FrozenBatchNorm2d

from hallmark.core.random import derive_seed
from hallmark.data.objects import Detections, in_each
from hallmark.errors import ConfigError, DataError, allowed
from hallmark.models.encoders import BasicBlock
from hallmark.models.excite import additions, append_all

Builder = Callable[[int, int, int | None], nn.Module]


class Detector(nn.Module):
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
        if name not in DETECTORS:
            raise ConfigError(allowed(name, DETECTORS, "detector"))
        self.name, self.classes, self.size, self.width = name, classes, size, width
        self.network = append_all(DETECTORS[name](classes + 1, size, width), added or {})

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

    def losses(self, images: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """The network's own losses on images ``(B, 3, H, W)`` with objects ``(B, K, 6)``; in training mode."""
        single = torch.where(objects[..., 5:] > 0, -torch.ones_like(objects), objects)  # crowds are no single object
        targets = [{"boxes": each["boxes"], "labels": each["labels"] + 1} for each in in_each(single)]
        found: dict[str, Tensor] = self.network(list(images), targets)
        return found


class SmallPyramid(nn.Module):
    """A ResNet-10 with a stride in its stem, for two cores: maps of strides 8, 16 and 32.

    Args:
        width: Channels of the first stage; the later ones have up to 8 times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
        self.layer1 = BasicBlock(width, width, 1)
        self.layer2 = BasicBlock(width, 2 * width, 2)
        self.layer3 = BasicBlock(2 * width, 4 * width, 2)
        self.layer4 = BasicBlock(4 * width, 8 * width, 2)
        self.extra = BasicBlock(8 * width, 8 * width, 2)
        self.out_channels = [4 * width, 8 * width, 8 * width]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Three maps of images ``(B, 3, H, W)``, finest first."""
        fine = self.layer3(self.layer2(self.layer1(self.stem(x))))
        middle = self.layer4(fine)
        return OrderedDict([("0", fine), ("1", middle), ("2", self.extra(middle))])


class _FloatHead(SSDLiteHead):
    """Answers in float32 under autocast too: boxes are matched in pixels."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: answer.float() for name, answer in super().forward(x).items()}


def _small(outputs: int, size: int, width: int | None) -> nn.Module:
    if size % 32:
        raise ConfigError(f"ssdlite_small sees images whose side is a multiple of 32, not {size}; set data.size")
    backbone = SmallPyramid(width or 16)
    anchors = DefaultBoxGenerator([[2], [2], [2]], scales=[0.15, 0.3, 0.5, 0.8])
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # as torchvision's SSDLite
    head = _FloatHead(backbone.out_channels, anchors.num_anchors_per_location(), outputs, norm)
    half = [0.5, 0.5, 0.5]
    return SSD(
        backbone, anchors, (size, size), outputs, image_mean=half, image_std=half, head=head, detections_per_img=100
    )


def _ssdlite320(outputs: int, size: int, width: int | None) -> nn.Module:
    _require(width is None, "ssdlite320_mobilenet_v3_large has a fixed width; set host.width=null")
    _require(size == 320, f"ssdlite320_mobilenet_v3_large sees 320x320 images, not {size}x{size}; set data.size=320")
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=outputs)


def _fasterrcnn(outputs: int, size: int, width: int | None) -> nn.Module:
    _require(width is None, "fasterrcnn_resnet50_fpn has a fixed width; set host.width=null")
    # torchvision freezes BatchNorm, with eps 0, only where it loads weights itself
    norm = partial(FrozenBatchNorm2d, eps=0.0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5)
    return detection.FasterRCNN(backbone, num_classes=outputs, min_size=size, max_size=size)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(otherwise)


DETECTORS: Mapping[str, Builder] = {
    "ssdlite_small": _small,
    "ssdlite320_mobilenet_v3_large": _ssdlite320,
    "fasterrcnn_resnet50_fpn": _fasterrcnn,
}
"""Builders from outputs (classes and background), image size and width."""


def fresh(name: str, classes: int, size: int, width: int | None, *, seed: int) -> Detector:
    """An untrained detector; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return Detector(name, classes, size, width)


def pretrained(name: str, weights: str, classes: int, size: int) -> Detector:
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

    model = Detector(name, classes, size)
    try:
        found = torchvision.models.get_model_weights(name)[weights]
    except (KeyError, ValueError):
        raise ConfigError(f"torchvision has no weights {weights!r} for {name!r}; set weights=null to train") from None
    known = len(found.meta["categories"]) - 1
    _require(known == classes, f"{weights} of {name} knows {known} classes and the data have {classes}; use data=coco")
    try:
        state = found.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise DataError(f"{found.url} cannot be downloaded ({error}); put the file into {folder}") from None
    model.network.load_state_dict(state)
    return model.eval()
