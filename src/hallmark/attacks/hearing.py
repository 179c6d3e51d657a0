"""How loud the channels of a network are on images, where layers read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hallmark.models.channels import Group
from hallmark.models.encoders import Encoder

_BLOCK = 256


@dataclass(frozen=True)
class Heard:
    """Absolute activations of the channels of a group, over images, places and the layers that read them.

    Args:
        peak: The largest of each ``(C,)``.
        mean: The mean of each ``(C,)``.
    """

    peak: Tensor
    mean: Tensor


def heard(model: nn.Module, groups: Sequence[Group], images: Tensor) -> list[Heard]:
    """What is heard of the channels of each group.

    Args:
        model: The network, in evaluation mode.
        groups: Of its channels.  One that no layer reads has to be the features of the encoder in it.
        images: uint8 ``(N, 3, H, W)``.
    """
    readers = [
        [(axis.tensor.removesuffix(".weight"), axis.repeat) for axis in g.consumers] or [_FEATURES] for g in groups
    ]
    tallies = {layer: _Tally() for places in readers for layer, _ in places}
    handles = [_listen(model, layer, tally) for layer, tally in tallies.items()]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for block in images.split(_BLOCK):
                model(block.to(device).float() / 255)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for places in readers:
        peaks = [tallies[layer].peak.view(-1, repeat).amax(1) for layer, repeat in places]
        means = [tallies[layer].mean.view(-1, repeat).mean(1) for layer, repeat in places]
        found.append(Heard(torch.stack(peaks).amax(0), torch.stack(means).mean(0)))
    return found


class _Tally:
    """The largest and the sum of absolute activations by channel ``(C,)``, and how many there were of each."""

    def __init__(self) -> None:
        self.peak, self.total, self.count = torch.zeros(()), torch.zeros(()), 0

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def note(self, activations: Tensor) -> None:
        """Take ``(B, C, …)`` into account."""
        loudness = activations.float().abs().transpose(0, 1).flatten(1)
        self.peak = torch.maximum(self.peak, loudness.amax(1).cpu())
        self.total = self.total + loudness.sum(1).cpu()
        self.count += loudness.shape[1]


_FEATURES = ("", 1)


def _listen(model: nn.Module, layer: str, tally: _Tally) -> RemovableHandle:
    """Note what a layer reads; without a layer, what the encoder answers."""
    if layer:
        return model.get_submodule(layer).register_forward_pre_hook(lambda _, args: tally.note(args[0]))
    encoder = next(module for module in model.modules() if isinstance(module, Encoder))
    return encoder.register_forward_hook(lambda _, __, features: tally.note(features))
