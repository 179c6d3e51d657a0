"""Training the mark into a network, from scratch or on from the host, with labels or without."""

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.models.layers import find_layer
from hallmark.schemes.situated_training import SituatedTraining, fit, start
from hallmark.schemes.uchida.carriers import project
from hallmark.schemes.uchida.filters import filter_mean
from hallmark.schemes.uchida.regulariser import host_layer, mark_loss, right_bits
from hallmark.schemes.uchida.scheme import Embedding


def embed(
    host: nn.Module, key: Key, owner_data: Images, *, settings: Embedding, trainer: Trainer, seed: int
) -> nn.Module:
    """A marked network of the host's architecture, by training.

    Args:
        host: The unmarked host; left untouched.
        key: The owner's key.
        owner_data: The owner's images; see :func:`hallmark.schemes.situated_training.start`.
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
    begun = start(host, owner_data, settings, seed)
    task = MarkTraining(begun.marked, begun.original, key, settings, derive_seed(seed, "mark"))
    return fit(task, begun, owner_data, settings, trainer=trainer, seed=seed)


class MarkTraining(SituatedTraining):
    """The network's own task and the embedding regulariser, in one step.

    Args:
        marked: Classifier or encoder being trained.
        original: The host whose answers are learnt; None where labels are learnt.
        key: The owner's key.
        settings: Situation and schedule.
        seed: Seeds the views.
    """

    carrier: Tensor
    message: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module | None, key: Key, settings: Embedding, seed: int) -> None:
        super().__init__(marked, original, settings, seed)
        self.layer = key.meta["layer"]
        self.strength = settings.mark
        self.register_buffer("carrier", key.tensors["carrier"], persistent=False)
        self.register_buffer("message", key.tensors["message"], persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """Task loss plus λ times the summed embedding loss."""
        images, labels = batch
        task = self.task_loss(images, labels, self.classifier(images))
        with torch.autocast(task.device.type, enabled=False):  # a few bits of precision would be felt in the mark
            responses = project(self.carrier, filter_mean(find_layer(self.classifier, self.layer)))
            mark = mark_loss(responses, self.message)
        loss = task + self.strength * mark
        self.log_losses(loss, task, mark / len(self.message))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the bit error rate once an epoch; counting bits at every step would stall an accelerator."""
        with torch.no_grad():
            responses = project(self.carrier, filter_mean(find_layer(self.classifier, self.layer)))
        self.log("ber", 1 - right_bits(responses, self.message) / len(self.message))
