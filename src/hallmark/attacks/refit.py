"""The end of a classifier, refitted on a few images; what is before it stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.sample import draw_images
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.classifier import Classifier

PARTS = ("bias", "last")
_BLOCK = 512


@dataclass(frozen=True)
class Refit(Attack):
    """Refit the bias of the logits, or the whole last layer, by cross entropy on n images of the attacker.

    Both problems are convex; L-BFGS solves them on features that are computed once.  Labels are smoothed by Laplace's
    rule (one more image of every class), so that a class of which the attacker has no image is not ruled out.  Weights
    are held to the stolen ones by ``decay``; the stolen bias, which may be a lock, is forgotten.

    The bias alone needs no labels: its cross entropy depends on them through the frequency of each class, so one who
    expects all classes equally often can do without (``labelled=false``).

    Args:
        images: n.
        part: ``bias`` or ``last``, which has the bias too.
        labelled: Whether labels are used; only the bias can be fitted without.
        decay: Weight of half the squared change of the logits that a change of weights makes, a mean over images; of
            ``last`` alone.
        iterations: Of L-BFGS, at most.
    """

    images: int
    part: str = "bias"
    labelled: bool = True
    decay: float = 0.01
    iterations: int = 200

    name: ClassVar[str] = "refit"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(allowed(self.part, PARTS, "refit part"))
        if self.part == "last" and not self.labelled:
            raise ConfigError("refit part=last cannot be fitted without labels; set labelled=true or part=bias")
        if self.images < 0 or self.images != int(self.images):
            raise ConfigError(f"refit images must be a whole number of at least 0, got {self.images}")
        if self.iterations < 1 or not self.decay > 0:
            raise ConfigError(f"refit needs iterations ≥ 1 and decay above 0, got {self.iterations} and {self.decay}")

    @property
    def needs_labels(self) -> bool:
        """Unless told to do without."""
        return self.labelled

    def images_used(self, images: int) -> int:
        """The strength."""
        return int(self.images)

    @property
    def strength(self) -> float:
        """Images."""
        return float(self.images)

    @property
    def unit(self) -> str:
        """What the images are and what is fitted, with the decay where it is not the usual one."""
        decay = "" if self.decay == type(self).decay else f" decay {self.decay:g}"
        return f"{'labelled' if self.labelled else 'unlabelled'} images {self.part}{decay}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The refitted classifier.

        Raises:
            ConfigError: It is no classifier of the attacker's classes, or the attacker has fewer images.
        """
        model = victim.weights_module()
        if not self.images:
            return model
        if not isinstance(model, Classifier):
            raise ConfigError(f"cannot refit the logits of a {type(model).__name__}; allowed: Classifier")
        classes = attacker_data.classes
        if model.classes != classes:
            raise ConfigError(f"the victim answers {model.classes} classes, the attacker's data has {classes}")
        chosen = draw_images(attacker_data, self.images, "refit.images", generator=generator)
        targets = torch.full((self.images, classes), 1 / classes)
        if self.labelled:
            targets = smoothed(attacker_data.labels[chosen], classes)
        layer: nn.Linear = model.head[-1]  # type: ignore[assignment]
        with torch.no_grad():
            blocks = attacker_data.images[chosen].split(_BLOCK)
            parts = [model.head[:-1](model.features(block.to(victim.device).float() / 255)) for block in blocks]
        features = torch.cat(parts).double().cpu()
        start = layer.weight.detach().double().cpu()
        if self.part == "bias":
            weight, bias = start, fit_bias(features @ start.T, targets, iterations=self.iterations)
        else:
            weight, bias = fit_layer(features, targets, start, decay=self.decay, iterations=self.iterations)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return model


def smoothed(labels: Tensor, classes: int) -> Tensor:
    """Targets ``(N, C)`` for labels ``(N,)`` whose mean is Laplace's rule: one more image of every class."""
    share = classes / (len(labels) + classes)
    return (1 - share) * F.one_hot(labels, classes).double() + share / classes


def fit_bias(logits: Tensor, targets: Tensor, *, iterations: int) -> Tensor:
    """The bias ``(C,)``, of mean zero, that minimises the cross entropy of ``logits + bias``.

    Args:
        logits: Without a bias, float64 ``(N, C)``.
        targets: Distributions ``(N, C)`` in which every class has a part.
        iterations: Of L-BFGS, at most.
    """
    bias = torch.zeros(logits.shape[1], dtype=logits.dtype)

    def loss() -> Tensor:
        return F.cross_entropy(logits + bias, targets.to(logits))

    _minimise(loss, [bias], iterations)
    return bias.detach() - bias.detach().mean()


def fit_layer(
    features: Tensor, targets: Tensor, start: Tensor, *, decay: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """The weight ``(C, D)`` and the bias ``(C,)`` that minimise cross entropy, the weight near ``start``.

    Args:
        features: float64 ``(N, D)``.
        targets: Distributions ``(N, C)``.
        start: ``(C, D)``.
        decay: Weight of ½ Σ over classes of the squared change of weights, each in root mean squares of its feature.
        iterations: Of L-BFGS, at most.
    """
    scale = features.square().mean(0).sqrt()
    # a change in units of the logits; a feature that is always zero cannot move one
    change, bias = torch.zeros_like(start), torch.zeros(len(start), dtype=start.dtype)
    unit = torch.where(scale > 0, 1 / scale.clamp_min(1e-12), torch.zeros_like(scale))

    def loss() -> Tensor:
        logits = features @ (start + change * unit).T + bias
        return F.cross_entropy(logits, targets.to(logits)) + decay / 2 * change.square().sum()

    _minimise(loss, [change, bias], iterations)
    return (start + change * unit).detach(), bias.detach()


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor], iterations: int) -> None:
    for parameter in parameters:
        parameter.requires_grad_()
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=iterations, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
