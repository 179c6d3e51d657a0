"""Training in which activations of trigger images gather round centres whose projections bear the message."""

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.core import generator as generator_for
from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.models.classifier import Classifier
from hallmark.schemes.deepsigns.activations import answer, trigger_centres
from hallmark.schemes.deepsigns.scheme import Embedding, require_width
from hallmark.schemes.situated_training import SituatedTraining, fit, start
from hallmark.schemes.uchida.regulariser import mark_loss, right_bits


def embed(
    host: Classifier, key: Key, owner_data: Images, *, settings: Embedding, trainer: Trainer, seed: int
) -> nn.Module:
    """A marked network of the host's architecture in evaluation mode.

    Args:
        host: The unmarked host; left untouched.
        key: The owner's key.
        owner_data: The owner's images; see :func:`hallmark.schemes.situated_training.start`.
        settings: Situation, schedule and weights of the losses.
        trainer: Runs the loop.
        seed: Seeds order, views, triggers of each step and fresh weights.

    Raises:
        DataError: The situation needs labels and the data have none.
        KeyFileError: The key was made for a layer of another width.
    """
    require_width(host, key)
    begun = start(host, owner_data, settings, seed)
    begin = trigger_centres(host, key.tensors["images"], key.meta["layer"])
    task = DeepSignsTraining(begun.marked, begun.original, key, begin, settings, derive_seed(seed, "mark"))
    return fit(task, begun, owner_data, settings, trainer=trainer, seed=seed)


class DeepSignsTraining(SituatedTraining):
    """The network's own task, loss₁ and loss₂, in one step.

    The centres are parameters of their own: loss₂ moves them until their projections bear the bits, loss₁ brings the
    activations along.

    Args:
        marked: Classifier being trained.
        original: The host whose answers are learnt; None where labels are learnt.
        key: The owner's key.
        begin: Where the centres start, ``(s, D)``.
        settings: Situation, schedule and weights of the losses.
        seed: Seeds views and the triggers of each step.
    """

    images: Tensor
    projection: Tensor
    message: Tensor

    def __init__(
        self,
        marked: nn.Module,
        original: nn.Module | None,
        key: Key,
        begin: Tensor,
        settings: Embedding,
        seed: int,
    ) -> None:
        super().__init__(marked, original, settings, seed)
        self.layer = key.meta["layer"]
        self.settings = settings
        self.centres = nn.Parameter(begin.clone())
        self.trained.append(self.centres)
        for name in ("images", "projection", "message"):
            self.register_buffer(name, key.tensors[name], persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """E₀ + γ₁ loss₁ + γ₂ loss₂; the trigger images go along with the batch, so that BatchNorm sees both."""
        views, labels = batch
        triggers, classes = self.triggers(batch_idx)
        answers, activations = answer(self.classifier, torch.cat([views, triggers.to(views)]), self.layer)
        task = self.task_loss(views, labels, answers[: len(views)])
        pull = gathering_loss(activations[len(views) :], self.centres[classes])
        with torch.autocast(task.device.type, enabled=False):
            mark = mark_loss(self.centres @ self.projection, self.message)
        loss = task + self.settings.pull * pull + self.settings.mark * mark
        self.log_losses(loss, task, mark / self.message.numel(), pull=pull)
        return loss

    def triggers(self, step: int) -> tuple[Tensor, Tensor]:
        """Trigger images ``(B, 3, H, W)`` in [0, 1] for one step, no image twice, and their centres' rows."""
        each = self.images.shape[1]
        rng = generator_for(self.seed, "triggers", self.current_epoch, step)
        total = len(self.images) * each
        rows = torch.randperm(total, generator=rng)[: self.settings.triggers].to(self.images.device)
        return self.images.flatten(0, 1)[rows].float() / 255, rows // each

    def on_train_epoch_end(self) -> None:
        """Log the bit error rate of the centres once an epoch; the network's own follows as far as it is pulled."""
        right = right_bits(self.centres.detach() @ self.projection, self.message)
        self.log("ber", 1 - right / self.message.numel())


def gathering_loss(activations: Tensor, wanted: Tensor) -> Tensor:
    """loss₁: mean squared distance of activations ``(B, D)`` from the centres ``(B, D)`` of their classes."""
    return (activations - wanted).square().sum(1).mean()
