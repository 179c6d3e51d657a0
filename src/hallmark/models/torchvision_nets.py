"""torchvision's networks as backbones: without their last layer, in CIFAR form, or of small numbers."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hallmark.errors import ConfigError

PREFIX = "torchvision:"
VIT_SIZE = 32
"""Height and width of the images that :func:`small_vit` takes."""

# torchvision is slow to import, and planning builds no network: it is imported where one is built


def cifar_resnet(name: str) -> Callable[[int], nn.Module]:
    """Builder by width of a ResNet with the CIFAR stem: no stride, no max-pool."""

    def build(width: int) -> nn.Module:
        import torchvision

        net = torchvision.models.get_model(name, weights=None, width_per_group=width)
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
        net.num_features = net.fc.in_features
        net.fc = nn.Identity()
        return net

    return build


def small_vit(width: int) -> nn.Module:
    """A vision transformer on 4×4 patches of 32×32 images (Dosovitskiy et al. 2021): three blocks, a class token.

    Args:
        width: A sixth of the width of tokens; there is a head for each 32 of these.
    """
    from torchvision.models import VisionTransformer

    hidden = 6 * width
    net = VisionTransformer(
        image_size=VIT_SIZE,
        patch_size=4,
        num_layers=3,
        num_heads=max(1, hidden // 32),
        hidden_dim=hidden,
        mlp_dim=4 * hidden,
        num_classes=1,
    )
    net.num_features = hidden
    net.heads = nn.Identity()
    return net


def headless(name: str) -> nn.Module:
    """Torchvision's own architecture ``torchvision:<model>`` without its last linear layer, untrained.

    Raises:
        ConfigError: torchvision has no such classifier.
    """
    from torchvision import models

    model = name.removeprefix(PREFIX)
    if model not in models.list_models(module=models):
        raise ConfigError(f"unknown torchvision classifier {model!r}; list them with torchvision.models.list_models()")
    net: nn.Module = models.get_model(model, weights=None)
    last = last_linear(net)
    parent, _, own = last.rpartition(".")
    head: Any = net.get_submodule(last)
    setattr(net.get_submodule(parent), own, nn.Identity())
    net.num_features = head.in_features
    return net


def last_linear(net: nn.Module) -> str:
    """Name of the last linear layer.

    Raises:
        ConfigError: There is none.
    """
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError(f"a {type(net).__name__} has no linear layer to read its classes from; choose another model")
    return names[-1]


def required_size(backbone: str) -> int | None:
    """Height and width of the only images a backbone takes, or None where it takes any."""
    if backbone == "vit_small":
        return VIT_SIZE
    return 224 if backbone.startswith(f"{PREFIX}vit_") else None
