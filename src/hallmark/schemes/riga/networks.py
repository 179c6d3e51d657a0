"""The two small networks of the owner: the extractor, which reads bits from weights, and the detector, which suspects.

Both are fully connected with three layers.  The extractor sees the mean filter with its input channels in the key's
order and at root mean square 1, so that no constant factor matters; the detector sees the sorted mean filter.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.models.layers import WeightLayer
from hallmark.schemes.uchida.filters import filter_mean, filter_shape
from hallmark.schemes.uchida.regulariser import host_layer

_PREFIX = "extractor."
"""What the extractor's tensors are called in a key."""


def three_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A fully connected network ``(…, inputs) → (…, outputs)`` with two hidden ReLU layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def fresh(inputs: int, hidden: int, outputs: int, seed: int) -> nn.Sequential:
    """An untrained :func:`three_layers`, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return three_layers(inputs, hidden, outputs)


def packed(extractor: nn.Module) -> dict[str, Tensor]:
    """The extractor's tensors as a key holds them."""
    return {f"{_PREFIX}{name}": tensor.detach().cpu().clone() for name, tensor in extractor.state_dict().items()}


def unpacked(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The extractor that a key holds; it shares the key's tensors."""
    state = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    hidden, inputs = state["0.weight"].shape
    with torch.device("meta"):
        network = three_layers(inputs, hidden, len(state["4.weight"]))
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


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
