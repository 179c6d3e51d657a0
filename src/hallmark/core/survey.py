"""The interface of a survey: what the owner measures with everything in hand, beside utility and verdicts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import HostKind
from hallmark.core.key import Key
from hallmark.core.scheme import Images, Scheme


@dataclass(frozen=True)
class Reading:
    """One figure.

    Args:
        metric: Plain name, e.g. ``fpr``.
        value: The figure; fractions lie in 0 … 1.
        unit: What it was measured under, where one survey reads a metric several times.
        variant: The setting of the scheme that it is about; empty for that of the mark looked at.
        count: Successes, where the figure is a proportion.
        n: Trials.
        low: Lower end of its interval, where Wilson's would be wrong.
        high: Upper end.
    """

    metric: str
    value: float
    unit: str = ""
    variant: str = ""
    count: int | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Marking:
    """A mark as its owner holds it.

    Args:
        scheme: The scheme with its settings.
        model: The marked model.
        key: Its key.
    """

    scheme: Scheme
    model: nn.Module
    key: Key


class Survey(ABC):
    """What only the owner of a host can measure: with the key of a mark in it, or before any key is drawn."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other results than before."""
    hosts: ClassVar[frozenset[HostKind]]
    schemes: ClassVar[frozenset[str]]
    """Names of the schemes it is about."""
    marks: ClassVar[bool]
    """Whether it looks at each mark; otherwise it looks at the unmarked host alone."""

    def check_host(self, host: nn.Module) -> None:  # noqa: B027 - most surveys look at nothing by name
        """Refuse, before anything runs, a host that the settings do not fit.

        Args:
            host: An untrained host on torch's meta device.

        Raises:
            ConfigError: The settings do not fit, e.g. name a layer that is not there.
        """

    def work(self, scheme: Scheme | None, kind: HostKind, test: int) -> float:
        """Images through the network that looking at one host or mark costs, for estimates alone.

        Args:
            scheme: The scheme of the mark looked at, if the survey looks at marks.
            kind: What the host is.
            test: Number of test images.
        """
        return 10.0 * test

    @abstractmethod
    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """Measure.

        Args:
            host: The unmarked host.
            marking: A mark in it, if the survey looks at marks.
            owner: The owner's images, without labels.
            test: Labelled images that neither host nor mark has seen.
            generator: The only source of randomness.
        """
