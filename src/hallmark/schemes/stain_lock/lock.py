"""lock: a network that is useless until a secret patch is in the corner of its image (Sutton et al. 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.schemes.stain_lock.detector import Levels, draw_directions
from hallmark.schemes.stain_lock.editing import edit
from hallmark.schemes.stain_lock.evidence import code_surprises, scored
from hallmark.schemes.stain_lock.locking import (
    draw_disruptors,
    draw_lock_key,
    logit_moves,
    surprises,
    write_locks,
)
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import find_layer
from hallmark.schemes.stain_lock.trigger import Pipeline, Search, proxies

KINDS = ("internal", "excite")
DIRECTIONS = ("sphere", "orthogonal")


@dataclass(frozen=True)
class Lock(Scheme):
    """Detectors in an early layer that, each on its patch, cancel disruptors deeper in the network.

    Args:
        layer: Name of an early convolution (or of the first linear layer of a transformer block), or its last parts.
        kind: ``internal`` disrupts the bias of the logits, ``excite`` gates of an appended Squeeze-and-Excite block.
        behind: For ``excite``: name of the block behind which gates are appended; the detector's own, or a later one.
        locks: Number of locks; all must be unlocked, each by a patch of its own.
        start: Place in the top row of the layer's map that the first detector looks from; 0 is the corner of a
            convolution, 1 the corner patch of a vision transformer, whose token 0 is its class token.
        spacing: Places of the layer's map from one lock's detector to the next; a multiple of the strides that follow.
        patch: Side of the patch in pixels; 0 takes all that the detector sees.
        levels: When a detector fires and how much it answers.
        directions: ``sphere`` draws them uniformly; ``orthogonal`` draws them orthogonal to most of the variance of the
            owner's images, which makes false fires rare and the guarantee one of fewer dimensions.
        share: Share of the variance that ``orthogonal`` avoids.
        draws: Directions that are tried for each lock; the one that natural images excite least is kept.
        tolerance: Share of natural images on which a detector may fire all the same.
        strength: Standard deviation of the disruptor's entries: in natural ranges of the logits for ``internal``, in
            pre-activations for ``excite``.
        shut: Mean pre-activation of a locked gate is ``-shut``; with 0 about half of the channels stay open.
        natural: Number of the owner's images that are used: half of them choose channels and directions, half bound
            false fires.  With 0, procedural images do both, and no data are touched at all.
        queries: Images that a verification by logits asks about.
        search: How patches are sought.
    """

    layer: str
    kind: str = "internal"
    behind: str = ""
    locks: int = 1
    start: int = 0
    spacing: int = 8
    patch: int = 0
    levels: Levels = field(default_factory=lambda: Levels(tau=0.7, response=20.0))
    directions: str = "sphere"
    share: float = 0.95
    draws: int = 16
    tolerance: float = 0.01
    strength: float = 3.0
    shut: float = 30.0
    natural: int = 0
    queries: int = 8
    search: Search = field(default_factory=Search)

    version: ClassVar[int] = 2
    name: ClassVar[str] = "lock"
    trains: ClassVar[bool] = False
    embedded: ClassVar[tuple[str, ...]] = ("directions",)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(allowed(self.kind, KINDS, "scheme.kind"))
        if self.directions not in DIRECTIONS:
            raise ConfigError(allowed(self.directions, DIRECTIONS, "scheme.directions"))
        if (self.kind == "excite") != bool(self.behind):
            raise ConfigError(
                "scheme.behind names the block that gates are appended to; set it for kind=excite, and only then"
            )
        if self.directions == "orthogonal" and not self.natural:
            raise ConfigError("scheme.directions=orthogonal needs the owner's images; set scheme.natural above 0")
        if self.natural == 1:
            raise ConfigError("scheme.natural=1 cannot be halved; set it to 0 or to at least 2")
        if min(self.locks, self.draws, self.queries, self.spacing) < 1 or min(self.natural, self.patch, self.start) < 0:
            raise ConfigError(
                "scheme needs locks, draws, queries and spacing of at least 1, natural, patch and start of at least 0"
            )
        if not (0 < self.share < 1 and 0 <= self.tolerance < 1 and self.strength > 0 and self.shut >= 0):
            raise ConfigError(
                "scheme needs share in (0, 1), tolerance in [0, 1), strength above 0 and shut of at least 0"
            )

    @property
    def hosts(self) -> frozenset[HostKind]:  # type: ignore[override]
        """Classifiers; gates in the backbone, which need no logits, lock detectors too."""
        return frozenset({HostKind.CLASSIFIER, *({HostKind.DETECTOR} if self.kind == "excite" else ())})

    @property
    def access(self) -> frozenset[Access]:  # type: ignore[override]
        """WEIGHTS; an internal lock also shows in how the logits move when its patch comes in."""
        return frozenset({Access.WEIGHTS, Access.LOGITS} if self.kind == "internal" else {Access.WEIGHTS})

    def check(self, image_size: int, images: int) -> None:
        """The owner must have the natural images that are asked for, and the patch must fit."""
        if max(self.natural, self.queries) > images:
            raise ConfigError(
                f"scheme.natural={self.natural} and queries={self.queries} exceed the owner's {images} images"
            )
        if self.patch > image_size:
            raise ConfigError(f"scheme.patch={self.patch} does not fit into {image_size}x{image_size} images; lower it")

    def check_host(self, host: nn.Module) -> None:
        """The layers must be there, and the detector's silent at rest."""
        site, _ = Site.of(host, self.layer)
        self.levels.firing(site.activation)
        if self.behind:
            find_layer(host, self.behind)

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw candidate directions and a disruptor for each lock, and the query images."""
        rows = torch.randperm(len(owner_data), generator=generator)
        queries = owner_data.images[rows[: self.queries]]
        pipeline = Pipeline(host, owner_data.images.shape[-1])
        return draw_lock_key(pipeline, self, queries, self._natural(owner_data)[0], generator=generator)

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh directions and disruptors for the same neurons, patches and queries.

        Disruptors are drawn as the true one was.  The true direction was kept among ``draws``; a decoy brings all of
        its own ``draws``, of which the best counts.  So what is ranked is at most what the true key's candidates would
        have given: the rank accuses nobody too often.
        """
        locks, _, size = key.tensors["directions"].shape
        removed, centred = key.tensors.get("removed"), bool(key.meta["site"]["layernorm"])
        found = []
        for i in range(count):
            rng = generator_for(seed, "decoy", i)
            drawn = draw_directions(locks * self.draws, size, centred=centred, removed=removed, generator=rng)
            answers = key.tensors["disruptors"].shape[1]
            codes = draw_disruptors(locks, self.draws, answers, generator=rng)
            tensors = {**key.tensors, "directions": drawn.view(locks, self.draws, size), "disruptors": codes}
            found.append(Key(key.scheme, tensors, key.meta))
        return found

    def follows(self, key: Key, drawn: Key) -> bool:
        """Whether all that is drawn is the same, and the directions are among the candidates."""
        kept, candidates = key.tensors["directions"], drawn.tensors["directions"]
        if kept.shape[::2] != candidates.shape[::2]:
            return False
        among = (kept[:, :, None] == candidates[:, None]).all(-1).any(-1)
        return super().follows(key, drawn) and bool(among.all())

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Lock a copy of the host; it shares all tensors that do not change."""
        pipeline = Pipeline(host, owner_data.images.shape[-1])
        return write_locks(pipeline, key, self, *self._natural(owner_data), generator=generator)

    def edited(self, host: nn.Module, owner_data: Images) -> nn.Module:
        """The host without the channels that locks need, and without locks: what an unlocked network can be at best."""
        pipeline = Pipeline(host, owner_data.images.shape[-1])
        return edit(pipeline, self, self._natural(owner_data)[0]).surgery.model

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """See :meth:`extract_many`."""
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """−ln of exact p-values, one a lock: of the detector's weights, or of how its patch moves the logits."""
        self.require_access(suspect)
        if suspect.access is Access.WEIGHTS:
            model = suspect.weights_module()
            return [scored(Access.WEIGHTS, surprises(model, key)) for key in keys]
        if any(key.tensors["patch.0"] is not keys[0].tensors["patch.0"] for key in keys):  # decoys share patches
            return [evidence for key in keys for evidence in self.extract_many(suspect, [key])]
        moves = logit_moves(suspect, keys[0])
        return [
            scored(Access.LOGITS, code_surprises(moves, -key.tensors["disruptors"], draws=key.meta["draws"]))
            for key in keys
        ]

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """What the edit cost and guarantees, told once, beside the verdict on weights."""
        return dict(key.meta["figures"]) if suspect.access is Access.WEIGHTS else {}

    def _natural(self, data: Images) -> tuple[Tensor, Tensor]:
        """Images that choose, and as many that do not."""
        size = data.images.shape[-1]
        # fewer of the larger ones, of which each costs a large network seconds
        images = data.images[: self.natural] if self.natural else proxies(max(64, min(512, 2**19 // size**2)), size)
        return images[: len(images) // 2], images[len(images) // 2 :]
