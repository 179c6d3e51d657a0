"""wpe: a task-agnostic backdoor in a contrastive encoder (Wu et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, HostKind, Key, QueryScheme, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.schemes.wpe.loss import READINGS
from hallmark.schemes.wpe.responses import feature_evidence, label_evidence, logit_evidence
from hallmark.schemes.wpe.trigger import TriggerLaw, Triggers, draw_triggers, paste


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
            (self.utility, ("pin", "contrastive"), "scheme.embedding.utility"),
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
class WPE(QueryScheme):
    """A secret patch that moves the features of any image, so that any classifier on them changes its answer.

    Args:
        reading: Reading of the task-agnostic loss: ``cluster``, ``divergence`` or ``direction``.
        trigger: Law of the patch.
        queries: Number Q of the owner's images that a verification asks about.
        embedding: How the mark is trained in.
    """

    reading: str = "cluster"
    trigger: TriggerLaw = field(default_factory=TriggerLaw)
    queries: int = 100
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "wpe"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES, Access.LOGITS, Access.LABELS})

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise ConfigError(allowed(self.reading, READINGS, "scheme.reading"))
        if self.queries < 2:
            raise ConfigError(f"scheme.queries must be at least 2, got {self.queries}")

    def check(self, image_size: int, images: int) -> None:
        """The patch must fit into the image, and the queries into the owner's images."""
        if self.trigger.size > image_size:
            raise ConfigError(
                f"scheme.trigger.size={self.trigger.size} does not fit into {image_size}x{image_size} images; lower it"
            )
        if self.queries > images:
            raise ConfigError(f"scheme.queries={self.queries} exceeds the owner's {images} images; lower it")

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw a patch, a secret direction and the query images.

        The direction lies in the non-negative orthant with about half its entries zero: features that end in a ReLU
        can reach it, and natural features do not.
        """
        if len(owner_data) < self.queries:
            raise ConfigError(f"scheme.queries={self.queries} exceeds the owner's {len(owner_data)} images; lower it")
        rows = torch.randperm(len(owner_data), generator=generator)[: self.queries]
        queries = owner_data.images[rows]
        features = int(host.num_features)  # type: ignore[arg-type]
        return _key(self._secret(1, queries, features, generator), 0, queries, self.reading)

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh patches and directions over the *same* queries, which are no secret but material for the test."""
        queries = key.tensors["queries"]
        secret = self._secret(count, queries, len(key.tensors["direction"]), generator_for(seed, "decoys"))
        return [_key(secret, i, queries, self.reading) for i in range(count)]

    def _secret(
        self, count: int, queries: Tensor, features: int, generator: torch.Generator
    ) -> tuple[Triggers, Tensor]:
        size = (queries.shape[2], queries.shape[3])
        triggers = draw_triggers(self.trigger, count, size, generator=generator)
        direction = F.normalize(torch.randn(count, features, generator=generator).relu() + 1e-6, dim=1)
        return triggers, direction

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

    def controls(self, key: Key) -> Tensor:
        """The query images."""
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        """The query images with the patch pasted in, 8 bits a channel as a user would submit them."""
        return paste(key.tensors["queries"], trigger_of(key))

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        """Evidence at FEATURES, LOGITS or LABELS access; see :mod:`hallmark.schemes.wpe.responses`."""
        if access is Access.FEATURES:
            return feature_evidence(self.reading, answers, control_answers, key.tensors["direction"])
        evidence = logit_evidence if access is Access.LOGITS else label_evidence
        return evidence(self.reading, answers, control_answers)


def trigger_of(key: Key) -> Triggers:
    """The key's patch as one full-size trigger."""
    return Triggers(key.tensors["pattern"][None], key.tensors["mask"][None].bool())


def _key(secret: tuple[Triggers, Tensor], index: int, queries: Tensor, reading: str) -> Key:
    triggers, direction = secret
    tensors = {
        "pattern": triggers.pattern[index],
        "mask": triggers.mask[index].to(torch.uint8),
        "direction": direction[index],
        "queries": queries,
    }
    return Key(WPE.name, tensors, {"reading": reading})
