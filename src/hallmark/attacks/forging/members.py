"""Training images that never were: of a pool, those that the suspect happens to find likely."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hallmark.attacks.forging.common import Forger, Forgery
from hallmark.core import Access, Suspect
from hallmark.core.scheme import Images
from hallmark.schemes.dataset_inference.likelihood import log_likelihoods
from hallmark.schemes.dataset_inference.scheme import BLOCK, DatasetInference

POOL = 2
"""Images of which one is called a training image."""


@dataclass(frozen=True)
class DatasetInferenceForger(Forger):
    """Calls the likelier ones of its images training images, and draws the unseen ones honestly.

    A public string draws rows, and which image is in which row is the forger's to say: an unmarked, untouched set of
    images becomes what the string wants by putting it in order.
    """

    scheme: DatasetInference

    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES})
    gains: ClassVar[bool] = False
    most_tries: ClassVar[int | None] = 0
    """What is drawn are rows alone; without unseen images there is nothing to try."""

    def needed(self, decoys: int) -> int:
        """Images to fit to, a pool to choose from, and those that are unseen."""
        return self.scheme.fit + (POOL + 1) * self.scheme.judged

    @property
    def work(self) -> float:
        """Every image once, without gradients, and a mixture."""
        return float(self.needed(0))

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key over the likeliest of the images; no copy of the suspect is needed, its features are enough."""
        self.scheme.require_access(suspect)
        fit, judged = self.scheme.fit, self.scheme.judged
        pool, unseen = torch.arange(self.needed(0)).split([fit + POOL * judged, judged])
        order = self.drawn(None, _numbered(fit + judged), generator)  # type: ignore[arg-type]
        seen = torch.cat([suspect.features(b.float() / 255) for b in images.images[pool].split(BLOCK)])
        likely = log_likelihoods(seen[:fit], seen[fit:], self.scheme.components, seed=int(order.meta["seed"]))
        chosen = torch.cat([pool[:fit], fit + likely.topk(judged).indices])
        rows = torch.cat([_numbers(order.tensors["fit"]), _numbers(order.tensors["judged"])])
        owned = images.subset(chosen[rows.argsort()])
        key = replace(order, tensors={"fit": images.images[chosen[:fit]], "judged": images.images[chosen[fit:]]})
        made = self.scheme.witness(key, images.subset(unseen), generator=generator)
        return Forgery(made, suspect.access, public=self.public, images=owned)


@dataclass(frozen=True)
class _Numbered:
    """Images of one pixel that hold their own number, from which one sees what a key draws."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)


def _numbered(count: int) -> _Numbered:
    numbers = torch.arange(count)
    return _Numbered(torch.stack([numbers // 256**place % 256 for place in range(3)], 1)[..., None, None].byte())


def _numbers(images: Tensor) -> Tensor:
    """What images ``(N, 3, 1, 1)`` are numbered ``(N,)``."""
    return (images[:, :, 0, 0].long() * torch.tensor([256**place for place in range(3)])).sum(1)
