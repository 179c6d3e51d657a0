"""What is minimised to write the bits, and what is read back: responses X w, their loss, their errors.

Training adds λ times the *sum* of the bits' cross entropies; the papers report their *mean*.  See the method card.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Key
from hallmark.errors import KeyFileError
from hallmark.models.layers import WeightLayer, find_layer
from hallmark.schemes.uchida.carriers import project
from hallmark.schemes.uchida.filters import filter_mean, filter_shape


def mark_loss(responses: Tensor, message: Tensor) -> Tensor:
    """E_R: binary cross entropy of ``σ(responses)`` to the message, both ``(T,)``, *summed* over the bits."""
    return F.binary_cross_entropy_with_logits(responses, message.to(responses.dtype), reduction="sum")


def loss_per_bit(responses: Tensor, message: Tensor) -> float:
    """E_R as the papers report it, in nats: the *mean* over the bits of responses and message, both ``(T,)``."""
    return float(mark_loss(responses, message)) / len(message)


def host_layer(model: nn.Module, key: Key) -> WeightLayer:
    """The layer of a model that a key belongs to.

    Raises:
        ConfigError: The model has no such layer.
        KeyFileError: The key was made for filters of another shape.
    """
    layer = find_layer(model, key.meta["layer"])
    made_for, found = tuple(key.meta["shape"]), filter_shape(layer)
    if made_for != found:
        raise KeyFileError(
            f"the key was made for filters of shape {made_for}, but those of layer {key.meta['layer']!r} have {found}; "
            "use the key of this architecture"
        )
    return layer


@torch.no_grad()
def read(model: nn.Module, key: Key) -> Tensor:
    """Responses X w of a model's host layer, float64 ``(T,)`` on the CPU; a response of at least 0 reads as 1.

    Raises:
        ConfigError: The model has no such layer.
        KeyFileError: The key was made for filters of another shape.
    """
    return project(key.tensors["carrier"], filter_mean(host_layer(model, key)).cpu().double())


def right_bits(responses: Tensor, message: Tensor) -> int:
    """How many bits of the message ``(T,)`` the responses ``(T,)`` give back."""
    return int(((responses >= 0) == message.bool()).sum())
