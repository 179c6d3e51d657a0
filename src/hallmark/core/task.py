"""The interface of a task: it owns utility, no scheme measures it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer


@dataclass(frozen=True)
class Measurement:
    """A utility figure.

    Args:
        metric: Plain name, e.g. ``accuracy``.
        value: The figure; fractions lie in 0 … 1.
        count: Successes, where the figure is a proportion.
        n: Test samples.
    """

    metric: str
    value: float
    count: int | None = None
    n: int | None = None


class Task(ABC):
    """What a host is used for after release."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other results than before."""
    hosts: ClassVar[frozenset[HostKind]]
    native: ClassVar[bool] = False
    """Whether the host is measured on its own data set as it is; no downstream set and no downstream model then."""

    @abstractmethod
    def transfer(
        self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module | None:
        """Build the downstream model on the host, or return None where the task builds none (such as kNN)."""

    @abstractmethod
    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """Utility on held-out data."""
