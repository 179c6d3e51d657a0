"""Pruning of single weights: the smallest, the largest, or any."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.labelled import LABELLED_HOSTS, retrain
from hallmark.components import NEUTRAL
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.layers import find_layer, weight_layers
from hallmark.optimisation import Training, require_batch

SCOPES = ("global", "layer")
ORDERS = ("ascending", "random", "descending")


@dataclass(frozen=True)
class Prune(Attack):
    """Set weights of convolutions and linear layers to zero, then train what is left, if asked.

    Args:
        fraction: Share of the weights that is removed, 0 … 1.
        scope: ``global`` ranks all weights together, ``layer`` each layer's own.
        retrain_epochs: Epochs of training on the attacker's labelled images afterwards; 0 for none.
        lr: Peak learning rate of the retraining.
        batch: Images per step of the retraining.
        order: What goes first: ``ascending`` the smallest magnitudes, ``descending`` the largest, ``random`` any.
        layers: Module names of the pruned layers, in full or the end of them; all if empty.
    """

    fraction: float
    scope: str = "global"
    retrain_epochs: int = 0
    lr: float = 1e-3
    batch: int = 128
    order: str = field(default="ascending", metadata=NEUTRAL)
    layers: tuple[str, ...] = field(default=(), metadata=NEUTRAL)

    name: ClassVar[str] = "prune"
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(allowed(self.scope, SCOPES, "prune scope"))
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"prune fraction must lie in 0 … 1, got {self.fraction}")
        if self.retrain_epochs < 0:
            raise ConfigError(f"prune retrain_epochs must be at least 0, got {self.retrain_epochs}")
        require_batch(self.batch, "prune")
        if self.order not in ORDERS:
            raise ConfigError(allowed(self.order, ORDERS, "prune order"))
        object.__setattr__(self, "layers", tuple(self.layers))  # a configuration's list made hashable

    def check_host(self, host: nn.Module) -> None:
        """Refuse layers that the host has not."""
        for layer in self.layers:
            find_layer(host, layer)

    @property
    def hosts(self) -> frozenset[HostKind]:
        """Every kind; where training follows, those that labels can train."""
        return LABELLED_HOSTS if self.retrain_epochs else frozenset(HostKind)

    @property
    def knows(self) -> frozenset[str]:
        """The layer, where only some are pruned."""
        return frozenset({"layer"} if self.layers else ())

    @property
    def needs_labels(self) -> bool:
        """Where training follows."""
        return bool(self.retrain_epochs)

    @property
    def needs_images(self) -> bool:
        """Where training follows."""
        return self.needs_labels

    @property
    def strength(self) -> float:
        """Share of weights removed."""
        return self.fraction

    @property
    def unit(self) -> str:
        """Scope, order and layers where they are not the usual ones, and whether training follows."""
        order = "" if self.order == type(self).order else f" {self.order}"
        layers = f" of {', '.join(self.layers)}" if self.layers else ""
        return f"fraction {self.scope}{order}{layers}" + (" retrained" if self.retrain_epochs else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The pruned model; pruned weights stay zero through retraining."""
        model = victim.weights_module()
        if not self.fraction:
            return model
        masks = prune(model, self.fraction, self.scope, order=self.order, layers=self.layers, generator=generator)
        if self.retrain_epochs:
            retrain(
                model,
                attacker_data,
                epochs=self.retrain_epochs,
                batch=self.batch,
                training=Training(lr=self.lr, weight_decay=0.0),
                trainer=trainer,
                generator=generator,
                after_step=lambda: apply_masks(masks),
            )
        return model.eval()


def prune(
    model: nn.Module,
    fraction: float,
    scope: str,
    *,
    order: str = "ascending",
    layers: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Zero weights of a model in place.

    Args:
        model: Any model; convolution and linear weights are pruned, biases and normalisation are not.
        fraction: Share to remove, 0 … 1.
        scope: ``global`` or ``layer``.
        order: ``ascending`` or ``descending`` in magnitude, or ``random``.
        layers: Names of the layers whose weights are pruned; all if empty.
        generator: Draws the random order.

    Returns:
        Each pruned weight with its mask (1 kept, 0 removed).

    Raises:
        ConfigError: The model has no layer of such a name; the message lists those it has.
    """
    chosen = {find_layer(model, name) for name in layers} or set(weight_layers(model).values())
    weights = [layer.weight for layer in weight_layers(model).values() if layer in chosen]
    groups = [weights] if scope == "global" else [[weight] for weight in weights]
    masks = []
    for group in groups:
        magnitudes = torch.cat([weight.detach().abs().flatten() for weight in group])
        kept = torch.split(_kept(magnitudes, fraction, order, generator), [weight.numel() for weight in group])
        masks += [(weight, mask.view(weight.shape)) for weight, mask in zip(group, kept, strict=True)]
    apply_masks(masks)
    return masks


def _kept(magnitudes: Tensor, fraction: float, order: str, generator: torch.Generator | None) -> Tensor:
    """0 for the first ``fraction`` of the entries in an order, 1 for the rest; exact in number even among equals.

    torch.nn.utils.prune does the same, but not on channels-last weights, whose memory is not contiguous.
    """
    if order == "random":
        ranked = torch.randperm(len(magnitudes), generator=generator)
    else:
        ranked = magnitudes.argsort(descending=order == "descending")
    mask = torch.ones_like(magnitudes)
    mask[ranked[: round(fraction * len(magnitudes))]] = 0
    return mask


def apply_masks(masks: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Zero, in place, the entries of tensors whose masks (1 kept, 0 removed) are zero."""
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask.to(weight.device))
