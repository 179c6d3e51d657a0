"""Noise on weights, and filters shifted off their mean."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.labelled import LABELLED_HOSTS, retrain
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.models.layers import output_axis, weight_layers
from hallmark.optimisation import Training, require_batch


@dataclass(frozen=True)
class WeightNoise(Attack):
    """Gaussian noise on the weights of convolutions and linear layers.

    Args:
        sigma: Standard deviation of the noise in units of the standard deviation of each layer's weights.
    """

    sigma: float

    name: ClassVar[str] = "perturb"
    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind)
    access: ClassVar[Access] = Access.WEIGHTS
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ConfigError(f"perturb sigma must be a finite number of at least 0, got {self.sigma}")

    @property
    def strength(self) -> float:
        """Relative standard deviation."""
        return self.sigma

    @property
    def unit(self) -> str:
        """Sigma is relative to the standard deviation of each layer's weights."""
        return "sigma relative"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model with noise; no data are used."""
        model = victim.weights_module()
        if not self.sigma:
            return model
        with torch.no_grad():
            for layer in weight_layers(model).values():
                layer.weight.add_(_noise(layer.weight, generator), alpha=self.sigma)
        return model


@dataclass(frozen=True)
class WeightShift(Attack):
    """Weight shifting (Lukas et al. 2022): take the mean filter from all filters of a convolution, and add noise.

    ``w - shift · (mean over output filters) + noise · N(0, std(w))``, then training of everything on the attacker's
    labelled images, if asked.  The mean over output filters is what Uchida 2017 writes into: a shift of 1 empties it,
    one beyond turns its sign.

    Args:
        shift: λ, how often the mean filter is subtracted; 0 leaves the model as it is.
        noise: λ₂, standard deviation of the noise in units of the standard deviation of each layer's weights.
        retrain_epochs: Epochs of training afterwards; 0 for none.
        lr: Peak learning rate of the retraining.
        batch: Images per step of the retraining.
    """

    shift: float
    noise: float = 1.0
    retrain_epochs: int = 0
    lr: float = 1e-3
    batch: int = 128

    name: ClassVar[str] = "perturb"
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        for name, value in (("shift", self.shift), ("noise", self.noise), ("retrain_epochs", self.retrain_epochs)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"perturb {name} must be a finite number of at least 0, got {value}")
        require_batch(self.batch, "perturb")

    @property
    def hosts(self) -> frozenset[HostKind]:
        """Every kind; where training follows, those that labels can train."""
        return LABELLED_HOSTS if self.retrain_epochs else frozenset(HostKind)

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
        """Mean filters subtracted."""
        return self.shift

    @property
    def unit(self) -> str:
        """The noise, and whether training follows."""
        return f"mean filters noise {self.noise:g}" + (" retrained" if self.retrain_epochs else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The shifted model."""
        model = victim.weights_module()
        if not self.shift:
            return model
        with torch.no_grad():
            for layer in weight_layers(model).values():
                if not isinstance(layer, nn.Linear):
                    weight = layer.weight
                    noise = _noise(weight, generator)
                    mean = weight.mean(output_axis(layer), keepdim=True)
                    weight.sub_(mean, alpha=self.shift).add_(noise, alpha=self.noise)
        if self.retrain_epochs:
            retrain(
                model,
                attacker_data,
                epochs=self.retrain_epochs,
                batch=self.batch,
                training=Training(lr=self.lr),
                trainer=trainer,
                generator=generator,
            )
        return model.eval()


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of a weight's shape and standard deviation."""
    noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return noise.to(weight.device) * weight.std(correction=0)
