"""The mean filter of a layer: what the bits are written into, and read from."""

import torch
from torch import Tensor

from hallmark.models.layers import WeightLayer, output_axis


def filter_shape(layer: WeightLayer) -> tuple[int, ...]:
    """Shape of one output filter, ``(D, S, S)`` of a convolution with D input channels; its product is M."""
    shape = list(layer.weight.shape)
    del shape[output_axis(layer)]
    return tuple(shape)


def filter_mean(layer: WeightLayer) -> Tensor:
    """The mean over output filters, flattened to ``(M,)``; no order of the filters changes it.  Biases are ignored."""
    return layer.weight.mean(output_axis(layer)).flatten()


@torch.no_grad()
def shift_filters(layer: WeightLayer, change: Tensor) -> None:
    """Move the filter mean by ``change`` ``(M,)``, with the least change of weights: every filter moves alike."""
    layer.weight += change.to(layer.weight).view(filter_shape(layer)).unsqueeze(output_axis(layer))
