"""Distillation into a fresh network by queries."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.optimisation import Training, require_batch

DISTANCES = ("cosine", "l2")
BLOCK = 1024
"""Images a question: as floats they fit into memory at any usual size."""


@dataclass(frozen=True)
class Distill(Attack):
    """Train a network from fresh weights to answer as the victim does.

    The thief sees answers alone, one to each of its images and no more: logits of a classifier, features of an encoder.
    It needs no labels.  It cannot see the architecture either: it knows or guesses it, and the configuration says
    which.  As nothing of the victim is copied, no setting is the identity.

    Args:
        backbone: The fresh network's backbone, by name.
        epochs: Passes over the attacker's images, at least 1.
        width: Its base width, or None for the backbone's own.
        temperature: T of the posteriors of classifiers; their Kullback–Leibler divergence is weighted by T²
            (Hinton 2015).
        distance: What is made small between features of encoders: one minus their ``cosine``, or the squared ``l2``
            distance relative to the victim's mean square.
        batch: Images per step.
        training: Optimiser and schedule.
    """

    backbone: str
    epochs: int
    width: int | None = None
    temperature: float = 3.0
    distance: str = "cosine"
    batch: int = 128
    training: Training = field(default_factory=Training)

    name: ClassVar[str] = "distill"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.LOGITS

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ConfigError(allowed(self.distance, DISTANCES, "distill distance"))
        if self.epochs < 1 or int(self.epochs) != self.epochs:
            raise ConfigError(f"distill epochs must be a whole number of at least 1, got {self.epochs}")
        require_batch(self.batch, "distill")
        if not self.temperature > 0:
            raise ConfigError(f"distill temperature must be above 0, got {self.temperature}")

    def check_host(self, host: nn.Module) -> None:
        """Refuse a backbone, or a width of it, that does not exist; the host itself does not matter."""
        with torch.device("meta"):
            Encoder(self.backbone, self.width)

    def access_for(self, kind: HostKind) -> Access:
        """Features of an encoder, logits of a classifier."""
        return Access.FEATURES if kind is HostKind.ENCODER else self.access

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """The fresh network, and the temperature or the distance where it is not the usual one."""
        width = "" if self.width is None else f" width {self.width}"
        distance = "" if self.distance == type(self).distance else f" {self.distance}"
        temperature = "" if self.temperature == type(self).temperature else f" T {self.temperature:g}"
        return f"epochs {self.backbone}{width}{distance}{temperature}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The imitation; the attacker's images are asked about once each."""
        from hallmark.attacks.imitation import imitate  # Lightning is needed here alone

        encoder = victim.kind is HostKind.ENCODER
        answers = ask(victim.features if encoder else victim.logits, attacker_data.images)
        seed = generator.initial_seed()
        copy, trained = student(self.backbone, self.width, answers.shape[1], seed=seed, classifier=not encoder)
        imitate(
            trained,
            attacker_data.images,
            answers,
            self._feature_loss if encoder else self._posterior_loss,
            epochs=int(self.epochs),
            batch=self.batch,
            training=self.training,
            trainer=trainer,
            seed=seed,
        )
        return copy.eval()

    def _posterior_loss(self, logits: Tensor, answers: Tensor) -> Tensor:
        return posterior_loss(logits, answers, self.temperature)

    def _feature_loss(self, features: Tensor, answers: Tensor) -> Tensor:
        return cosine_loss(features, answers) if self.distance == "cosine" else l2_loss(features, answers)


def ask(answer: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A victim's answers ``(N, D)`` to images, uint8 ``(N, 3, H, W)``, each asked about once."""
    return torch.cat([answer(block.float() / 255) for block in torch.split(images, BLOCK)])


def student(
    backbone: str, width: int | None, outputs: int, *, seed: int, classifier: bool = False
) -> tuple[nn.Module, nn.Module]:
    """A fresh network, and what is trained: with a linear map behind it where its features are fewer or more.

    Args:
        backbone: By name.
        width: Its base width, or None for the backbone's own.
        outputs: Numbers in an answer of the victim.
        seed: Draws the weights; torch's own generator is left as it was.
        classifier: Whether it is one of so many classes, and no encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        encoder = Encoder(backbone, width)
        if classifier:
            whole = Classifier(encoder, outputs)
            return whole, whole
        if encoder.num_features == outputs:
            return encoder, encoder
        return encoder, nn.Sequential(encoder, nn.Linear(encoder.num_features, outputs))


def posterior_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T² times the mean divergence KL(victim ‖ imitation) of posteriors at temperature T; both logits ``(B, C)``."""
    victim, own = (F.log_softmax(x / temperature, dim=1) for x in (answers, logits))
    return F.kl_div(own, victim, reduction="batchmean", log_target=True) * temperature**2


def cosine_loss(features: Tensor, answers: Tensor) -> Tensor:
    """Mean of one minus the cosine between features ``(B, D)`` and the victim's."""
    return 1 - F.cosine_similarity(features, answers, dim=1).mean()


def l2_loss(features: Tensor, answers: Tensor) -> Tensor:
    """Mean squared distance between features ``(B, D)`` and the victim's, relative to the victim's mean square."""
    return (features - answers).square().sum() / answers.square().sum().clamp_min(torch.finfo(answers.dtype).tiny)
