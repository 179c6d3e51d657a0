"""ResNet-20 for 32×32 images with parameter-free shortcuts (He 2016, section 4.2, option A)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BlockA(nn.Module):
    """Two 3×3 convolutions with BatchNorm; where they halve the map, the shortcut drops pixels and pads channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))
        return torch.relu(y + x)


class ResNet20A(nn.Module):
    """Three stages of three blocks of 16, 32 and 64 channels: normalised images ``(B, 3, 32, 32)`` to logits.

    Parameters are named as in the widespread CIFAR-10 checkpoints of this network: ``conv1``, ``bn1``,
    ``layer1.0.conv1`` … ``layer3.2.bn2``, ``linear``.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BlockA(16, 16), BlockA(16, 16), BlockA(16, 16))
        self.layer2 = nn.Sequential(BlockA(16, 32), BlockA(32, 32), BlockA(32, 32))
        self.layer3 = nn.Sequential(BlockA(32, 64), BlockA(64, 64), BlockA(64, 64))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
