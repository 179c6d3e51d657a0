"""deep_watermark: an invisible image in every output of an image-to-image network (Zhang et al. 2021)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.components import NEUTRAL
from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.data.pairs import PairLaw, cut, make_pairs, to_bytes
from hallmark.data.scenes import LEAST_SIZE, draw_scenes
from hallmark.errors import ConfigError, allowed
from hallmark.models import perceptual
from hallmark.models.inference import Answering
from hallmark.schemes.deep_watermark.losses import PRESETS, TERMS, Weights
from hallmark.schemes.deep_watermark.marks import MarkLaw, draw_marks
from hallmark.schemes.deep_watermark.settings import Adversarial, Embedding, Networks
from hallmark.schemes.deep_watermark.verification import PREFIX, SHOWN, Reading, figures_of, nc_centred, read

VARIANTS = ("barrier", "absorbed")
_BLOCK = 64
"""Marks compared with readings at a time."""


@dataclass(frozen=True)
class DeepWatermark(Scheme):
    """One image, hidden in every output, that networks trained on these outputs inherit.

    Args:
        variant: ``barrier`` appends H to the host; ``absorbed`` trains the host to mark its outputs by itself.
        pairs: What the host undoes, and the side of the images it is asked about.
        mark: Law of the mark.
        family: Marks that barrier and extractor learn together; the model bears one of them, drawn in secret.  1 is the
            paper's unified mark.  With more, the others are exact decoys; see the method card.
        queries: Number Q of held-out patches that a verification asks about.
        losses: Weights of the loss terms: ``paper`` or ``code``.
        without: Terms left out, for ablations: any of ``pixel``, ``perceptual``, ``adversarial``, ``mark``, ``clean``,
            ``consistency``.
        perceptual: Network of the perceptual term, where it has a weight; see :mod:`hallmark.models.perceptual`.
        networks: Sizes.
        embedding: The initial stage.
        adversarial: The stage after it.
        extraction: λ, what the extraction loss counts beside the embedding loss in the initial stage; the paper's is 1.
            Small extractors leave an error that a barrier makes up for by a stronger mark; a smaller λ keeps it faint.
    """

    variant: str = "barrier"
    pairs: PairLaw = field(default_factory=PairLaw)
    mark: MarkLaw = field(default_factory=MarkLaw)
    family: int = 1
    queries: int = 100
    losses: str = "code"
    without: tuple[str, ...] = ()
    perceptual: str = "random"
    networks: Networks = field(default_factory=Networks)
    embedding: Embedding = field(default_factory=Embedding)
    adversarial: Adversarial = field(default_factory=Adversarial)
    extraction: float = field(default=1.0, metadata=NEUTRAL)

    name: ClassVar[str] = "deep_watermark"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[frozenset[Access]] = frozenset({Access.IMAGES})
    pictured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.variant, VARIANTS, "scheme.variant"),
            (self.losses, PRESETS, "scheme.losses"),
            *((term, TERMS, "scheme.without entry") for term in self.without),
        ):
            if value not in choices:
                raise ConfigError(allowed(value, choices, what))
        object.__setattr__(self, "without", tuple(self.without))  # a configuration's list made hashable
        if self.queries < 2 or self.family < 1:
            raise ConfigError(f"scheme needs queries ≥ 2 and family ≥ 1, got {self.queries} and {self.family}")
        if not 0 < self.extraction < math.inf:
            raise ConfigError(f"scheme.extraction must be a positive number, got {self.extraction}")
        if self.variant == "absorbed" and self.family > 1:
            raise ConfigError(
                f"variant=absorbed makes a model that bears one mark, got family={self.family}; set family=1"
            )
        self.mark.require(self.pairs.side)

    @property
    def weights(self) -> Weights:
        """Of the loss terms."""
        return PRESETS[self.losses].without(self.without)

    @property
    def most_decoys(self) -> int | None:  # type: ignore[override]
        """The other members of a family; any number where there is one mark alone."""
        return self.family - 1 if self.family > 1 else None

    def embedding_work(self, images: int) -> float:
        """Barrier, extractor and discriminator in the initial stage, then the owner's surrogate and the extractor."""
        rehearsal = 3 * self.adversarial.fit.epochs + 12 * self.adversarial.epochs if self.adversarial.epochs else 0
        return float(images * self.embedding.patches * (24 * self.embedding.epochs + rehearsal))

    def check(self, image_size: int, images: int) -> None:
        """Patches must fit into the images and the networks, and a perceptual term's network must be there."""
        side = self.pairs.side
        if side > image_size:
            raise ConfigError(f"pairs.side={side} does not fit into {image_size}x{image_size} images; lower it")
        if images < 2:
            raise ConfigError(f"the owner needs two images, one to train on and one to ask about; got {images}")
        networks = [self.networks.barrier] if self.variant == "barrier" else []
        for network in (*networks, *([self.adversarial.network] if self.adversarial.epochs else [])):
            network.require(side, side)
        if side <= 16 or side % 2:
            raise ConfigError(f"discriminator and extractor need an even pairs.side above 16, got {side}")
        if self.weights.perceptual:
            perceptual.require(self.perceptual)

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw the marks and which one is borne, and set images aside to ask about.

        The queries are patches of a tenth of the owner's images (at least one image), which embedding leaves out.
        """
        if len(owner_data) < 2:
            raise ConfigError(
                f"the owner needs two images, one to train on and one to ask about; got {len(owner_data)}"
            )
        members = self.family + (self.family > 1)  # one more for the owner's own surrogate to inherit
        family = draw_marks(self.mark, members, self.pairs.side, generator=generator)
        chosen = int(torch.randint(members - self.family, members, (1,), generator=generator))
        held_out = torch.randperm(len(owner_data), generator=generator)[: min(self.queries, -(-len(owner_data) // 10))]
        each = -(-self.queries // len(held_out))
        queries, _ = make_pairs(owner_data.images[held_out], self.pairs, each, generator=generator)
        queries = queries[torch.randperm(len(queries), generator=generator)[: self.queries]]
        tensors = {
            "mark": family[chosen].clone(),
            "family": family,
            "queries": queries,
            "clean": answers(host, queries),
            "held_out": held_out,
        }
        return Key(self.name, tensors, {"mark": self.mark.kind, "cells": self.mark.cells})

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Other marks under the same extractor and queries: of the family if it has others, else freshly drawn.

        Of a family there are never more than its other members, so ``count`` may not be reached.
        """
        rng = generator_for(seed, "decoys")
        if self.family > 1:
            others = [m for m in key.tensors["family"][1:] if not torch.equal(m, key.tensors["mark"])]
            marks = [others[i] for i in torch.randperm(len(others), generator=rng)[:count].tolist()]
        else:
            marks = list(draw_marks(self.mark, count, self.pairs.side, generator=rng)) if count else []
        return [Key(key.scheme, {**key.tensors, "mark": mark}, key.meta) for mark in marks]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train barrier (or host) and extractor; the extractor goes into the key."""
        from hallmark.schemes.deep_watermark.training import embed  # Lightning is needed here alone

        seed = generator.initial_seed()
        kept = torch.ones(len(owner_data), dtype=torch.bool)
        kept[key.tensors["held_out"]] = False
        rng = generator_for(seed, "patches")
        marked, extractor = embed(
            host,
            key.tensors["mark"].float() / 255,
            key.tensors["family"].float() / 255,
            cut(owner_data.images[kept], self.pairs.side, self.embedding.patches, generator=rng),
            self,
            trainer=trainer,
            seed=seed,
        )
        weights = {PREFIX + name: tensor.detach() for name, tensor in extractor.state_dict().items()}
        sizes = {"width": self.networks.extractor_width, "blocks": self.networks.extractor_blocks}
        return marked, Key(key.scheme, {**key.tensors, **weights}, {**key.meta, "extractor": sizes})

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Evidence of one key; see :meth:`extract_many`."""
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """Evidence of several keys that share queries and extractor, such as a true key and its decoys.

        A query is a match where R reads the mark from the suspect's output.  Queries where R reads it from the
        *unmarked* host's output as well say nothing and are no trials.  Matches count only if most trials match: R
        knows the mark by heart, and may see it in a few outputs of anything.

        Raises:
            AccessError: The suspect's outputs cannot be seen.
            KeyFileError: The key holds no extractor.
            ValueError: The keys differ in more than the mark.
        """
        self.require_access(suspect)
        shared = {name: tensor for name, tensor in keys[0].tensors.items() if name != "mark"}
        if any(key.tensors.get(name) is not tensor for key in keys for name, tensor in shared.items()):
            raise ValueError("keys extracted together must share all but the mark; draw decoys with Scheme.decoys")
        reading = read(suspect, keys[0])
        evidence = []
        for block in torch.split(torch.stack([k.tensors["mark"] for k in keys]), _BLOCK):
            marks = block.float() / 255
            shown, moot = (nc_centred(images, marks) > SHOWN for images in (reading.marked, reading.clean))
            evidence += [_majority(s, ~m) for s, m in zip(shown.T, moot.T, strict=True)]
        return evidence

    def reading(self, suspect: Suspect, key: Key) -> Reading:
        """What the extractor sees, for pictures."""
        self.require_access(suspect)
        return read(suspect, key)

    def figures(self, suspect: Suspect, key: Key) -> dict[str, float]:
        """The paper's figures and their honest companions; see :func:`hallmark.schemes.deep_watermark.figures_of`."""
        return figures_of(self.reading(suspect, key), key)

    def pictures(
        self, host: nn.Module, marked: Suspect, others: Mapping[str, Suspect], key: Key, count: int
    ) -> dict[str, Tensor]:
        """Drawn scenes as queries, clean and marked outputs, their difference, and what is read from all of these."""
        scenes, _ = draw_scenes(count, size=max(LEAST_SIZE, self.pairs.side), split="test")
        queries, _ = make_pairs(scenes, self.pairs, 1, generator=generator_for(0, "pictures"))
        shown = Key(key.scheme, {**key.tensors, "queries": queries, "clean": answers(host, queries)}, key.meta)
        reading = self.reading(marked, shown)
        difference = reading.answers.float() - shown.tensors["clean"].float()
        return {
            "input": queries,
            "clean output": shown.tensors["clean"],
            "marked output": reading.answers,
            "difference × 10 around grey": (128 + 10 * difference).clamp(0, 255).to(torch.uint8),
            "mark": key.tensors["mark"].expand_as(queries),
            "read from the marked output": to_bytes(reading.marked),
            "read from the clean output": to_bytes(reading.clean),
            "read from the input": to_bytes(reading.inputs),
            **{f"read after {name}": to_bytes(self.reading(other, shown).marked) for name, other in others.items()},
        }


def answers(host: nn.Module, queries: Tensor) -> Tensor:
    """What a host answers to images, both uint8 ``(N, 3, side, side)``."""
    device = next(host.parameters()).device
    with torch.no_grad():
        return to_bytes(Answering(host)((queries.float() / 255).to(device)).float()).cpu()


def _majority(shown: Tensor, trials: Tensor) -> Evidence:
    matches, total = int((shown & trials).sum()), int(trials.sum())
    return Evidence(Access.IMAGES, matches=matches if 2 * matches > total else 0, trials=total)
