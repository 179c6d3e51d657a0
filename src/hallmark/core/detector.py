"""The interface of a detector: whether there is a mark at all, asked without the owner's key."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from hallmark.core.access import HostKind
from hallmark.core.suspect import Suspect


class Detector(ABC):
    """One way to tell marked networks from unmarked ones.

    Its signature cannot receive the owner's key, data or networks.  What it knows of the scheme it knows from networks
    that the attacker made: unmarked ones, and ones marked with keys of the attacker's own.  It reads weights, so it is
    handed suspects that grant them, all of one architecture.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other scores than before."""
    hosts: ClassVar[frozenset[HostKind]]
    """Kinds of host it reads."""
    needs_images: ClassVar[bool] = False
    """Whether it looks at networks through images; it is then handed some of the attacker's."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Name and variant for the column of that name, e.g. ``"spread of group2.conv2"``."""

    def check_host(self, host: nn.Module) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse, before anything runs, a host that these settings do not fit.

        Args:
            host: An untrained host on torch's meta device.

        Raises:
            ConfigError: The settings do not fit, e.g. name a layer that is not there.
        """

    @abstractmethod
    def scores(
        self,
        unmarked: Sequence[Suspect],
        marked: Sequence[Suspect],
        suspects: Sequence[Suspect],
        *,
        images: Tensor | None = None,
    ) -> list[float]:
        """How much each suspect looks like a marked network.

        Args:
            unmarked: The attacker's own networks without a mark, at least two.
            marked: The attacker's own networks with marks of the attacker's own keys, at least two.
            suspects: Networks of others; none of them may be among those above.
            images: The attacker's images, uint8 ``(N, 3, H, W)``, where :attr:`needs_images`.

        Returns:
            One finite number a suspect, larger for what is more like a mark.  Only their order has a meaning.
        """
