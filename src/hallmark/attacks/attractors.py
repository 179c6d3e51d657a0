"""Does an encoder gather images that have nothing in common?  Two detectors that make triggers of their own.

Marks that send triggered images to one place leave an attractor in feature space.  :class:`TriggerInversion` is DECREE
(Feng et al., CVPR 2023): how small a mask and pattern make all images alike to the encoder.  :class:`ClusterDetector`
follows the objection of Jiang et al. (2026) to cluster marks: a small change of all images that draws them into a
dense cluster *away from where images are*.  Both need weights, for gradients, and images of the attacker's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hallmark.attacks.detect import excess
from hallmark.attacks.triggers import smallest_trigger
from hallmark.core import Detector, HostKind, Suspect
from hallmark.core import generator as generator_for
from hallmark.errors import ConfigError, DataError
from hallmark.models.inference import Answering

_SEED = 0
"""Every network is looked at from the same start, so that scores differ by the networks alone."""


@dataclass(frozen=True)
class TriggerInversion(Detector):
    """The smallest trigger under which features of all images point the same way (DECREE).

    A trigger is sought for which stamped images have a mean pairwise cosine of at least ``similarity``, and whose mask
    is small; see :func:`hallmark.attacks.triggers.smallest_trigger`.  Of the attacker's own networks it learns nothing.

    Args:
        similarity: Mean pairwise cosine that counts as gathered.
        steps: Steps of Adam, with DECREE's β of 0.5 and 0.9.
        batch: Images that the trigger has to gather.
        lr: DECREE's learning rate.
        restarts: Starts from which a trigger is sought; the smallest counts, since some lead nowhere.
    """

    similarity: float = 0.99
    steps: int = 200
    batch: int = 128
    lr: float = 0.5
    restarts: int = 2

    name: ClassVar[str] = "trigger_inversion"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -1 < self.similarity < 1:
            raise ConfigError(f"trigger_inversion similarity is a cosine below 1, got {self.similarity}")
        if min(self.steps, self.restarts) < 1 or self.batch < 2 or not self.lr > 0:
            raise ConfigError(
                "trigger_inversion needs steps and restarts ≥ 1, batch ≥ 2 and lr > 0, got "
                f"{self.steps}, {self.restarts}, {self.batch} and {self.lr}"
            )

    @property
    def unit(self) -> str:
        """Name and cosine."""
        return f"trigger inversion to cosine {self.similarity:g}"

    def scores(
        self,
        unmarked: Sequence[Suspect],
        marked: Sequence[Suspect],
        suspects: Sequence[Suspect],
        *,
        images: Tensor | None = None,
    ) -> list[float]:
        """Minus the smallest mean of a mask that gathers the images; −1, the whole image, where none was found."""
        drawn = _draw(images, self.batch)
        starts = range(self.restarts)
        return [-min(self.invert(encoder, drawn, start) for start in starts) for encoder in _encoders(suspects)]

    def invert(self, encoder: Answering, images: Tensor, start: int) -> float:
        """Mean of the smallest mask found that gathers images ``(B, 3, H, W)`` in [0, 1]; 1 if none does."""

        def gathers(stamped: Tensor) -> tuple[Tensor, bool]:
            cosine = mean_cosine(encoder(stamped).float())
            return cosine, cosine.item() >= self.similarity

        rng = generator_for(_SEED, "trigger", start)
        found = smallest_trigger(gathers, images, steps=self.steps, lr=self.lr, generator=rng)
        return 1.0 if found is None else found.size


@dataclass(frozen=True)
class ClusterDetector(Detector):
    """A dense cluster where no image is, and one small change of all images that leads there.

    Universal changes are sought by sign steps that make features of changed images alike.  On images that were not
    used for it two numbers tell what was found: how dense the cluster is (mean pairwise cosine), and how far from
    images it lies (mean cosine distance to the nearest feature of an image as it is, in units of what lies between
    images that were not changed either).  Both are held
    against the attacker's unmarked networks, and the lesser excess counts, of the most conspicuous of several changes:
    an encoder that finds all images alike is dense, but not away; one that is easily led astray is away, but not dense.

    Args:
        epsilon: Bound on the change of a pixel in [0, 1].
        side: Side of the patch in the middle that may change; 0 for the whole image.
        steps: Sign steps, of which the first goes a quarter of the bound.
        restarts: Changes that are sought, each from a start of its own.
        batch: Images a change is sought on, and as many that it is tried on.
        references: Images whose features tell where images are.
    """

    epsilon: float = 8 / 255
    side: int = 0
    steps: int = 40
    restarts: int = 4
    batch: int = 64
    references: int = 512

    name: ClassVar[str] = "cluster"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ConfigError(f"cluster epsilon must lie in (0, 1], pixels being 0 to 1; got {self.epsilon}")
        if min(self.steps, self.restarts, self.references) < 1 or self.batch < 2 or self.side < 0:
            raise ConfigError(
                "cluster needs steps, restarts and references ≥ 1, batch ≥ 2 and side ≥ 0, got "
                f"{self.steps}, {self.restarts}, {self.references}, {self.batch} and {self.side}"
            )

    @property
    def unit(self) -> str:
        """Name and what may change."""
        where = f"in a patch of {self.side}x{self.side}" if self.side else "anywhere"
        return f"clusters by {255 * self.epsilon:.0f} levels {where}"

    def scores(
        self,
        unmarked: Sequence[Suspect],
        marked: Sequence[Suspect],
        suspects: Sequence[Suspect],
        *,
        images: Tensor | None = None,
    ) -> list[float]:
        """The lesser excess of density and distance over unmarked networks, in their standard deviations."""
        drawn = _draw(images, 2 * self.batch + self.references)
        known, found = (np.array([self.seek(e, drawn) for e in _encoders(group)]) for group in (unmarked, suspects))
        usual = known.max(1)  # of each network the densest and the furthest of its changes, (N, 2)
        beyond = excess(usual, found.reshape(-1, 2)).min(1).reshape(len(suspects), self.restarts)
        scores: list[float] = beyond.max(1).tolist()
        return scores

    def seek(self, encoder: Answering, images: Tensor) -> list[tuple[float, float]]:
        """Density and distance from images of what each change leads to.

        Args:
            encoder: The network.
            images: ``(2 · batch + references, 3, H, W)`` in [0, 1].
        """
        sought, tried, reference = images.split([self.batch, self.batch, self.references])
        with torch.no_grad():
            places = F.normalize(encoder(reference).float(), dim=1)
            spacing = _to_nearest(encoder(tried).float(), places).clamp_min(1e-6)
        found = []
        for number in range(self.restarts):
            change = self._descend(encoder, sought, number)
            with torch.no_grad():
                moved = encoder((tried + change).clamp(0, 1)).float()
            found.append((float(mean_cosine(moved)), float(_to_nearest(moved, places) / spacing)))
        return found

    def _descend(self, encoder: Answering, images: Tensor, number: int) -> Tensor:
        """One universal change ``(3, H, W)`` within the bound."""
        height, width = images.shape[2:]
        if self.side > min(height, width):
            raise ConfigError(f"cluster side={self.side} does not fit into {height}x{width} images; lower it")
        free = torch.ones(height, width, device=images.device)
        if self.side:
            top, left = (height - self.side) // 2, (width - self.side) // 2
            free.zero_()[top : top + self.side, left : left + self.side] = 1
        rng = generator_for(_SEED, "change", number)
        change = free * self.epsilon * (2 * torch.rand(images.shape[1:], generator=rng).to(images) - 1)
        for step in range(self.steps):
            change.requires_grad_(True)
            (gradient,) = torch.autograd.grad(mean_cosine(encoder((images + change).clamp(0, 1)).float()), change)
            length = self.epsilon / 4 * (1 - step / self.steps)
            change = (change.detach() + length * free * gradient.sign()).clamp(-self.epsilon, self.epsilon)
        return change


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine between different rows of features ``(B, D)``, B ≥ 2."""
    count = len(features)
    total = F.normalize(features, dim=1).sum(0).square().sum()
    return (total - count) / (count * (count - 1))


def _to_nearest(features: Tensor, places: Tensor) -> Tensor:
    """Mean cosine distance of features ``(B, D)`` to the nearest of ``places`` ``(N, D)`` of unit length."""
    return 1 - (F.normalize(features, dim=1) @ places.T).amax(1).mean()


def _draw(images: Tensor | None, count: int) -> Tensor:
    """The first images, float in [0, 1]; their order is that of a random split."""
    if images is None or len(images) < count:
        have = 0 if images is None else len(images)
        raise DataError(f"the detector needs {count} images of the attacker, there are {have}; lower its batch")
    return images[:count].float() / 255


def _encoders(suspects: Sequence[Suspect]) -> Iterator[Answering]:
    return (Answering(suspect.weights_module()) for suspect in suspects)
