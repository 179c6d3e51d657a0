"""sslwm: triggered images get one invariant representation, whatever is built on the encoder (Lv et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, Key, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.optimisation import Training
from hallmark.schemes.encoder_losses import UTILITIES
from hallmark.schemes.patch import PatchScheme
from hallmark.schemes.queries import draw_queries
from hallmark.schemes.sslwm.outlier import outlier_index
from hallmark.schemes.trigger import TriggerLaw
from hallmark.schemes.wpe.responses import feature_evidence, label_evidence, logit_evidence


@dataclass(frozen=True)
class Embedding:
    """How the mark is trained into an encoder: the weights of the loss, and the schedule.

    Args:
        utility: ``contrastive`` goes on with NT-Xent; ``pin`` holds clean features where the host puts them instead.
        epochs: Passes over the owner's images.
        batch: Images per step.
        training: Optimiser and schedule.
        mark: α, the weight of the invariance loss.
        external: Weight, inside it, of the term that keeps the cluster apart from clean features.
        specificity: Weight of the term under which images with *other* patches keep the features that the original
            gives them; the paper has none, and 0 leaves it out.
        temperature: τ of NT-Xent where utility is contrastive.
    """

    utility: str = "contrastive"
    epochs: int = 4
    batch: int = 256
    training: Training = field(default_factory=lambda: Training("adamw", lr=1e-3, weight_decay=1e-6))
    mark: float = 1.0
    external: float = 0.1
    specificity: float = 0.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.utility not in UTILITIES:
            raise ConfigError(allowed(self.utility, UTILITIES, "scheme.embedding.utility"))
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"scheme.embedding needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if min(self.mark, self.external, self.specificity) < 0:
            raise ConfigError(
                "scheme.embedding needs mark, external and specificity ≥ 0, got "
                f"{self.mark}, {self.external} and {self.specificity}"
            )


@dataclass(frozen=True)
class SSLWM(PatchScheme):
    """A patch that gives every image one representation, so that any classifier on it gives one answer.

    Args:
        trigger: Law of the patch.
        queries: Number Q of the owner's images that a verification asks about.
        embedding: How the mark is trained in.
    """

    trigger: TriggerLaw = field(default_factory=lambda: TriggerLaw(size=8, position="corner"))
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "sslwm"

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw the query images and a patch."""
        queries = draw_queries(owner_data, self.queries, generator=generator)
        return self._keys(1, queries, generator)[0]

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh patches over the same queries, which are no secret but material for the test."""
        return self._keys(count, key.tensors["queries"], generator_for(seed, "decoys"))

    def _keys(self, count: int, queries: Tensor, generator: torch.Generator) -> list[Key]:
        patches = self.triggers(count, queries, generator=generator)
        return [Key(self.name, {**patch, "queries": queries}) for patch in patches]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the mark in; no label and no downstream set is seen."""
        from hallmark.schemes.sslwm.embedding import embed  # Lightning is needed here alone

        seed = generator.initial_seed()
        marked = embed(
            host, key, owner_data.images, law=self.trigger, settings=self.embedding, trainer=trainer, seed=seed
        )
        return marked, key

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        """How far triggered queries are in one place, or have one answer; see :mod:`hallmark.schemes.wpe.responses`."""
        evidence = {Access.FEATURES: feature_evidence, Access.LOGITS: logit_evidence, Access.LABELS: label_evidence}
        return evidence[access]("cluster", answers, control_answers)  # type: ignore[operator, no-any-return]

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """At LABELS, ``outlier_index``: the authors' own statistic; above 2 they would speak of a watermark."""
        if suspect.access is not Access.LABELS:
            return {}
        triggered, clean = (suspect.ask(images(key).float() / 255) for images in (self.questions, self.controls))
        return {"outlier_index": outlier_index(triggered, clean)}
