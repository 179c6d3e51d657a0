"""How an image-to-image network is fitted to pairs, as plain values; planning does without Lightning."""

from dataclasses import dataclass, field

from hallmark.components import NEUTRAL
from hallmark.errors import ConfigError, allowed

LOSSES = ("l1", "l2", "l1_adv", "l2_adv", "perceptual_adv")
"""The paper's five; ``adv`` adds a discriminator's loss."""


@dataclass(frozen=True)
class Fit:
    """Loss and schedule.

    Args:
        epochs: Passes over the patches.
        batch: Pairs per step.
        lr: Adam's learning rate; constant for half of the steps, then falling linearly to zero.
        patches: Patches cut from each image, once.
        loss: One of :data:`LOSSES`.
        perceptual: Network of a perceptual loss; see :mod:`hallmark.models.perceptual`.
        geometric: Whether input and target of a pair are turned, cropped, resized and mirrored together, afresh every
            step; see :func:`hallmark.data.geometry.move`.
    """

    epochs: int = 300
    batch: int = 16
    lr: float = 1e-4
    patches: int = 1
    loss: str = "l2"
    perceptual: str = "random"
    geometric: bool = field(default=False, metadata=NEUTRAL)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(allowed(self.loss, LOSSES, "loss on pairs"))
        if self.epochs < 1 or self.batch < 2 or self.patches < 1 or self.lr <= 0:
            raise ConfigError(
                "a fit to pairs needs epochs ≥ 1, batch ≥ 2, patches ≥ 1 and lr > 0, "
                f"got {self.epochs}, {self.batch}, {self.patches} and {self.lr}"
            )

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator takes part."""
        return self.loss.endswith("_adv")

    @property
    def label(self) -> str:
        """The loss for people and rows, and whether pairs are moved; a perceptual loss names its network."""
        loss = f"{self.loss}[{self.perceptual}]" if self.loss.startswith("perceptual") else self.loss
        return f"{loss} geometric" if self.geometric else loss
