"""rotation: a head in the owner's hands tells from features which way an image was turned (Dziedzic et al. 2022)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, Key, Trainer
from hallmark.core.scheme import Images
from hallmark.data.pairs import to_bytes
from hallmark.errors import ConfigError, allowed
from hallmark.optimisation import Training
from hallmark.schemes.encoder_losses import UTILITIES
from hallmark.schemes.feature_reading import FeatureReading, require_width, trained
from hallmark.schemes.rotation.turning import rotated, side


@dataclass(frozen=True)
class Embedding:
    """How encoder and head are trained together.

    Args:
        utility: ``contrastive`` goes on with NT-Xent; ``pin`` holds clean features where the host puts them instead.
        epochs: Passes over the owner's images.
        batch: Images per step.
        training: Optimiser and schedule of encoder and head.
        mark: Weight of the head's cross entropy.
        temperature: τ of NT-Xent where utility is contrastive.
    """

    utility: str = "contrastive"
    epochs: int = 4
    batch: int = 256
    training: Training = field(default_factory=lambda: Training("adamw", lr=1e-3, weight_decay=1e-4))
    mark: float = 1.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.utility not in UTILITIES:
            raise ConfigError(allowed(self.utility, UTILITIES, "scheme.embedding.utility"))
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"scheme.embedding needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if self.mark < 0:
            raise ConfigError(f"scheme.embedding.mark must be at least 0, got {self.mark}")


@dataclass(frozen=True)
class Rotation(FeatureReading):
    """Features from which the owner's head tells turns below 180° from those above.

    Args:
        queries: Number Q of the owner's images that a verification asks about, each turned by an angle of its own.
        hidden: Width of the head's hidden layer.
        embedding: How the mark is trained in.
    """

    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "rotation"
    shown: ClassVar[tuple[str, ...]] = ("queries", "angles")

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw queries with uniform angles, the order of features, and an untrained head."""
        tensors = self.common(host, owner_data, (self.hidden, 2), generator=generator)
        return Key(self.name, {**tensors, "angles": 360 * torch.rand(self.queries, generator=generator)})

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the mark in; the key returned holds the trained head.

        Raises:
            KeyFileError: The key was made for another number of features.
        """
        from hallmark.schemes.rotation.embedding import embed  # Lightning is needed here alone

        require_width(int(host.num_features), key)  # type: ignore[arg-type]
        seed = generator.initial_seed()
        marked, head = embed(host, key, owner_data.images, settings=self.embedding, trainer=trainer, seed=seed)
        return marked, trained(key, head)

    def questions(self, key: Key) -> Tensor:
        """The queries, turned, 8 bits a channel as a user would submit them."""
        return to_bytes(rotated(key.tensors["queries"].float() / 255, key.tensors["angles"]))

    def judge(self, read: Tensor, key: Key) -> Evidence:
        """Count of the queries whose side the head tells rightly; the paper's score is their share."""
        right = read.argmax(1) == side(key.tensors["angles"])
        return Evidence(Access.FEATURES, matches=int(right.sum()), trials=len(right))
