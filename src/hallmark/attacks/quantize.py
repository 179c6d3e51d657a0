"""Weights in fewer bits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.layers import output_axis, weight_layers

FLOAT_BITS, BFLOAT16_BITS = 32, 16
GRIDS = ("per_tensor", "per_channel", "bfloat16")


@dataclass(frozen=True)
class Quantize(Attack):
    """Round the weights of convolutions and linear layers to few values, and go on computing in float32.

    Biases and normalisation stay as they are, as in the usual deployment on integers.

    Args:
        bits_removed: Of the 32 bits of a float: 24 leaves int8's 8 bits, 30 leaves the values -max, 0 and max; 0 leaves
            the model as it is.
        grid: ``per_tensor`` has evenly spaced values from -max to max of each layer's weights, ``per_channel`` of each
            output's own; ``bfloat16``, which removes 16 bits, is the nearest number of that format.
    """

    bits_removed: int
    grid: str = "per_tensor"

    name: ClassVar[str] = "quantize"
    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind)
    access: ClassVar[Access] = Access.WEIGHTS
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise ConfigError(allowed(self.grid, GRIDS, "quantize grid"))
        if not 0 <= self.bits_removed <= FLOAT_BITS - 2 or int(self.bits_removed) != self.bits_removed:
            raise ConfigError(f"quantize bits_removed must be a whole number in 0 … 30 of 32, got {self.bits_removed}")
        if self.grid == "bfloat16" and self.bits_removed not in (0, FLOAT_BITS - BFLOAT16_BITS):
            raise ConfigError(f"bfloat16 removes 16 of 32 bits; set quantize bits_removed=16, got {self.bits_removed}")

    @property
    def strength(self) -> float:
        """Bits removed of 32."""
        return float(self.bits_removed)

    @property
    def unit(self) -> str:
        """The grid."""
        return f"bits removed {self.grid}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model with rounded weights; no data and no randomness are used."""
        model = victim.weights_module()
        if not self.bits_removed:
            return model
        with torch.no_grad():
            for layer in weight_layers(model).values():
                weight = layer.weight
                if self.grid == "bfloat16":
                    weight.copy_(weight.bfloat16())
                else:
                    axis = output_axis(layer) if self.grid == "per_channel" else None
                    weight.copy_(quantized(weight, FLOAT_BITS - int(self.bits_removed), axis))
        return model


def quantized(weight: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """The nearest of the ``2 ** bits - 1`` evenly spaced values from -max |w| to max |w|, zero among them.

    Args:
        weight: Of any shape.
        bits: At least 2.
        axis: Dimension along which each slice has a maximum of its own; None for one maximum over all.
    """
    reduced = [dimension for dimension in range(weight.ndim) if dimension != axis]
    step = weight.abs().amax(dim=reduced, keepdim=True) / (2 ** (bits - 1) - 1)
    step = step.clamp_min(torch.finfo(weight.dtype).tiny)  # a layer of zeros stays one
    rounded: Tensor = (weight / step).round() * step
    return rounded
