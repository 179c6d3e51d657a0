"""The situations in which a mark is trained into a network (Uchida et al. 2017, §2.3), for schemes that use them."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from hallmark.data.augment import ViewRecipe
from hallmark.errors import ConfigError, allowed
from hallmark.models.classifier import Classifier
from hallmark.optimisation import Training
from hallmark.pretrain.recipe import CROP_AND_FLIP


@dataclass(frozen=True)
class Situation:
    """How the mark gets into the network.

    Args:
        situation: ``train`` from fresh weights with labels; ``finetune`` on from the host with labels (an encoder is
            held to its own features instead); ``distill`` on from the host to its own answers, without labels.
        mark: Weight of the embedding loss summed over the bits.
        epochs: Passes over the owner's images.
        batch: Images per step.
        training: Optimiser and schedule.
        view: Augmentation.
        batch_norm: ``train`` updates the statistics, ``frozen`` keeps the host's.
    """

    situation: str = "train"
    mark: float = 0.01
    epochs: int = 200
    batch: int = 64
    training: Training = field(default_factory=lambda: Training("sgd", lr=0.1, weight_decay=5e-4, schedule="steps"))
    view: ViewRecipe = CROP_AND_FLIP
    batch_norm: str = "train"

    situations: ClassVar[tuple[str, ...]] = ("train", "finetune", "distill")

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.situation, self.situations, "scheme.embedding.situation"),
            (self.batch_norm, ("frozen", "train"), "scheme.embedding.batch_norm"),
        ):
            if value not in choices:
                raise ConfigError(allowed(value, choices, what))
        if not 0 <= self.mark < math.inf:
            raise ConfigError(f"scheme.embedding.mark must be a finite number of at least 0, got {self.mark}")
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"scheme.embedding needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if (self.situation, self.batch_norm) == ("train", "frozen"):
            raise ConfigError("fresh weights have no statistics worth keeping; set scheme.embedding.batch_norm=train")

    @property
    def learns_labels(self) -> bool:
        """Whether the network learns labels along with the mark."""
        return self.situation in ("train", "finetune")

    def check_host(self, host: nn.Module) -> None:
        """Refuse to train an encoder, which has no labels to learn, from scratch.

        Raises:
            ConfigError: The situation does not fit the host.
        """
        if self.situation == "train" and not isinstance(host, Classifier):
            raise ConfigError(
                "scheme.embedding.situation=train trains a classifier on labels, but the host is an encoder; "
                f"use {self.others('train')}"
            )

    def others(self, *excluded: str) -> str:
        """The situations but for some, in words."""
        return _either(set(self.situations) - set(excluded))


def _either(choices: Collection[str]) -> str:
    """``a, b or c``."""
    *first, last = sorted(choices)
    return f"{', '.join(first)} or {last}" if first else last
