"""sslguard: a decoder in the owner's hands turns triggered images' features into a secret vector (Cong et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, Key, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.optimisation import Training
from hallmark.schemes.feature_reading import FeatureReading, require_width, trained
from hallmark.schemes.trigger import Triggers, paste

SHADOWS = ("fresh", "host")
WR_CUT = 0.5
"""Cosine to the secret above which the paper counts an image as a success."""


@dataclass(frozen=True)
class Embedding:
    """How encoder, shadow, decoder and trigger are trained, in turns.

    Args:
        epochs: Passes over the owner's images.
        batch: Images per step.
        training: Optimiser and schedule of the encoder.
        mark: Weight of the encoder's secrecy terms against its utility; 1 in the paper.
        shadow: Where the imitating shadow starts: ``fresh`` weights of the host's architecture, or the ``host``.
        networks: Optimiser and schedule of shadow and decoder.
        trigger_lr: Learning rate of the trigger, for pixels in [0, 1].
    """

    epochs: int = 4
    batch: int = 256
    training: Training = field(default_factory=lambda: Training("adamw", lr=1e-3, weight_decay=1e-4))
    mark: float = 1.0
    shadow: str = "fresh"
    networks: Training = field(default_factory=lambda: Training("adamw", lr=1e-3, weight_decay=0.0))
    trigger_lr: float = 0.01

    utility: ClassVar[str] = "pin"
    """The paper's; it knows no other."""
    temperature: ClassVar[float] = 1.0
    """Of the contrastive utility, which is not used."""

    def __post_init__(self) -> None:
        if self.shadow not in SHADOWS:
            raise ConfigError(allowed(self.shadow, SHADOWS, "scheme.embedding.shadow"))
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"scheme.embedding needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if min(self.mark, self.trigger_lr) < 0:
            raise ConfigError(f"scheme.embedding needs mark and trigger_lr ≥ 0, got {self.mark} and {self.trigger_lr}")


@dataclass(frozen=True)
class SSLGuard(FeatureReading):
    """A secret vector that decoder and encoder together give away for triggered images, and only then.

    Args:
        queries: Number Q of the owner's images that a verification asks about.
        hidden: Width of the decoder's first hidden layer; the second is as wide as the secret.
        secret: Length S of the secret vector.
        density: Expected share of pixel values that the trigger replaces, in (0, 1].
        embedding: How the mark is trained in.
    """

    secret: int = 256
    density: float = 0.35
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "sslguard"
    embedded: ClassVar[tuple[str, ...]] = (*FeatureReading.embedded, "trigger")
    shown: ClassVar[tuple[str, ...]] = ("queries", "trigger", "mask")
    passes: ClassVar[int] = 20  # turns of the shadow 4, of decoder and trigger 9, of the encoder 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.secret < 2:
            raise ConfigError(f"scheme.secret must be at least 2, got {self.secret}")
        if not 0 < self.density <= 1:
            raise ConfigError(f"scheme.density must lie in (0, 1], got {self.density}")

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw queries, order of features, secret vector, mask, and an untrained trigger and decoder.

        The trigger starts as a normal tensor stretched to the whole range of pixels.
        """
        widths = (self.hidden, self.secret, self.secret)
        tensors = self.common(host, owner_data, widths, generator=generator)
        shape = tensors["queries"].shape[1:]
        noise = torch.randn(shape, generator=generator)
        levels = 255 * (noise - noise.min()) / (noise.max() - noise.min())
        tensors |= {
            "secret": torch.randn(self.secret, generator=generator),
            "mask": (torch.rand(shape, generator=generator) < self.density).to(torch.uint8),
            "trigger": levels.round().to(torch.uint8),
        }
        return Key(self.name, tensors)

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the mark in; the key returned holds the trained trigger and decoder.

        Raises:
            KeyFileError: The key was made for another number of features.
        """
        from hallmark.schemes.sslguard.embedding import embed  # Lightning is needed here alone

        require_width(int(host.num_features), key)  # type: ignore[arg-type]
        seed = generator.initial_seed()
        marked, decoder, trigger = embed(
            host, key, owner_data.images, settings=self.embedding, trainer=trainer, seed=seed
        )
        return marked, trained(key, decoder, trigger=trigger)

    def questions(self, key: Key) -> Tensor:
        """The queries with the trigger, 8 bits a channel as a user would submit them."""
        return paste(key.tensors["queries"], trigger_of(key))

    def judge(self, read: Tensor, key: Key) -> Evidence:
        """Cosines of decoded queries to the secret vector, against 0, where unrelated directions are.

        Not against the clean twins' cosines, which training puts at 0: in a foreign order of features they are
        anything down to −1, and would lend decoys what the trigger did not give them.
        """
        cosines = F.cosine_similarity(read, key.tensors["secret"][None], dim=1)
        return Evidence(Access.FEATURES, scores=torch.stack([cosines, torch.zeros_like(cosines)], dim=1))

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """``wsr``, the paper's WR as a share: queries whose cosine exceeds 0.5; ``response``, their mean cosine."""
        cosines = F.cosine_similarity(self.reading(suspect, key), key.tensors["secret"][None], dim=1)
        return {"wsr": float((cosines > WR_CUT).float().mean()), "response": float(cosines.mean())}


def trigger_of(key: Key) -> Triggers:
    """The key's trigger; each colour of a pixel has a mask of its own."""
    return Triggers(key.tensors["trigger"][None], key.tensors["mask"][None].bool())
