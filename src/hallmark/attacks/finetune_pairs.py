"""Fine-tuning of image-to-image networks on the attacker's own pairs."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.data.pairs import PairLaw, cut
from hallmark.errors import ConfigError
from hallmark.restoration_settings import Fit


@dataclass(frozen=True)
class FineTunePairs(Attack):
    """Train all of the stolen network, a barrier behind it included, to make clean images of degraded ones.

    The attacker degrades images of its own, afresh at every step; they are the targets, and bear no mark.

    Args:
        epochs: Passes over the attacker's patches; 0 leaves the model as it is.
        pairs: How inputs are made of clean images.
        batch: Patches per step.
        lr: Adam's learning rate; constant for half of the steps, then falling linearly to zero.
        patches: Patches cut from each of the attacker's images.
    """

    epochs: int
    pairs: PairLaw = field(default_factory=PairLaw)
    batch: int = 16
    lr: float = 1e-4
    patches: int = 1

    name: ClassVar[str] = "finetune"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"finetune epochs must be a whole number of at least 0, got {self.epochs}")
        _ = self._fit  # refuses what it does not know

    @property
    def _fit(self) -> Fit:
        return Fit(max(1, int(self.epochs)), self.batch, self.lr, self.patches)

    def work(self, images: int) -> float:
        """Patches of every pair, in every epoch."""
        return 3.0 * images * self.epochs * self.patches

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """All layers, on which pairs."""
        return f"epochs all {self.pairs.kind} pairs {self._fit.label}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The fine-tuned network."""
        from hallmark.restoration import train_on_pairs  # Lightning is needed here alone

        model = victim.weights_module()
        if not self.epochs:
            return model
        seed = generator.initial_seed()
        rng = generator_for(seed, "patches")
        patches = cut(attacker_data.images, self.pairs.side, self.patches, generator=rng)
        fit_seed = derive_seed(seed, "finetune")
        return train_on_pairs(model, patches, self._fit, law=self.pairs, trainer=trainer, seed=fit_seed)  # type: ignore[arg-type]
