"""Copying an image-to-image network from its answers alone."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from hallmark.components import NEUTRAL
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core.scheme import Images
from hallmark.data.pairs import PairLaw, make_pairs, to_bytes
from hallmark.errors import ConfigError
from hallmark.models import perceptual
from hallmark.models.image_to_image import Architecture, fresh
from hallmark.models.inference import block_size
from hallmark.restoration_settings import Fit


@dataclass(frozen=True)
class Surrogate(Attack):
    """A network of the attacker's own, trained on inputs and what the victim makes of them.

    Unlike other attacks it does not change the victim, so there is no strength at which it does nothing.  Its strength
    is the share of pairs that come from the victim; with none the network has learnt from true pairs alone, and bears
    no mark.

    Args:
        fraction: Share of the pairs whose target is the victim's output, 0 … 1; of the others it is the true image.
        epochs: Passes over the pairs.
        pairs: How the attacker makes inputs from its images.
        network: The surrogate's architecture.
        loss: ``l1``, ``l2``, ``l1_adv``, ``l2_adv`` or ``perceptual_adv``.
        perceptual: Network of the perceptual loss; see :mod:`hallmark.models.perceptual`.
        batch: Pairs per step.
        lr: Adam's learning rate; constant for half of the steps, then falling linearly to zero.
        patches: Patches cut from each of the attacker's images, and asked about once.
        geometric: Whether both images of a pair are turned, cropped, resized and mirrored together at every step.
        clean_epochs: Further passes over the same inputs with their true images, after the victim's.
    """

    fraction: float
    epochs: int = 300
    pairs: PairLaw = field(default_factory=PairLaw)
    network: Architecture = field(default_factory=Architecture)
    loss: str = "l2"
    perceptual: str = "random"
    batch: int = 16
    lr: float = 1e-4
    patches: int = 1
    geometric: bool = field(default=False, metadata=NEUTRAL)
    clean_epochs: int = field(default=0, metadata=NEUTRAL)

    name: ClassVar[str] = "surrogate"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[Access] = Access.IMAGES

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"surrogate fraction must lie in 0 … 1, got {self.fraction}")
        if self.clean_epochs < 0:
            raise ConfigError(f"surrogate clean_epochs must be at least 0, got {self.clean_epochs}")
        self.network.require(self.pairs.side, self.pairs.side)
        if self.fit.loss.startswith("perceptual"):
            perceptual.require(self.perceptual)

    @property
    def fit(self) -> Fit:
        """Loss and schedule."""
        return Fit(self.epochs, self.batch, self.lr, self.patches, self.loss, self.perceptual, self.geometric)

    def work(self, images: int) -> float:
        """Pairs that are asked about, and trained on."""
        return float(images * self.patches * (1 + 3 * (self.epochs + self.clean_epochs)))

    @property
    def strength(self) -> float:
        """Share of marked pairs."""
        return self.fraction

    @property
    def unit(self) -> str:
        """Network, loss, and what else was done."""
        tuned = f" then {self.clean_epochs} epochs clean" if self.clean_epochs else ""
        return f"fraction {self.network.name} {self.fit.label}{tuned}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The surrogate; each patch is asked about once, and answers come as 8-bit images."""
        from hallmark.restoration import train_on_pairs  # Lightning is needed here alone

        inputs, true = make_pairs(attacker_data.images, self.pairs, self.patches, generator=generator)
        asked = torch.randperm(len(inputs), generator=generator)[: round(self.fraction * len(inputs))]
        targets = true.clone()
        for rows in torch.split(asked, block_size(inputs)):
            targets[rows] = to_bytes(victim.images(inputs[rows].float() / 255))
        seed = derive_seed(generator.initial_seed(), "surrogate")
        model = train_on_pairs(fresh(self.network, seed), inputs, self.fit, targets=targets, trainer=trainer, seed=seed)
        if self.clean_epochs:
            fit = replace(self.fit, epochs=self.clean_epochs)
            train_on_pairs(model, inputs, fit, targets=true, trainer=trainer, seed=derive_seed(seed, "clean"))
        return model
