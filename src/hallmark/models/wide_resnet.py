"""Wide ResNets of depth 10 for small images (Zagoruyko and Komodakis 2016): three groups of one block each.

Groups are numbered as in the papers, where the stem is group 1: the convolution that Uchida et al. (2017) call "the
second of conv 2" is ``group2.conv2``.  The *widening factor* k multiplies the channels of the three groups, 16, 32 and
64; the stem always has 16.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM = 16
"""Channels of the stem, and of the first group before widening."""


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice and a residual; where shapes differ, its 1×1 convolution starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        active = torch.relu_(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        y: Tensor = self.conv2(torch.relu_(self.bn2(self.conv1(active))))
        return y + kept


class WideResNet(nn.Module):
    """WRN-10-k as its paper describes it: pre-activation blocks, strided convolutions, no biases beside BatchNorm.

    Args:
        width: Widening factor k; features have ``64 · k`` channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [STEM * width * 2**group for group in range(3)]
        # before the groups, so that the last child with parameters is a group: attacks take it for the last stage
        self.bn = nn.BatchNorm2d(channels[2])
        self.conv1 = nn.Conv2d(3, STEM, 3, 1, 1, bias=False)
        self.group2 = PreActivationBlock(STEM, channels[0], 1)
        self.group3 = PreActivationBlock(channels[0], channels[1], 2)
        self.group4 = PreActivationBlock(channels[1], channels[2], 2)
        self.num_features = channels[2]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to average-pooled features ``(B, 64 · k)``."""
        x = self.group4(self.group3(self.group2(self.conv1(x))))
        return torch.relu_(self.bn(x)).mean(dim=(2, 3))


class PostActivationBlock(nn.Module):
    """Conv-BN-ReLU twice, then a residual with no ReLU after it; a 1×1 linear convolution where widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, H, W)``."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        kept: Tensor = self.shortcut(x)
        return y + kept


class CodeWideResNet(nn.Module):
    """WRN-10-k as the public code of Uchida et al. builds it: post-activation, max-pooling between groups, biases.

    Args:
        width: Widening factor k; features have ``64 · k`` channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [STEM * width * 2**group for group in range(3)]
        self.conv1 = nn.Conv2d(3, STEM, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.group2 = PostActivationBlock(STEM, channels[0])
        self.group3 = PostActivationBlock(channels[0], channels[1])
        self.group4 = PostActivationBlock(channels[1], channels[2])
        self.num_features = channels[2]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to average-pooled features ``(B, 64 · k)``."""
        x = self.group2(torch.relu_(self.bn1(self.conv1(x))))
        x = self.group3(F.max_pool2d(x, 2))
        x = self.group4(F.max_pool2d(x, 2))
        return x.mean(dim=(2, 3))
