"""Encoders by name: images in [0, 1] to features, normalisation included."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.errors import ConfigError, allowed
from hallmark.models.cifar_resnet import ResNet20
from hallmark.models.excite import additions, append_all, originally
from hallmark.models.torchvision_nets import PREFIX, cifar_resnet, headless, small_vit
from hallmark.models.vgg import SmallVGG
from hallmark.models.wide_resnet import CodeWideResNet, WideResNet
from hallmark.models.widths import layer_widths, set_widths

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)

NARROW = 8
"""Channels below which a 1×1 convolution with a stride is not left to oneDNN: its float32 kernel for AVX2 writes the
gradient of the weights beyond its end (seen in torch 2.15)."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a residual (He 2016, option B shortcut)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        self.subsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if stride != 1 and inputs < NARROW:  # the same numbers, by two steps
                self.subsample, stride = nn.MaxPool2d(1, stride), 1
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(y)).add_(self.shortcut(self.subsample(x))))


class SmallResNet(nn.Module):
    """A ResNet-10 in CIFAR form, four stages of one block, for two cores: ``width`` to ``8 · width`` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
        self.layer1 = BasicBlock(width, width, 1)
        self.layer2 = BasicBlock(width, 2 * width, 2)
        self.layer3 = BasicBlock(2 * width, 4 * width, 2)
        self.layer4 = BasicBlock(4 * width, 8 * width, 2)
        self.num_features = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to average-pooled features ``(B, 8 · width)``."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return x.mean(dim=(2, 3))


BACKBONES: Mapping[str, tuple[Callable[[int], nn.Module], int]] = {
    "resnet_small": (SmallResNet, 16),
    "resnet18": (cifar_resnet("resnet18"), 64),
    "resnet34": (cifar_resnet("resnet34"), 64),
    "resnet50": (cifar_resnet("resnet50"), 64),
    "resnet20_a": (ResNet20, 16),
    "vgg_small": (SmallVGG, 16),
    "vit_small": (small_vit, 16),
    "wrn10": (WideResNet, 4),
    "wrn10_code": (CodeWideResNet, 4),
}
"""Name to (builder by width, default width)."""


class Encoder(nn.Module):
    """A backbone behind its input normalisation: float images in [0, 1] ``(B, 3, H, W)`` to features ``(B, D)``.

    Args:
        backbone: A name of :data:`BACKBONES`, or ``timm:<model>`` or ``torchvision:<model>`` for any of theirs.
        width: Base width, or None for the backbone's own.
        mean: Channel means in [0, 1].
        std: Channel standard deviations.
        widths: Input and output channels of the backbone's layers that have other ones than usual, by name.
        added: What was appended to the backbone; see :func:`hallmark.models.excite.additions`.

    Raises:
        ConfigError: The backbone is unknown, its width cannot be set, or it lacks what ``widths`` or ``added`` names.
    """

    def __init__(
        self,
        backbone: str,
        width: int | None = None,
        mean: tuple[float, ...] = CIFAR_MEAN,
        std: tuple[float, ...] = CIFAR_STD,
        widths: Mapping[str, Sequence[int]] | None = None,
        added: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self._named: dict[str, Any] = {"backbone": backbone, "width": width, "mean": list(mean), "std": list(std)}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        network = _build_backbone(backbone, width)
        self._usual = layer_widths(network)
        set_widths(network, widths or {})
        append_all(network, added or {})
        self.backbone = network.to(memory_format=torch.channels_last)
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture; ``widths`` and ``added`` only where it is not the usual one."""
        now = {originally(self.backbone, name): widths for name, widths in layer_widths(self.backbone).items()}
        changed = {name: list(widths) for name, widths in now.items() if self._usual.get(name, widths) != widths}
        odd = {"widths": changed, "added": additions(self.backbone)}
        return {**self._named, **{part: content for part, content in odd.items() if content}}

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of images ``(B, 3, H, W)`` in [0, 1]."""
        images = images.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone((images - self.mean) / self.std)
        return features

    def last_stage(self) -> nn.Module:
        """The last stage with parameters: what "the last layer" of an encoder means to attacks."""
        return [child for child in self.backbone.children() if any(True for _ in child.parameters())][-1]


def _build_backbone(name: str, width: int | None) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        model = name.removeprefix("timm:")
        if not timm.is_model(model):
            raise ConfigError(f"unknown timm model {model!r}; list them with timm.list_models()")
        _fixed(name, width)
        return timm.create_model(model, pretrained=False, num_classes=0)
    if name.startswith(PREFIX):
        _fixed(name, width)
        return headless(name)
    if name not in BACKBONES:
        raise ConfigError(allowed(name, [*BACKBONES, "timm:<model>", f"{PREFIX}<model>"], "backbone"))
    build, default = BACKBONES[name]
    if name in ("resnet18", "resnet34") and width not in (None, 64):
        raise ConfigError(f"backbone {name!r} has basic blocks of fixed width 64, got width={width}; use resnet_small")
    return build(default if width is None else width)


def _fixed(name: str, width: int | None) -> None:
    if width is not None:
        raise ConfigError(f"backbone {name!r} has a fixed width; set width=null, got {width}")
