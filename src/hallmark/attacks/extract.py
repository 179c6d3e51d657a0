"""Extraction of encoders: a fresh encoder taught by as many answers as the thief pays for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.distill import ask, cosine_loss, l2_loss, student
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.data.augment import ViewRecipe, apply, draw
from hallmark.data.pairs import to_bytes
from hallmark.errors import ConfigError, allowed
from hallmark.models.encoders import Encoder
from hallmark.optimisation import Training, require_batch

ROUND = ViewRecipe(scale=(0.5, 1.0), jitter=0.0, grey=0.0)
"""Crops and flips, of which a thief asks once its images are used up."""
STOLEN_VIEWS = ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0))
"""StolenEncoder's own: flips, colours and greys, but no crops."""


@dataclass(frozen=True)
class Extract(Attack):
    """Buy the answers to some queries, and train an encoder to give the same features.

    Four thieves that differ in what they make small: one minus the ``cosine`` (the conventional attack), the squared
    ``l2`` distance relative to the victim's mean square, StolenEncoder's distance between normalised features, of the
    queries and of views of them that are not asked about again (``stolen_encoder``; Liu et al. 2022), and NT-Xent
    between the victim's and the thief's features of the same query (``cont_steal``; Sha et al. 2023).

    The queries are the attacker's images, each once, then random crops and flips of them, each another query.  Every
    thief trains for about equally many steps, in whole passes, so what differs is what was paid for.  It sees
    features alone and neither labels nor weights, and nothing of the victim is copied, so no setting is the identity.

    Args:
        queries: How many answers are bought.
        backbone: The fresh encoder's backbone, by name; the thief knows or guesses it.
        width: Its base width, or None for the backbone's own.
        method: ``cosine``, ``l2``, ``stolen_encoder`` or ``cont_steal``.
        steps: Optimiser steps at the least; whole passes over the queries are made.
        batch: Queries a step.
        views: StolenEncoder's λ, the weight of views of the queries; the authors' program has 9 as its default.
        temperature: τ of NT-Xent.
        training: Optimiser and schedule.
    """

    queries: int
    backbone: str
    width: int | None = None
    method: str = "cosine"
    steps: int = 400
    batch: int = 128
    views: float = 9.0
    temperature: float = 0.5
    training: Training = field(default_factory=Training)

    name: ClassVar[str] = "extract"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[Access] = Access.FEATURES

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(allowed(self.method, METHODS, "extract method"))
        if self.queries < 2 or int(self.queries) != self.queries:
            raise ConfigError(f"extract queries must be a whole number of at least 2, got {self.queries}")
        if self.steps < 1:
            raise ConfigError(f"extract steps must be at least 1, got {self.steps}")
        require_batch(self.batch, "extract")
        if not 0 <= self.views < math.inf or not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"extract needs a finite views ≥ 0 and temperature > 0, got {self.views} and {self.temperature}"
            )

    def check_host(self, host: nn.Module) -> None:
        """Refuse a backbone, or a width of it, that does not exist; the host itself does not matter."""
        with torch.device("meta"):
            Encoder(self.backbone, self.width)

    def images_used(self, images: int) -> int:
        """Those that are asked about, before crops and flips of them are."""
        return min(int(self.queries), images)

    def work(self, images: int) -> float:
        """Queries, and steps on them and on views of them."""
        sides = 2 if self.method == "stolen_encoder" else 1
        return float(self.queries + 3 * sides * max(self.queries, self.steps * self.batch))

    @property
    def strength(self) -> float:
        """Queries."""
        return float(self.queries)

    @property
    def unit(self) -> str:
        """Method and fresh network."""
        width = "" if self.width is None else f" width {self.width}"
        return f"queries {self.method} {self.backbone}{width}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The imitation, without the linear map onto the victim's features through which another width learns."""
        from hallmark.attacks.imitation import imitate  # Lightning is needed here alone

        seed = generator.initial_seed()
        images = queries(attacker_data.images, int(self.queries), seed=derive_seed(seed, "queries"))
        answers = ask(victim.features, images)
        copy, trained = student(self.backbone, self.width, answers.shape[1], seed=seed)
        batch = min(self.batch, len(images))
        imitate(
            trained,
            images,
            answers,
            METHODS[self.method](self.temperature),
            epochs=-(-self.steps // (len(images) // batch)),
            batch=batch,
            training=self.training,
            trainer=trainer,
            seed=seed,
            view=STOLEN_VIEWS,
            views=self.views if self.method == "stolen_encoder" else 0.0,
        )
        return copy.eval()


def queries(images: Tensor, count: int, *, seed: int) -> Tensor:
    """What a thief asks: its images in random order, then, round after round, crops and flips of them.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        count: How many queries, at least 1.
        seed: Draws order and views.

    Returns:
        uint8 ``(count, 3, H, W)``.
    """
    order = torch.randperm(len(images), generator=generator_for(seed, "order"))
    asked = [images[order[:count]]]
    left = count - len(asked[0])
    for number in range(1, -(-count // len(images))):
        part = images[order[:left]]
        size = (part.shape[2], part.shape[3])
        views = apply(part, draw(ROUND, len(part), size, generator=generator_for(seed, "round", number)))
        asked.append(to_bytes(views))
        left -= len(part)
    return torch.cat(asked)


def normalised_loss(features: Tensor, answers: Tensor) -> Tensor:
    """StolenEncoder's: mean Euclidean distance between normalised features ``(B, D)`` and the victim's."""
    return torch.linalg.vector_norm(F.normalize(features) - F.normalize(answers), dim=1).mean()


def contrast_loss(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cont-Steal's: NT-Xent in which own and victim's features ``(B, D)`` of one query are the positive pair."""
    from lightly.loss import NTXentLoss  # brings Lightning along

    criterion = NTXentLoss(temperature)

    def loss(features: Tensor, answers: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            found: Tensor = criterion(features.float(), answers.float())
        return found

    return loss


METHODS: dict[str, Callable[[float], Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": lambda _: cosine_loss,
    "l2": lambda _: l2_loss,
    "stolen_encoder": lambda _: normalised_loss,
    "cont_steal": contrast_loss,
}
"""What each thief makes small, by name; a function of the temperature."""
