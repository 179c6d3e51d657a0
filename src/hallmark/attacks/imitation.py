"""Training on somebody else's answers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hallmark.core import Trainer, derive_seed
from hallmark.data.resident import ResidentBatches
from hallmark.optimisation import Training
from hallmark.supervised import LIGHT, Supervised

Loss = Callable[[Tensor, Tensor], Tensor]
"""From own and wanted answers ``(B, D)`` to a number."""


class Imitation(Supervised):
    """Augmented images are to get the answers that the images themselves got.

    Args:
        loss: Distance between own and wanted answers.
        **supervised: See :class:`hallmark.supervised.Supervised`.
    """

    def __init__(self, loss: Loss, **supervised: Any) -> None:
        super().__init__(**supervised)
        self.loss = loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, answers = batch
        loss = self.loss(self.classifier(images).float(), answers)
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
        seed: Seeds order and crops.
    """
    module = Imitation(
        loss,
        classifier=model,
        trained=model.parameters(),
        training=training,
        view=LIGHT,
        seed=derive_seed(seed, "imitation"),
    )
    batches = ResidentBatches(images, labels=answers, batch=min(batch, len(images)), seed=seed)
    trainer.fit(module, batches, epochs=epochs)
