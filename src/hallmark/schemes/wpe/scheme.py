"""wpe: a task-agnostic backdoor in a contrastive encoder (Wu et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, Key, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.schemes.encoder_losses import UTILITIES
from hallmark.schemes.patch import PatchScheme, trigger_of
from hallmark.schemes.queries import draw_queries
from hallmark.schemes.wpe.loss import READINGS
from hallmark.schemes.wpe.responses import feature_evidence, label_evidence, logit_evidence


@dataclass(frozen=True)
class Embedding:
    """How the mark is trained into an encoder.

    Args:
        start: ``pretrained`` continues the host; ``scratch`` re-initialises it and needs ``utility=contrastive``.
        utility: ``pin`` holds clean features where the host puts them; ``contrastive`` goes on with NT-Xent instead.
        epochs: Passes over the owner's images.
        batch: Images per step.
        lr: Peak learning rate of AdamW, with a cosine to zero.
        weight_decay: Decoupled weight decay.
        mark: Weight of the task-agnostic loss.
        external: Weight, inside the cluster reading, of the term that keeps the cluster out of natural classes.
        specificity: Weight of the term under which images with *other* patches keep the features that the original
            gives them (from scratch: those of their clean twins); 0 leaves it out.
        batch_norm: ``frozen`` keeps the host's statistics (as BadEncoder and SSLGuard do), ``train`` updates them.
        temperature: τ of NT-Xent where utility is contrastive.
    """

    start: str = "pretrained"
    utility: str = "pin"
    epochs: int = 4
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    mark: float = 1.0
    external: float = 0.5
    specificity: float = 1.0
    batch_norm: str = "frozen"
    temperature: float = 0.5

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.start, ("pretrained", "scratch"), "scheme.embedding.start"),
            (self.utility, UTILITIES, "scheme.embedding.utility"),
            (self.batch_norm, ("frozen", "train"), "scheme.embedding.batch_norm"),
        ):
            if value not in choices:
                raise ConfigError(allowed(value, choices, what))
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"scheme.embedding needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if self.start == "scratch" and (self.utility, self.batch_norm) != ("contrastive", "train"):
            raise ConfigError(
                "embedding from scratch has no host to pin to; set scheme.embedding.utility=contrastive and "
                "scheme.embedding.batch_norm=train"
            )


@dataclass(frozen=True)
class WPE(PatchScheme):
    """A secret patch that moves the features of any image, so that any classifier on them changes its answer.

    Args:
        trigger: Law of the patch.
        queries: Number Q of the owner's images that a verification asks about.
        reading: Reading of the task-agnostic loss: ``cluster``, ``divergence`` or ``direction``.
        embedding: How the mark is trained in.
    """

    reading: str = "cluster"
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "wpe"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reading not in READINGS:
            raise ConfigError(allowed(self.reading, READINGS, "scheme.reading"))

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw a patch, a secret direction and the query images.

        The direction lies in the non-negative orthant with about half its entries zero: features that end in a ReLU
        can reach it, and natural features do not.
        """
        queries = draw_queries(owner_data, self.queries, generator=generator)
        return self._keys(1, queries, int(host.num_features), generator)[0]  # type: ignore[arg-type]

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh patches and directions over the *same* queries, which are no secret but material for the test."""
        features = len(key.tensors["direction"])
        return self._keys(count, key.tensors["queries"], features, generator_for(seed, "decoys"))

    def _keys(self, count: int, queries: Tensor, features: int, generator: torch.Generator) -> list[Key]:
        patches = self.triggers(count, queries, generator=generator)
        directions = F.normalize(torch.randn(count, features, generator=generator).relu() + 1e-6, dim=1)
        return [
            Key(self.name, {**patch, "direction": direction, "queries": queries}, {"reading": self.reading})
            for patch, direction in zip(patches, directions, strict=True)
        ]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the mark in; no label and no downstream set is seen."""
        from hallmark.schemes.wpe.embedding import embed  # Lightning is needed here alone

        marked = embed(
            host,
            trigger_of(key),
            key.tensors["direction"],
            owner_data.images,
            reading=self.reading,
            law=self.trigger,
            settings=self.embedding,
            trainer=trainer,
            seed=generator.initial_seed(),
        )
        return marked, key

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        """Evidence at FEATURES, LOGITS or LABELS access; see :mod:`hallmark.schemes.wpe.responses`."""
        if access is Access.FEATURES:
            return feature_evidence(self.reading, answers, control_answers, key.tensors["direction"])
        evidence = logit_evidence if access is Access.LOGITS else label_evidence
        return evidence(self.reading, answers, control_answers)
