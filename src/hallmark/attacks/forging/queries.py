"""Query images, patches and perturbations that are made for a suspect: adversarial examples against the verdict."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.forging.common import Forger, Forgery, changed
from hallmark.attacks.forging.pixels import adapted, replaced
from hallmark.core import Access, Key, QueryScheme, Suspect
from hallmark.core.scheme import Images
from hallmark.models.inference import Answering
from hallmark.schemes.awencoder.perturbation import add, features, optimise
from hallmark.schemes.awencoder.scheme import AWEncoder

FOREIGN = 8
"""Decoy keys that the forger makes for itself, so that the images answer no key but its own."""


@dataclass(frozen=True)
class QueryForger(Forger):
    """A patch is optimised for the suspect, and query images are moved by a few levels until they answer it.

    The verdict compares the key with decoys over the same queries, so the loss is what decoys of the forger's own get
    less what the key gets.  Under a public string the patch is as it is drawn, and the images alone are made for it.

    Args:
        steps: Sign steps on the patch, and as many on the images.
    """

    scheme: Any
    steps: int = 40

    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES})

    def needed(self, decoys: int) -> int:
        """The query images."""
        return int(self.scheme.queries)

    @property
    def work(self) -> float:
        """Clean queries, those with the key's secret and those with a decoy's, forth and back."""
        return float(9 * self.steps * self.scheme.queries * (1 + (self.public is None)))

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key over images of the forger's."""
        model = self.copy(suspect)
        encoder = Answering(model)
        key = self.drawn(model, images, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        foreign = list(self.scheme.decoys(model, key, images, FOREIGN, seed=seed))
        if self.public is None:
            key = self._chosen(encoder, key)
        before = key.tensors["queries"]
        after = adapted(before, self._rivalry(encoder, key, foreign), steps=self.steps, like=model)
        made = changed(key, queries=after)
        if self.public is None:
            made = self._directed(encoder, made)
        return Forgery(made, suspect.access, public=self.public, images=replaced(images, before, after))

    def asked(self, images: Tensor, key: Key) -> Tensor:
        """The questions of a key whose query images are these ``(Q, 3, H, W)``, float in [0, 1]."""
        scheme: QueryScheme = self.scheme
        return scheme.questions(changed(key, queries=images))

    def answer(self, encoder: nn.Module, images: Tensor, clean: Tensor, key: Key) -> Tensor:
        """The statistic of a key over query images and their answers ``clean``, with gradients."""
        evidence = self.scheme.judge(Access.FEATURES, encoder(self.asked(images, key)).cpu(), clean, key)
        scores: Tensor = evidence.scores
        return (scores[:, 0] - scores[:, 1]).mean()

    def _rivalry(self, encoder: nn.Module, key: Key, foreign: list[Key]) -> Callable[[Tensor], Tensor]:
        turns = cycle(foreign)

        def loss(images: Tensor) -> Tensor:
            clean = encoder(images).cpu()
            return self.answer(encoder, images, clean, next(turns)) - self.answer(encoder, images, clean, key)

        return loss

    def _chosen(self, encoder: nn.Module, key: Key) -> Key:
        """The key with the patch, within its mask, that the suspect answers most."""
        queries = key.tensors["queries"].to(next(encoder.parameters()).device).float() / 255
        mask = key.tensors["mask"].to(queries.device).bool()
        with torch.no_grad():
            clean = encoder(queries).cpu()

        def loss(pattern: Tensor) -> Tensor:
            answers = encoder(torch.where(mask, pattern, queries)).cpu()
            scores: Tensor = self.scheme.judge(Access.FEATURES, answers, clean, key).scores
            return (scores[:, 1] - scores[:, 0]).mean()

        pattern = adapted(key.tensors["pattern"][None], loss, steps=self.steps, like=encoder, radius=1.0)
        return changed(key, pattern=torch.where(mask.cpu(), pattern[0], 0))

    def _directed(self, encoder: nn.Module, key: Key) -> Key:
        """The key with the secret direction, if it has one, that triggered queries have."""
        if "direction" not in key.tensors:
            return key
        device = next(encoder.parameters()).device
        with torch.no_grad():
            answers = encoder(self.asked(key.tensors["queries"].to(device).float() / 255, key)).cpu()
        return changed(key, direction=F.normalize(F.normalize(answers, dim=1).mean(0), dim=0))


@dataclass(frozen=True)
class AWEncoderForger(QueryForger):
    """A perturbation optimised for the very queries, longer than the scheme does, and queries moved to answer it.

    Decoys are made on images that have another role, as the true key has to be.

    Args:
        longer: Steps on the perturbation, in those of the scheme.
    """

    scheme: AWEncoder
    longer: int = 4

    most_tries: ClassVar[int | None] = 20
    """Each string costs a perturbation."""

    def needed(self, decoys: int) -> int:
        """An image for each role."""
        law = self.scheme
        return law.queries + law.perturbation.images + law.embedding.foreign + 1 + max(decoys, FOREIGN)

    @property
    def work(self) -> float:
        """As for patches; and perturbations, those of decoys among them."""
        return super().work + (FOREIGN + 1) * self.scheme.decoy_work

    def asked(self, images: Tensor, key: Key) -> Tensor:
        """The perturbed queries, and the key image as the last one."""
        image = key.tensors["image"].to(images.device).float() / 255
        return torch.cat([add(images, key.tensors["perturbation"].to(images)), image[None]])

    def _chosen(self, encoder: nn.Module, key: Key) -> Key:
        law = self.scheme.perturbation
        law = replace(law, steps=self.longer * law.steps, batch=min(4 * law.batch, len(key.tensors["queries"])))
        target = features(encoder, key.tensors["image"][None])  # type: ignore[arg-type]
        made = optimise(encoder, key.tensors["queries"], target, law)  # type: ignore[arg-type]
        return changed(key, perturbation=made[0])
