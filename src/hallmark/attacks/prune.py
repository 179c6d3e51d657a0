"""Magnitude pruning."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed

SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Prune(Attack):
    """Set the smallest weights of convolutions and linear layers to zero, then train what is left, if asked.

    Args:
        fraction: Share of the weights that is removed, 0 … 1.
        scope: ``global`` ranks all weights together, ``layer`` each layer's own.
        retrain_epochs: Epochs of training on the attacker's labelled images afterwards; 0 for none.
        lr: Peak learning rate of the retraining.
        batch: Images per step of the retraining.
    """

    fraction: float
    scope: str = "global"
    retrain_epochs: int = 0
    lr: float = 1e-3
    batch: int = 128

    name: ClassVar[str] = "prune"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(allowed(self.scope, SCOPES, "prune scope"))
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"prune fraction must lie in 0 … 1, got {self.fraction}")
        if self.retrain_epochs < 0:
            raise ConfigError(f"prune retrain_epochs must be at least 0, got {self.retrain_epochs}")

    @property
    def strength(self) -> float:
        """Share of weights removed."""
        return self.fraction

    @property
    def unit(self) -> str:
        """Scope, and whether training follows."""
        return f"fraction {self.scope}" + (" retrained" if self.retrain_epochs else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The pruned model; pruned weights stay zero through retraining."""
        model = victim.weights_module()
        if not self.fraction:
            return model
        masks = prune(model, self.fraction, self.scope)
        if self.retrain_epochs:
            from hallmark.attacks.labelled import with_head  # Lightning is needed here alone
            from hallmark.supervised import train_classifier

            classifier, _ = with_head(model, attacker_data, trainer=trainer, generator=generator)
            train_classifier(
                classifier,
                attacker_data,
                trained=classifier.parameters(),
                epochs=self.retrain_epochs,
                lr=self.lr,
                batch=self.batch,
                weight_decay=0.0,
                trainer=trainer,
                seed=generator.initial_seed(),
                after_step=lambda: _apply(masks),
            )
        return model.eval()


def prune(model: nn.Module, fraction: float, scope: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Zero the smallest weights of a model in place.

    Args:
        model: Any model; convolution and linear weights are pruned, biases and normalisation are not.
        fraction: Share to remove, 0 … 1.
        scope: ``global`` or ``layer``.

    Returns:
        Each pruned weight with its mask (1 kept, 0 removed).
    """
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if scope == "global":
        flat = torch.cat([w.detach().abs().flatten() for w in weights])
        kept = torch.split(_largest(flat, fraction), [w.numel() for w in weights])
    else:
        kept = tuple(_largest(w.detach().abs().flatten(), fraction) for w in weights)
    masks = [(w, mask.view(w.shape)) for w, mask in zip(weights, kept, strict=True)]
    _apply(masks)
    return masks


def _largest(magnitudes: Tensor, fraction: float) -> Tensor:
    """1 for all but the smallest ``fraction`` of the entries, 0 for those; exact in number even among equals.

    torch.nn.utils.prune does the same, but not on channels-last weights, whose memory is not contiguous.
    """
    mask = torch.ones_like(magnitudes)
    mask[magnitudes.argsort()[: round(fraction * len(magnitudes))]] = 0
    return mask


def _apply(masks: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask.to(weight.device))
