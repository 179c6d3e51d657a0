"""Training in which activations of trigger images gather round their means, whose projections bear the message."""

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.core import generator as generator_for
from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.models.classifier import Classifier
from hallmark.schemes.deepsigns.activations import answer
from hallmark.schemes.deepsigns.scheme import Embedding, require_width
from hallmark.schemes.situated_training import SituatedTraining, fit, start
from hallmark.schemes.uchida.regulariser import mark_loss


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
    task = DeepSignsTraining(begun.marked, begun.original, key, settings, derive_seed(seed, "mark"))
    return fit(task, begun, owner_data, settings, trainer=trainer, seed=seed)


class DeepSignsTraining(SituatedTraining):
    """The network's own task, loss₁ and loss₂, in one step.

    Args:
        marked: Classifier being trained.
        original: The host whose answers are learnt; None where labels are learnt.
        key: The owner's key.
        settings: Situation, schedule and weights of the losses.
        seed: Seeds views and the triggers of each step.
    """

    images: Tensor
    projection: Tensor
    message: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module | None, key: Key, settings: Embedding, seed: int) -> None:
        super().__init__(marked, original, settings, seed)
        self.layer = key.meta["layer"]
        self.settings = settings
        for name in ("images", "projection", "message"):
            self.register_buffer(name, key.tensors[name], persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """E₀ + γ₁ loss₁ + γ₂ loss₂; the trigger images go along with the batch, so that BatchNorm sees both."""
        views, labels = batch
        triggers = self.triggers(batch_idx)
        joint = torch.cat([views, triggers.flatten(0, 1).to(views)])
        answers, activations = answer(self.classifier, joint, self.layer)
        task = self.task_loss(views, labels, answers[: len(views)])
        with torch.autocast(task.device.type, enabled=False):
            gathered = activations[len(views) :].unflatten(0, triggers.shape[:2])
            means = gathered.mean(1)
            pull = gathering_loss(gathered, means)
            mark = mark_loss(means @ self.projection, self.message)
        loss = task + self.settings.pull * pull + self.settings.mark * mark
        self.log_losses(loss, task, mark / self.message.numel(), pull=pull)
        return loss

    def triggers(self, step: int) -> Tensor:
        """Trigger images ``(s, n', 3, H, W)`` in [0, 1] for one step, equally many of each class and none twice."""
        classes, each = self.images.shape[:2]
        rng = generator_for(self.seed, "triggers", self.current_epoch, step)
        wanted = self.settings.triggers // classes
        rows = torch.stack([torch.randperm(each, generator=rng)[:wanted] for _ in range(classes)])
        chosen = self.images[torch.arange(classes)[:, None], rows]
        return chosen.float() / 255


def gathering_loss(activations: Tensor, centres: Tensor) -> Tensor:
    """loss₁: mean squared distance of activations ``(s, n, D)`` from the centres ``(s, D)`` of their classes."""
    return (activations - centres[:, None]).square().sum(2).mean()
