"""Bits that are signs of secret projections: the projections, or the message, are made to fit the suspect."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.forging.common import Forger, Forgery, changed
from hallmark.attacks.forging.pixels import adapted, replaced
from hallmark.core import Access, Key, Suspect
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.schemes.deepsigns.activations import answer, centres, trigger_centres
from hallmark.schemes.deepsigns.scheme import DeepSigns
from hallmark.schemes.uchida.filters import filter_mean
from hallmark.schemes.uchida.regulariser import host_layer, mark_loss
from hallmark.schemes.uchida.scheme import Uchida


@dataclass(frozen=True)
class UchidaForger(Forger):
    """Rows of X are turned until each projection has the sign of the forger's bit: any w then reads any message.

    A key from a public string leaves nothing to choose.  The scheme's carrier has to be ``random``.
    """

    scheme: Uchida

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key with the message it was drawn with; a row that is turned is as Gaussian as before.

        Raises:
            ConfigError: Another carrier than a random one is to be turned.
        """
        model = self.copy(suspect)
        key = self.drawn(model, images, generator)
        if self.public is not None:
            return Forgery(key, Access.WEIGHTS, public=self.public)
        if self.scheme.carrier != "random":
            raise ConfigError(f"only a random carrier can be turned, got scheme.carrier={self.scheme.carrier}")
        carrier, message = key.tensors["carrier"], key.tensors["message"].bool()
        mean = filter_mean(host_layer(model, key)).detach().cpu().double()
        wrong = (carrier.double() @ mean >= 0) != message
        return Forgery(changed(key, carrier=torch.where(wrong[:, None], -carrier, carrier)), Access.WEIGHTS)


@dataclass(frozen=True)
class DeepSignsForger(Forger):
    """The message is what the suspect's centres read as; under a public string the trigger images are made to fit.

    Which images are of which class, and how many classes there are, is the forger's to say.

    Args:
        steps: Sign steps on the trigger images.
    """

    scheme: DeepSigns
    steps: int = 60

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS, Access.FEATURES})

    def needed(self, decoys: int) -> int:
        """The trigger images."""
        return self.scheme.triggers

    def presented(self, images: Images) -> Images:
        """As many as there are triggers, of as many classes as the scheme takes, in equal parts."""
        rows, classes = torch.arange(self.scheme.triggers), self.scheme.classes
        return replace(images.subset(rows), labels=rows % classes, classes=classes)  # type: ignore[type-var]

    @property
    def work(self) -> float:
        """Sign steps."""
        return float(3 * self.steps * self.scheme.triggers) if self.public is not None else float(self.scheme.triggers)

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key over images of the forger's."""
        model, labelled = self.copy(suspect).requires_grad_(False), self.presented(images)
        key = self.drawn(model, labelled, generator)
        if self.public is None:
            seen = trigger_centres(model, key.tensors["images"], self.scheme.layer).cpu()
            read = seen @ key.tensors["projection"] >= 0
            return Forgery(changed(key, message=read.to(torch.uint8)), suspect.access, images=labelled)
        before = key.tensors["images"].flatten(0, 1)
        after = adapted(before, lambda x: self._misread(model, x, key), steps=self.steps, like=model)
        made = changed(key, images=after.view_as(key.tensors["images"]))
        return Forgery(made, suspect.access, public=self.public, images=replaced(labelled, before, after))

    def _misread(self, model: nn.Module, images: Tensor, key: Key) -> Tensor:
        """The loss of the message under images ``(s · n, 3, H, W)``."""
        activations = answer(model, images, self.scheme.layer)[1]  # type: ignore[arg-type]
        read = centres(activations, len(key.tensors["images"])) @ key.tensors["projection"].to(activations)
        return mark_loss(read, key.tensors["message"].to(activations))
