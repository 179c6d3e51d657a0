"""Networks that map images to images: hosts, surrogates, the barrier that hides a mark, and what reads and judges it.

The shapes are those of Zhang et al.'s released code (2021; see the method card of ``deep_watermark``): a pix2pix U-Net
(Isola et al. 2017) as barrier H, a CEILNet-like extractor R (Fan et al. 2017), a PatchGAN discriminator D, and the
encoder–blocks–decoder generators of CycleGAN and DeblurGAN as surrogates.  Widths and depths are free.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.core.random import derive_seed
from hallmark.errors import ConfigError, allowed
from hallmark.models.generators import ResNet, UNet, conv_norm_relu, initialised

BLOCKS = {"cnet": 0, "res9": 9, "res16": 16}
"""Residual blocks of each encoder–blocks–decoder network; CNet is plain convolutions."""
NETWORKS = ("unet", *BLOCKS)


@dataclass(frozen=True)
class Architecture:
    """Which network, and how large.

    Args:
        name: ``unet``, ``cnet``, ``res9`` or ``res16``.
        width: Channels after the first convolution.
        depth: Number of times the resolution is halved; None for the paper's 7 (``unet``) or 2 (the others).
        residual: Whether the network adds to its input; otherwise a sigmoid makes its output.
    """

    name: str = "unet"
    width: int = 64
    depth: int | None = None
    residual: bool = True

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ConfigError(allowed(self.name, NETWORKS, "image-to-image network"))
        if self.width < 1 or self.halvings < 1:
            raise ConfigError(f"{self.name} needs width ≥ 1 and depth ≥ 1, got {self.width} and {self.depth}")

    @property
    def halvings(self) -> int:
        """The depth, spelled out."""
        if self.depth is None:
            return 7 if self.name == "unet" else 2
        return self.depth

    @property
    def stride(self) -> int:
        """What each side of an image must be a multiple of."""
        return 2**self.halvings

    def require(self, height: int, width: int) -> None:
        """Raise ConfigError unless images of this size go through the network and come out the same size."""
        if height % self.stride or width % self.stride:
            raise ConfigError(
                f"{height}x{width} images do not fit a {self.name} of depth {self.halvings}: each side must be a "
                f"multiple of {self.stride}; change the image size or lower the depth"
            )

    def network(self, inputs: int, outputs: int) -> nn.Module:
        """An untrained network ``(B, inputs, H, W) → (B, outputs, H, W)``."""
        if self.name == "unet":
            return UNet(inputs, outputs, self.width, self.halvings)
        return ResNet(inputs, outputs, self.width, self.halvings, BLOCKS[self.name])


class ImageToImage(nn.Module):
    """A network behind its input normalisation: images in [0, 1] ``(B, 3, H, W)`` to images in [0, 1].

    Args:
        architecture: Which network.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = initialised(architecture.network(3, 3))

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture."""
        return asdict(self.architecture)

    def unclamped(self, images: Tensor) -> Tensor:
        """The output before it is cut to [0, 1]: what a loss compares, since a cut-off pixel has no gradient."""
        self.architecture.require(images.shape[2], images.shape[3])
        return _finish(self.network(2 * images - 1), images, self.architecture)

    def forward(self, images: Tensor) -> Tensor:
        """Output images ``(B, 3, H, W)`` in [0, 1]."""
        return self.unclamped(images).clamp(0, 1)


class Barrier(nn.Module):
    """H: hides a mark in an image.

    Args:
        architecture: Which network; it sees image and mark side by side, as six channels.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = initialised(architecture.network(6, 3))

    def forward(self, images: Tensor, marks: Tensor) -> Tensor:
        """Marked images, not cut to [0, 1].

        Args:
            images: ``(B, 3, H, W)`` in [0, 1].
            marks: ``(B, 3, H, W)``, or ``(1, 3, H, W)`` for all images, in [0, 1].

        Raises:
            ConfigError: The images are of another size than the marks, or do not fit the network.
        """
        if marks.shape[-2:] != images.shape[-2:]:
            size, side = ("x".join(map(str, t.shape[-2:])) for t in (images, marks))
            raise ConfigError(f"the barrier hides a {side} mark and cannot mark {size} images; give {side} images")
        self.architecture.require(images.shape[2], images.shape[3])
        pair = torch.cat([images, marks.expand_as(images)], dim=1)
        return _finish(self.network(2 * pair - 1), images, self.architecture)


