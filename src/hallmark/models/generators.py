"""Layers of image-to-image networks, from ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """pix2pix's U-Net: ``depth`` strided convolutions down, as many transposed ones up, a skip at every level.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        width: Channels of the first level; levels hold width × 1, 2, 4, 8, 8, ….
        depth: Levels.
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        channels = [inputs, *(width * min(2**level, 8) for level in range(depth))]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            outermost, innermost = level == 0, level == depth - 1
            above, below = channels[level], channels[level + 1]
            rise = outputs if outermost else above
            down: list[nn.Module] = [nn.Conv2d(above, below, 4, 2, 1, bias=False)]
            up: list[nn.Module] = [
                nn.ReLU(),
                nn.ConvTranspose2d(below if innermost else 2 * below, rise, 4, 2, 1, bias=outermost),
            ]
            if not outermost:
                down.insert(0, nn.LeakyReLU(0.2))
                up.append(nn.BatchNorm2d(rise))
                if not innermost:
                    down.append(nn.BatchNorm2d(below))
            self.down.append(nn.Sequential(*down))
            self.up.append(nn.Sequential(*up))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.up[-1](x)
        for up, skip in zip(reversed(self.up[:-1]), reversed(skips[:-1]), strict=True):
            x = up(torch.cat([skip, x], dim=1))
        return x


class ResNet(nn.Module):
    """A 7×7 convolution, ``depth`` halvings, residual blocks, as many doublings, a 7×7 convolution.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        width: Channels at full resolution; each halving doubles them.
        depth: Halvings.
        blocks: Residual blocks of one convolution each, which is what the released code's blocks come down to.
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, blocks: int) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        layers: list[nn.Module] = [*conv_norm_relu(_reflect(inputs, width, 7), affine=False)]
        for above, below in pairwise(channels):
            layers += conv_norm_relu(nn.Conv2d(above, below, 3, 2, 1), affine=False)
        layers += [ResidualBlock(channels[-1]) for _ in range(blocks)]
        for below, above in pairwise(reversed(channels)):
            layers += conv_norm_relu(nn.ConvTranspose2d(below, above, 3, 2, 1, output_padding=1), affine=False)
        self.layers = nn.Sequential(*layers, _reflect(width, outputs, 7))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        y: Tensor = self.layers(x)
        return y


class ResidualBlock(nn.Module):
    """One convolution with InstanceNorm and ReLU, added to its input ``(B, width, H, W)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_norm_relu(_reflect(width, width, 3), affine=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, width, H, W)`` to the same shape."""
        return x + self.layers(x)


def conv_norm_relu(convolution: nn.Module, *, affine: bool = True) -> list[nn.Module]:
    """A convolution with InstanceNorm and ReLU."""
    return [convolution, nn.InstanceNorm2d(int(convolution.out_channels), affine=affine), nn.ReLU()]  # type: ignore[arg-type]


def _reflect(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, padding_mode="reflect")


def initialised(network: nn.Module) -> nn.Module:
    """Draw convolution weights from N(0, 0.02) and BatchNorm gains from N(1, 0.02), as pix2pix does."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network
