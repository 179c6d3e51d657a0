"""BatchNorm statistics taken afresh on the attacker's images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from hallmark.attacks.sample import draw_images
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError

BATCH = 128


@dataclass(frozen=True)
class Reestimate(Attack):
    """Forget the running means and variances of every BatchNorm, and take those of the attacker's images instead.

    No weight changes and no label is needed.

    Args:
        images: Number of images, 0 or at least 2.
    """

    images: int

    name: ClassVar[str] = "reestimate"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.images < 0 or self.images == 1 or self.images != int(self.images):
            raise ConfigError(f"reestimate images must be 0 or a whole number of at least 2, got {self.images}")

    def images_used(self, images: int) -> int:
        """The strength."""
        return int(self.images)

    @property
    def strength(self) -> float:
        """Images."""
        return float(self.images)

    @property
    def unit(self) -> str:
        """Images."""
        return "images"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model with other statistics.

        Raises:
            ConfigError: It has no BatchNorm that keeps any, or the attacker has fewer images.
        """
        model = victim.weights_module()
        if not self.images:
            return model
        if not any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules()):
            raise ConfigError(f"this {type(model).__name__} has no BatchNorm to re-estimate; leave reestimate out")
        chosen = draw_images(attacker_data, self.images, "reestimate.images", generator=generator)
        images = attacker_data.images[chosen].to(victim.device)
        batches = torch.tensor_split(images, -(-len(images) // BATCH))  # of equal size, as each counts the same
        with torch.no_grad():
            update_bn((batch.float() / 255 for batch in batches), model)
        return model.eval()
