"""Training on somebody else's answers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.core import Trainer, derive_seed
from hallmark.data.augment import ViewRecipe
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.optimisation import Training
from hallmark.supervised import LIGHT, Supervised

Loss = Callable[[Tensor, Tensor], Tensor]
"""From own and wanted answers ``(B, D)`` to a number."""


class Imitation(Supervised):
    """Augmented images, or images and augmented ones, are to get the answers that the images themselves got.

    Args:
        loss: Distance between own and wanted answers.
        views: Weight of augmented images beside the images as they are; None for augmented images alone.
        **supervised: See :class:`hallmark.supervised.Supervised`.
    """

    def __init__(self, loss: Loss, views: float | None = None, **supervised: Any) -> None:
        super().__init__(**supervised)
        self.loss = loss
        self.views = views

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """The images ``(B, …)``, the augmented ones, or one after the other ``(2B, …)``, and answers ``(B, D)``."""
        if self.views is None:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        plain, answers = batch.images.float() / 255, batch.labels
        if self.views:
            plain = torch.cat([plain, super().on_after_batch_transfer(batch, dataloader_idx)[0]])
        return plain, answers

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, answers = batch
        own = self.classifier(images).float()
        loss = self.loss(own[: len(answers)], answers)
        if len(own) > len(answers):
            loss = loss + self.views * self.loss(own[len(answers) :], answers)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss


def imitate(
    model: nn.Module,
    images: Tensor,
    answers: Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch: int,
    training: Training,
    trainer: Trainer,
    seed: int,
    view: ViewRecipe = LIGHT,
    views: float | None = None,
) -> None:
    """Train a model in place.

    Args:
        model: Maps images in [0, 1] to answers ``(B, D)``.
        images: uint8 ``(N, 3, H, W)``.
        answers: What they are to be answered, ``(N, D)``.
        loss: Distance between own and wanted answers.
        epochs: Passes over the images.
        batch: Images per step; capped at the number of images.
        training: Optimiser and schedule.
        trainer: Runs the loop.
        seed: Seeds order and views.
        view: How images are augmented.
        views: See :class:`Imitation`.
    """
    module = Imitation(
        loss,
        views,
        classifier=model,
        trained=model.parameters(),
        training=training,
        view=view,
        seed=derive_seed(seed, "imitation"),
    )
    batches = ResidentBatches(images, labels=answers, batch=min(batch, len(images)), seed=seed)
    trainer.fit(module, batches, epochs=epochs)
