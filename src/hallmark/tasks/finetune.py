"""Downstream task: the whole network is fine-tuned."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.task import Measurement, Task
from hallmark.models.classifier import Classifier
from hallmark.optimisation import Training
from hallmark.tasks.features import encode
from hallmark.tasks.heads import HeadRecipe
from hallmark.tasks.probe import Probe, accuracy


@dataclass
class FineTune(Task):
    """Train a linear probe, then every weight from there (Kumar et al. 2022: probing first keeps the features).

    A classifier gives its encoder; its head, made for other classes, is dropped.

    Args:
        epochs: Passes over the downstream training images.
        lr: Peak learning rate of AdamW.
        batch: Images per step.
        weight_decay: Decoupled weight decay.
        recipe: How the probe is trained.
    """

    epochs: int = 5
    lr: float = 1e-3
    batch: int = 128
    weight_decay: float = 5e-4
    recipe: HeadRecipe = field(default_factory=HeadRecipe)
    name: ClassVar[str] = "finetune"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> Classifier:
        """The fine-tuned classifier; the host is left untouched."""
        from hallmark.supervised import train_classifier  # Lightning, which planning does without

        encoder = getattr(host, "encoder", host)
        probe = Probe(recipe=self.recipe).transfer(deepcopy(encoder), train, trainer=trainer, generator=generator)
        train_classifier(
            probe,
            train,
            trained=probe.parameters(),
            epochs=self.epochs,
            batch=self.batch,
            training=Training(lr=self.lr, weight_decay=self.weight_decay),
            trainer=trainer,
            seed=generator.initial_seed(),
        )
        return probe

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """Top-1 accuracy on the test images."""
        if downstream is None:
            raise TypeError("fine-tuning measures the model it built, got None")
        return [accuracy(encode(downstream, test.images), test.labels)]