class Barriered(nn.Module):
    """A host whose every output goes through a barrier before anybody sees it.

    Args:
        host: An :class:`ImageToImage`, or another host behind a barrier.
        barrier: H.
        mark: The hidden mark, float ``(3, H, W)`` in [0, 1].
    """

    mark: Tensor

    def __init__(self, host: nn.Module, barrier: Barrier, mark: Tensor) -> None:
        super().__init__()
        self.host = host
        self.barrier = barrier
        self.register_buffer("mark", mark)

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture."""
        return {"host": self.host.spec, "barrier": asdict(self.barrier.architecture), "mark": list(self.mark.shape)}

    def unclamped(self, images: Tensor) -> Tensor:
        """The marked output before it is cut to [0, 1]: what a loss compares."""
        marked: Tensor = self.barrier(self.host(images), self.mark[None])
        return marked

    def forward(self, images: Tensor) -> Tensor:
        """Marked output images ``(B, 3, H, W)`` in [0, 1]."""
        return self.unclamped(images).clamp(0, 1)


def from_spec(spec: dict[str, Any]) -> ImageToImage | Barriered:
    """An untrained network of the ``spec`` that it, or its like, once gave."""
    if "host" not in spec:
        return ImageToImage(Architecture(**spec))
    return Barriered(from_spec(spec["host"]), Barrier(Architecture(**spec["barrier"])), torch.zeros(spec["mark"]))


def fresh(architecture: Architecture, seed: int) -> ImageToImage:
    """An untrained network; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return ImageToImage(architecture)


class Extractor(nn.Module):
    """R, CEILNet-like: an image ``(B, 3, H, W)`` to the mark it carries, ``(B, 3, H, W)``, not negative.

    Args:
        width: Channels everywhere; the paper's 128.
        blocks: Dilated residual blocks at half resolution; the paper's 9.
    """

    def __init__(self, width: int = 128, blocks: int = 9) -> None:
        super().__init__()
        # dilations 2 2 2 2 4 4 4 4 1 of the released code, for any number of blocks
        dilations = [*[2] * (blocks // 2), *[4] * ((blocks - 1) // 2), 1][:blocks]
        self.layers = initialised(
            nn.Sequential(
                *conv_norm_relu(nn.Conv2d(3, width, 3, 1, 1, bias=False)),
                *conv_norm_relu(nn.Conv2d(width, width, 3, 1, 1, bias=False)),
                *conv_norm_relu(nn.Conv2d(width, width, 3, 2, 1, bias=False)),
                *(DilatedBlock(width, dilation) for dilation in dilations),
                *conv_norm_relu(nn.ConvTranspose2d(width, width, 4, 2, 1)),
                *conv_norm_relu(nn.Conv2d(width, width, 3, 1, 1)),
                nn.Conv2d(width, 3, 1),
                nn.ReLU(),
            )
        )
        nn.init.constant_(self.layers[-2].bias, 0.5)  # mid-grey: a final ReLU that starts at zero may never wake

    def forward(self, images: Tensor) -> Tensor:
        """Read the mark; sides must be even."""
        if images.shape[2] % 2 or images.shape[3] % 2:
            raise ConfigError(f"the extractor reads images of even sides, got {images.shape[2]}x{images.shape[3]}")
        read: Tensor = self.layers(images)
        return read


class Discriminator(nn.Module):
    """D, a PatchGAN: images ``(B, 3, H, W)`` to one logit a patch.

    Args:
        width: Channels of the first layer; the paper's 64.
        inputs: Channels of an image.
    """

    def __init__(self, width: int = 64, inputs: int = 3) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 3, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = initialised(nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 3, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 1, ⌈H/16⌉, ⌈W/16⌉)``, larger for real images.

        Raises:
            ConfigError: A side is no longer than 16: nothing would be left to normalise.
        """
        if min(images.shape[2:]) <= 16:
            raise ConfigError(
                f"the discriminator judges images with sides above 16, got {images.shape[2]}x{images.shape[3]}"
            )
        logits: Tensor = self.layers(2 * images - 1)
        return logits


class DilatedBlock(nn.Module):
    """Two dilated convolutions with InstanceNorm, added to their input ``(B, width, H, W)``."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False) for _ in range(2))
        self.layers = nn.Sequential(*conv_norm_relu(first), second, nn.InstanceNorm2d(width, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width, H, W)`` to the same shape."""
        return torch.relu(x + self.layers(x))


def _finish(raw: Tensor, images: Tensor, architecture: Architecture) -> Tensor:
    return images + raw.float() if architecture.residual else torch.sigmoid(raw.float())
