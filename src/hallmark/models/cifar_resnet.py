"""ResNets for CIFAR as He et al. 2016, §4.2, build them: three stages, shortcuts without parameters (option A).

Layers are called as in the widely used weights of Y. Idelbayev (github.com/akamaster/pytorch_resnet_cifar10).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedBlock(nn.Module):
    """Two 3×3 convolutions; where shapes differ, the shortcut drops every second pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks.

    Args:
        width: Channels of the first stage, 16 in the paper; the others have 2 and 4 times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.num_features = 4 * width

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to average-pooled features ``(B, 4 · width)``."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = (PaddedBlock(outputs, outputs, 1) for _ in range(2))
    return nn.Sequential(PaddedBlock(inputs, outputs, stride), *rest)
