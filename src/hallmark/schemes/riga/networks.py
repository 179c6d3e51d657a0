"""The two small networks of the owner: the extractor, which reads bits from weights, and the detector, which suspects.

Both are fully connected with three layers.  The extractor sees the mean filter with its input channels in the key's
order and at root mean square 1, so that no constant factor matters; the detector sees the sorted mean filter.
"""

from torch import Tensor, nn

from hallmark.core import Key
from hallmark.models.layers import WeightLayer
from hallmark.schemes.uchida.filters import filter_mean, filter_shape
from hallmark.schemes.uchida.regulariser import host_layer

EXTRACTOR = "extractor"
"""What the extractor is called in a key."""


def channels(layer: WeightLayer) -> int:
    """Input channels D of a layer: the rows of its mean filter."""
    return filter_shape(layer)[0]


def ordered(means: Tensor, order: Tensor) -> Tensor:
    """Mean filters ``(…, M)`` with their D input channels in another order ``(D,)``."""
    rows = means.unflatten(-1, (len(order), -1))
    return rows[..., order, :].flatten(-2)


def standardised(means: Tensor) -> Tensor:
    """Vectors ``(…, M)`` at root mean square 1; zeros stay zeros."""
    return means / means.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def responses(extractor: nn.Module, means: Tensor, order: Tensor) -> Tensor:
    """Logits ``(…, T)`` of the bits in mean filters ``(…, M)``; at least 0 reads as 1."""
    found: Tensor = extractor(standardised(ordered(means, order)))
    return found


def layer_mean(model: nn.Module, key: Key) -> Tensor:
    """The mean filter ``(M,)`` of a model's host layer, float32 on the CPU.

    Raises:
        ConfigError: The model has no such layer.
        KeyFileError: The key was made for filters of another shape.
    """
    return filter_mean(host_layer(model, key)).detach().cpu().float()
