"""The interface of an attack."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import Access, HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.suspect import Suspect

KNOWLEDGE = ("scheme", "layer", "data")
"""What an attacker may know beyond what it sees of the victim: the scheme with its settings (never the key), the layer
that bears the mark, the data that the owner's queries come from."""


class Attack(ABC):
    """One way to remove, overwrite or dodge a mark, at one strength.

    The signature of :meth:`apply` cannot receive the owner's key or data, and the victim comes as a
    :class:`~hallmark.core.suspect.Suspect` at the declared access.  What an adaptive attacker knows is declared in
    ``knows``; it draws keys of its own.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other results than before."""
    access: ClassVar[Access]
    """What the attacker needs to see of the victim; see :meth:`access_for`."""

    @property
    @abstractmethod
    def hosts(self) -> frozenset[HostKind]:
        """Kinds of victim it works on.  Like the next two a class attribute, unless the settings decide."""

    @property
    def knows(self) -> frozenset[str]:
        """What the attacker knows beyond the victim, of :data:`KNOWLEDGE`; images of its own are no such knowledge."""
        return frozenset()

    @property
    def needs_labels(self) -> bool:
        """Whether it needs the labels of the attacker's images; they are withheld otherwise."""
        return False

    @property
    def needs_images(self) -> bool:
        """Whether it looks at the attacker's images at all; it is handed them in any case."""
        return True

    def images_used(self, images: int) -> int:
        """How many of the attacker's images it looks at: what the attack takes, beside time and queries.

        Args:
            images: Number of images that the attacker has; by default all are used, or none.
        """
        return images if self.needs_images else 0

    def access_for(self, kind: HostKind) -> Access:
        """What the attacker needs to see of a victim of a kind: :attr:`access`, unless the kind decides."""
        return self.access

    def check_host(self, host: nn.Module) -> None:  # noqa: B027 - most attacks have nothing to refuse
        """Refuse, before anything runs, a host that this attack's settings do not fit.

        Args:
            host: An untrained host on torch's meta device: it has shapes and names, but no weights.

        Raises:
            ConfigError: The settings do not fit, e.g. name a layer that is not there; the default looks at nothing.
        """

    def work(self, images: int) -> float:
        """Images through the network, a backward pass counting double, that the attack costs; for estimates alone.

        Args:
            images: Number of the attacker's images, by default trained on in every epoch that the settings ask for.
        """
        return 3.0 * images * (getattr(self, "epochs", 0) + getattr(self, "retrain_epochs", 0))

    @property
    @abstractmethod
    def strength(self) -> float:
        """The strength, in :attr:`unit`; 0 means the identity."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """What the strength counts, with the variant, e.g. ``"fraction global"``."""

    @abstractmethod
    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """Return the attacked model, of the victim's kind; the victim is left untouched.

        Args:
            victim: The model under attack, at the declared access.
            attacker_data: The attacker's images, disjoint from the owner's.
            trainer: Runs the training loop, if there is one.
            generator: The only source of randomness.
        """
