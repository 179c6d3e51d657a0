"""The interface of an attack."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import Access, HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.suspect import Suspect


class Attack(ABC):
    """One way to remove, overwrite or dodge a mark, at one strength.

    The signature of :meth:`apply` cannot receive the owner's key or data, and the victim comes as a
    :class:`~hallmark.core.suspect.Suspect` at the declared access.  What an adaptive attacker knows is declared in
    ``knows``; it draws keys of its own.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other results than before."""
    hosts: ClassVar[frozenset[HostKind]]
    access: ClassVar[Access]
    """What the attacker needs to see of the victim."""
    knows: ClassVar[frozenset[str]] = frozenset()
    """What the attacker knows beyond the victim: any of ``scheme``, ``layer``, ``data``."""
    needs_labels: ClassVar[bool] = False

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
