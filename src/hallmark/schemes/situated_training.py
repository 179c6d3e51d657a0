"""Training a network for its own task while a mark is written: what every situation and every such scheme shares."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.data.resident import ResidentBatches
from hallmark.errors import DataError
from hallmark.models import files
from hallmark.models.classifier import Classifier
from hallmark.models.inference import Answering
from hallmark.schemes.encoder_losses import pinning_loss
from hallmark.schemes.situations import Situation
from hallmark.supervised import Supervised


@dataclass(frozen=True)
class Start:
    """Where a situation starts from.

    Args:
        marked: The network to be trained, in no one else's hands.
        original: The host whose answers are learnt; None where labels are.
        labels: The labels where they are learnt.
    """

    marked: nn.Module
    original: nn.Module | None
    labels: Tensor | None


def start(host: nn.Module, owner_data: Images, settings: Situation, seed: int) -> Start:
    """The network that a situation trains, and what it learns from.

    Args:
        host: The unmarked host; left untouched.
        owner_data: The owner's images; labels are read only to train or fine-tune a classifier, whose head starts
            afresh where the images have another number of classes than its own (table 6b of Nagai et al. 2018).
        settings: Names the situation.
        seed: Seeds fresh weights.

    Raises:
        ConfigError: The situation needs labels and the host is no classifier.
        DataError: The situation needs labels and the data have none.
    """
    labels = _labels(host, owner_data, settings)
    marked = _fresh(host, seed) if settings.situation == "train" else deepcopy(host)
    if labels is not None and marked.classes != owner_data.classes:
        marked = _with_new_head(marked, owner_data.classes, seed)
    return Start(marked, host if labels is None else None, labels)


class SituatedTraining(Supervised):
    """The network's own task in a situation; subclasses add a mark to its loss.

    Args:
        marked: Classifier or encoder being trained.
        original: The host whose answers are learnt, of which a frozen copy is kept; None where labels are learnt.
        settings: Situation and schedule.
        seed: Seeds the views.
    """

    def __init__(self, marked: nn.Module, original: nn.Module | None, settings: Situation, seed: int) -> None:
        super().__init__(
            marked,
            marked.parameters(),
            training=settings.training,
            view=settings.view,
            seed=seed,
            frozen=[marked] if settings.batch_norm == "frozen" else [],
        )
        self.original = None if original is None else Answering(original)

    def task_loss(self, images: Tensor, labels: Tensor | None, answers: Tensor) -> Tensor:
        """Cross entropy of a classifier's answers to labels or the host's own; for an encoder, its host's features.

        Args:
            images: ``(B, 3, H, W)`` in [0, 1].
            labels: ``(B,)``, or None where the host's answers are learnt.
            answers: What the network in training says of the images ``(B, …)``.
        """
        answers = answers.float()
        if self.original is None:
            return F.cross_entropy(answers, labels)  # type: ignore[arg-type]
        with torch.no_grad():
            wanted = self.original(images).float()
        if isinstance(self.classifier, Classifier):
            return F.cross_entropy(answers, wanted.softmax(1))
        return pinning_loss(answers, wanted)

    def log_losses(self, loss: Tensor, task: Tensor, per_bit: Tensor, **others: Tensor) -> None:
        """Log losses; what is logged as ``embed_loss`` is the mean per bit."""
        figures = {"loss": loss, "task": task, "embed_loss": per_bit, **others}
        self.log_dict({name: figure.detach() for name, figure in figures.items()}, prog_bar=True)


def fit(
    task: SituatedTraining, begun: Start, owner_data: Images, settings: Situation, *, trainer: Trainer, seed: int
) -> nn.Module:
    """Run a training and return its network in evaluation mode; ``seed`` seeds the order of the images."""
    batch = min(settings.batch, len(owner_data))
    batches = ResidentBatches(owner_data.images, labels=begun.labels, batch=batch, seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return begun.marked.eval()


def _labels(host: nn.Module, owner_data: Images, settings: Situation) -> Tensor | None:
    """The labels where they are learnt; an encoder has no use for them and is held to its own features."""
    settings.check_host(host)
    if not (settings.learns_labels and isinstance(host, Classifier)):
        return None
    withheld = int((owner_data.labels < 0).sum())
    if withheld:
        raise DataError(
            f"scheme.embedding.situation={settings.situation} needs labels, and {withheld} of {len(owner_data)} images "
            f"have none; use {settings.others('train', 'finetune')}"
        )
    return owner_data.labels


def _fresh(host: nn.Module, seed: int) -> nn.Module:
    """An untrained network of the host's architecture, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return files.build(files.describe(host))


def _with_new_head(classifier: Classifier, classes: int, seed: int) -> Classifier:
    """The classifier with a fresh head for another number of classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "head"))
        return Classifier(classifier.encoder, classes, classifier.hidden)
