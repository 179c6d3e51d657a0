"""Training the mark into a network, from scratch or on from the host, with labels or without."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Key
from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.data.resident import ResidentBatches
from hallmark.errors import ConfigError, DataError
from hallmark.models import files
from hallmark.models.classifier import Classifier
from hallmark.models.inference import Answering
from hallmark.models.layers import find_layer
from hallmark.schemes.encoder_losses import pinning_loss
from hallmark.schemes.uchida.carriers import project
from hallmark.schemes.uchida.filters import filter_mean
from hallmark.schemes.uchida.regulariser import host_layer, mark_loss, right_bits
from hallmark.schemes.uchida.scheme import Embedding
from hallmark.supervised import Supervised


def embed(
    host: nn.Module, key: Key, owner_data: Images, *, settings: Embedding, trainer: Trainer, seed: int
) -> nn.Module:
    """A marked network of the host's architecture, by training.

    Args:
        host: The unmarked host; left untouched.
        key: The owner's key.
        owner_data: The owner's images; labels are read only to train or fine-tune a classifier, whose head starts
            afresh where the images have another number of classes than its own (table 6b).
        settings: Situation and schedule.
        trainer: Runs the loop.
        seed: Seeds order, views and fresh weights.

    Returns:
        The marked network in evaluation mode.

    Raises:
        ConfigError: The situation needs labels and the host is no classifier.
        DataError: The situation needs labels and the data have none.
        KeyFileError: The key was made for another layer.
    """
    host_layer(host, key)
    labels = _labels(host, owner_data, settings.situation)
    marked = _fresh(host, seed) if settings.situation == "train" else deepcopy(host)
    if labels is not None and marked.classes != owner_data.classes:
        marked = _with_new_head(marked, owner_data.classes, seed)
    original = host if labels is None else None
    task = MarkTraining(marked, original, key, settings, derive_seed(seed, "mark"))
    batch = min(settings.batch, len(owner_data))
    trainer.fit(task, ResidentBatches(owner_data.images, labels=labels, batch=batch, seed=seed), epochs=settings.epochs)
    return marked.eval()


class MarkTraining(Supervised):
    """The network's own task and the embedding regulariser, in one step.

    Args:
        marked: Classifier or encoder being trained.
        original: The host whose answers are learnt, of which a frozen copy is kept; None where labels are learnt.
        key: The owner's key.
        settings: Situation and schedule.
        seed: Seeds the views.
    """

    carrier: Tensor
    message: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module | None, key: Key, settings: Embedding, seed: int) -> None:
        super().__init__(
            marked,
            marked.parameters(),
            training=settings.training,
            view=settings.view,
            seed=seed,
            frozen=[marked] if settings.batch_norm == "frozen" else [],
        )
        self.original = None if original is None else Answering(original)
        self.layer = key.meta["layer"]
        self.strength = settings.mark
        self.register_buffer("carrier", key.tensors["carrier"], persistent=False)
        self.register_buffer("message", key.tensors["message"], persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """Task loss plus λ times the summed embedding loss; what is logged as ``embed_loss`` is its mean per bit."""
        task = self._task_loss(*batch)
        with torch.autocast(task.device.type, enabled=False):  # a few bits of precision would be felt in the mark
            responses = project(self.carrier, filter_mean(find_layer(self.classifier, self.layer)))
            mark = mark_loss(responses, self.message)
        loss = task + self.strength * mark
        bits = len(self.message)
        self.log_dict({"loss": loss.detach(), "task": task.detach(), "embed_loss": mark.detach() / bits}, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the bit error rate once an epoch; counting bits at every step would stall an accelerator."""
        with torch.no_grad():
            responses = project(self.carrier, filter_mean(find_layer(self.classifier, self.layer)))
        self.log("ber", 1 - right_bits(responses, self.message) / len(self.message))

    def _task_loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        answers = self.classifier(images).float()
        if self.original is None:
            return F.cross_entropy(answers, labels)  # type: ignore[arg-type]
        with torch.no_grad():
            wanted = self.original(images).float()
        if isinstance(self.classifier, Classifier):
            return F.cross_entropy(answers, wanted.softmax(1))
        return pinning_loss(answers, wanted)


def _labels(host: nn.Module, owner_data: Images, situation: str) -> Tensor | None:
    """The labels where they are learnt; an encoder has no use for them and is held to its own features."""
    if situation == "distill" or (situation == "finetune" and not isinstance(host, Classifier)):
        return None
    if not isinstance(host, Classifier):
        raise ConfigError(
            f"scheme.embedding.situation={situation} trains a classifier on labels, but the host is an encoder; "
            "use distill, finetune or posthoc"
        )
    withheld = int((owner_data.labels < 0).sum())
    if withheld:
        raise DataError(
            f"scheme.embedding.situation={situation} needs labels, and {withheld} of {len(owner_data)} images have "
            "none; use distill or posthoc"
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
