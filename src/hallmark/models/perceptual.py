"""Networks in whose features two images are compared: ImageNet's VGGs, or a stand-in that needs no weights.

Which network is used is part of the configuration and appears in results; nothing falls back to another in silence.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from hallmark.core.random import derive_seed
from hallmark.errors import ConfigError, StoreError, allowed

_VGG = {"vgg16": ("vgg16-397923af.pth", 9), "vgg19": ("vgg19-dcbb9e9d.pth", 15)}
"""File of torchvision's ImageNet weights, and number of layers: up to relu2_2 of VGG-16, conv3_3 of VGG-19."""
PERCEPTUAL = ("random", *_VGG)
"""``random`` is a small VGG with fixed random weights, which still keep much of an image (He, Wang, Hopcroft 2016)."""


def weights_file(name: str) -> Path:
    """Where torchvision keeps a VGG's ImageNet weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _VGG[name][0]


def require(name: str) -> None:
    """Raise ConfigError unless a perceptual network is known and its weights are there."""
    if name not in PERCEPTUAL:
        raise ConfigError(allowed(name, PERCEPTUAL, "perceptual network"))
    if name in _VGG and not weights_file(name).is_file():
        raise ConfigError(
            f"perceptual={name} needs torchvision's ImageNet weights at {weights_file(name)}; put them there (calling "
            f"torchvision.models.{name}(weights='DEFAULT') with a network does), or set perceptual=random"
        )


class Perceptual(nn.Module):
    """Mean squared distance of two images in the features of a frozen network.

    Images go in as they are, in [0, 1] and without ImageNet's normalisation, as in the released code.

    Args:
        name: One of :data:`PERCEPTUAL`.

    Raises:
        ConfigError: The name is unknown, or its weights are not there.
        StoreError: The file of its weights is damaged.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        require(name)
        self.features = (_random() if name == "random" else _vgg(name)).eval().requires_grad_(False)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        """Distance between images ``(B, 3, H, W)`` and references of the same shape, averaged."""
        with torch.no_grad():
            wanted = self.features(reference).float()
        return (self.features(images).float() - wanted).square().mean()


def _vgg(name: str) -> nn.Module:
    import torchvision  # slow to import, and planning compares no image

    features: nn.Sequential = torchvision.models.get_model(name, weights=None).features[: _VGG[name][1]]
    path = weights_file(name)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        features.load_state_dict({part: stored[f"features.{part}"] for part in features.state_dict()})
    except Exception as error:  # noqa: BLE001 - torch raises half a dozen unrelated types for a bad file
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path} is no file of {name}'s weights ({line}); fetch it again") from None
    return features


def _random(width: int = 16) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
    )
    rng = torch.Generator().manual_seed(derive_seed(0, "perceptual"))  # the same network everywhere, always
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return features
