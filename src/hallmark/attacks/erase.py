"""Taking hidden images out of outputs by a network that has learnt to."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.overwrite import changed_scheme
from hallmark.components import identify
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.data.pairs import cut, to_bytes
from hallmark.errors import ConfigError
from hallmark.models.image_to_image import Architecture, Barrier
from hallmark.models.inference import block_size
from hallmark.models.steps import Retouch
from hallmark.models.wrapping import Postprocessed
from hallmark.restoration_settings import Fit
from hallmark.schemes.deep_watermark import DeepWatermark


@dataclass(frozen=True)
class Erase(Attack):
    """The adaptive attacker trains a barrier of its own, and a network that undoes what this barrier does.

    The network then stands behind the stolen model.  This is the transferable form of the removers of arXiv 2405.09863,
    learnt from private stand-ins for the owner's barrier; the owner's extractor is not asked.

    Args:
        scheme: Configuration of a ``deep_watermark`` with a barrier, with ``_target_``, such as the owner's.
        epochs: Passes of the undoing network over the attacker's patches; 0 leaves the model as it is.
        changes: What the attacker sets otherwise, by dotted name; with ``family`` above 1 more than one mark is undone.
        network: The undoing network.
        batch: Patches per step.
        lr: Adam's learning rate.
    """

    scheme: dict[str, Any]
    epochs: int
    changes: dict[str, Any] = field(default_factory=dict)
    network: Architecture = field(default_factory=Architecture)
    batch: int = 16
    lr: float = 1e-4

    name: ClassVar[str] = "erase"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[Access] = Access.WEIGHTS
    knows: ClassVar[frozenset[str]] = frozenset({"scheme"})

    def __post_init__(self) -> None:
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"erase epochs must be a whole number of at least 0, got {self.epochs}")
        # defaults and version spelled out, so that they are part of what identifies the attack
        object.__setattr__(self, "scheme", identify(self._own))
        side = self._own.pairs.side
        self.network.require(side, side)
        _ = self._fit  # refuses what it does not know

    @cached_property
    def _own(self) -> DeepWatermark:
        """The attacker's own scheme, without a surrogate to rehearse on, which nobody would read."""
        found = changed_scheme(self.scheme, {**self.changes, "adversarial.epochs": 0})
        if not isinstance(found, DeepWatermark) or found.variant != "barrier":
            raise ConfigError("erase undoes a barrier; give it a deep_watermark scheme with variant=barrier")
        return found

    @property
    def _fit(self) -> Fit:
        return Fit(max(1, int(self.epochs)), self.batch, self.lr)

    def work(self, images: int) -> float:
        """A barrier of the attacker's own, and the network that undoes it."""
        return self._own.embedding_work(images) + 3.0 * images * self._own.embedding.patches * self.epochs

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """What undoes how many marks of the attacker's own."""
        return f"epochs {self.network.name} from {self._own.family} own marks"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The stolen model with the network behind it."""
        from hallmark.restoration import train_on_pairs  # Lightning is needed here alone

        model = victim.weights_module()
        if not self.epochs:
            return model
        seed = generator.initial_seed()
        own, host = self._own, _AsTheyAre()
        key = own.keygen(host, attacker_data, generator=generator_for(seed, "key"))
        rng = generator_for(seed, "embed")
        marked, key = own.embed(host, key, attacker_data, trainer=trainer, generator=rng)
        rng = generator_for(seed, "patches")
        clean = cut(attacker_data.images, own.pairs.side, own.embedding.patches, generator=rng)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "retouch"))
            retouch = Retouch(self.network)
        bearing = _marked(marked.barrier, clean, key.tensors["family"], generator_for(seed, "marks"))  # type: ignore[arg-type]
        train_on_pairs(retouch, bearing, self._fit, targets=clean, trainer=trainer, seed=derive_seed(seed, "retouch"))
        return Postprocessed(model, retouch).eval()


def _marked(barrier: Barrier, images: Tensor, family: Tensor, rng: torch.Generator) -> Tensor:
    """Images uint8 ``(N, 3, H, W)`` behind a barrier, each with a mark of the family drawn for it."""
    marks = family[torch.randint(len(family), (len(images),), generator=rng)]
    size = block_size(images)
    parts = zip(torch.split(images, size), torch.split(marks, size), strict=True)
    with torch.no_grad():
        return torch.cat([to_bytes(barrier(part.float() / 255, mark.float() / 255)) for part, mark in parts])


class _AsTheyAre(nn.Module):
    """A host that hands images on: the attacker marks images, not a network's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0))  # a network has parameters, which tell its device

    def forward(self, images: Tensor) -> Tensor:
        return images
