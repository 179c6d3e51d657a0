"""The task a classifier was trained for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.task import Measurement, Task
from hallmark.tasks.features import encode
from hallmark.tasks.probe import accuracy


@dataclass
class Classification(Task):
    """Top-1 accuracy of a classifier on the test images of its own data set."""

    name: ClassVar[str] = "classification"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    native: ClassVar[bool] = True

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> None:
        """Nothing to build: the host is the model that is used."""

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """Top-1 accuracy on the test images; nothing where the classifier knows other classes than they have."""
        if host.classes != test.classes:
            return []
        return [accuracy(encode(host, test.images), test.labels)]
