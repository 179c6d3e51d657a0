"""Downstream tasks on a frozen encoder: linear probe, MLP probe and k nearest neighbours."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core.access import HostKind
from hallmark.core.scheme import Images, Trainer
from hallmark.core.task import Measurement, Task
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.models.wrapping import bare
from hallmark.tasks.features import encode
from hallmark.tasks.heads import HeadRecipe, train_head


def accuracy(logits: Tensor, labels: Tensor, metric: str = "accuracy") -> Measurement:
    """Top-1 accuracy of logits ``(N, C)`` or answers ``(N,)``, as a proportion with its counts."""
    answers = logits.argmax(1) if logits.ndim == 2 else logits
    correct = int((answers == labels).sum())
    return Measurement(metric, correct / len(labels), correct, len(labels))


@dataclass
class Probe(Task):
    """A head on the features of a frozen encoder.

    Args:
        name: ``linear_probe`` or ``mlp_probe``.
        recipe: How the head is trained.
    """

    name: str = "linear_probe"  # type: ignore[misc]
    recipe: HeadRecipe = field(default_factory=HeadRecipe)
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> Classifier:
        """Train the head on cached features; the encoder stays as it is."""
        encoder = _encoder(host)
        classifier = Classifier(encoder, train.classes, self.recipe.hidden)
        features = encode(encoder, train.images)
        classifier.head = train_head(features, train.labels, train.classes, self.recipe, generator=generator)
        return classifier.eval()

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """Top-1 accuracy on the test images."""
        if not isinstance(downstream, Classifier):
            raise TypeError(f"a probe measures a Classifier, got {type(downstream).__name__}")
        with torch.no_grad():
            device = next(downstream.head.parameters()).device
            logits = downstream.head(encode(downstream.encoder, test.images).to(device)).cpu()
            return [accuracy(logits, test.labels)]


@dataclass
class NearestNeighbours(Task):
    """Weighted k-nearest-neighbour classification on features (Wu et al. 2018), which trains nothing.

    Args:
        k: Neighbours.
        temperature: Of the votes.
    """

    k: int = 20
    temperature: float = 0.1
    name: ClassVar[str] = "knn"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> None:
        """Nothing to build."""

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """Top-1 accuracy of the neighbours' vote."""
        bank, queries = encode(host, train.images), encode(host, test.images)
        answers = nearest_labels(queries, bank, train.labels, train.classes, k=self.k, temperature=self.temperature)
        return [accuracy(answers, test.labels, "knn_accuracy")]


def nearest_labels(
    queries: Tensor, bank: Tensor, labels: Tensor, classes: int, *, k: int, temperature: float, block: int = 1000
) -> Tensor:
    """Voted labels ``(Q,)`` of queries ``(Q, D)`` among a bank ``(N, D)``, in blocks so that memory stays bounded."""
    from lightly.utils.benchmarking.knn import knn_predict  # brings Lightning along, which planning does without

    bank = nn.functional.normalize(bank, dim=1).T.contiguous()
    parts = [
        knn_predict(nn.functional.normalize(part, dim=1), bank, labels, classes, min(k, len(labels)), temperature)[:, 0]
        for part in torch.split(queries, block)
    ]
    return torch.cat(parts)


def _encoder(host: nn.Module) -> Encoder:
    if not isinstance(bare(host), Encoder):
        raise TypeError(f"a probe needs an Encoder, got {type(host).__name__}")
    return host  # type: ignore[return-value]  # behind a wrapper it still is one to whoever asks it
