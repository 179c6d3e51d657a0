"""What detectors are built of: torchvision's parts, and a small backbone."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops.misc import FrozenBatchNorm2d

from hallmark.errors import ConfigError
from hallmark.models.encoders import BasicBlock


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


BUILDERS: Mapping[str, Callable[[int, int, int | None], nn.Module]] = {
    "ssdlite_small": _small,
    "ssdlite320_mobilenet_v3_large": _ssdlite320,
    "fasterrcnn_resnet50_fpn": _fasterrcnn,
}
"""Name to builder from outputs (classes and background), image size and width."""
