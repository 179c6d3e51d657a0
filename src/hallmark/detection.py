"""Training an object detector on images with boxes."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.images import ImageSet
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.errors import DataError
from hallmark.models.detectors import ObjectDetector
from hallmark.optimisation import Training


class Detecting(pl.LightningModule):
    """A detector's own losses, on images of which half are mirrored.

    Args:
        detector: Trained in place.
        training: Optimiser and schedule.
        seed: Seeds what is mirrored.
    """

    def __init__(self, detector: ObjectDetector, *, training: Training, seed: int) -> None:
        super().__init__()
        self.detector = detector
        self.recipe = training
        self.seed = seed

    def on_train_epoch_start(self) -> None:
        """Models come in evaluation mode, and Lightning leaves them so."""
        self.detector.train()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and their objects, drawn for the whole batch, so that ranks mirror different ones."""
        drawn = torch.rand(batch.total, generator=generator(self.seed, "mirror", batch.step)) < 0.5
        mirrored = drawn[batch.start : batch.start + len(batch.images)].to(batch.images.device)
        return mirror(batch.images.float() / 255, batch.labels, mirrored)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The sum of the losses of one batch."""
        loss = torch.stack([*self.detector.losses(*batch).values()]).sum()
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser over all steps."""
        return self.recipe.optimiser_for(self.detector.parameters(), int(self.trainer.estimated_stepping_batches))


def mirror(images: Tensor, objects: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(B, 3, H, W)`` and objects ``(B, K, 6)`` with left and right exchanged where ``which`` ``(B,)`` says."""
    width = images.shape[3]
    turned = torch.cat([objects[..., :1], width - objects[..., [3]], objects[..., [2]]], dim=2)
    turned = torch.cat([turned, width - objects[..., [1]], objects[..., 4:]], dim=2)
    return (
        torch.where(which[:, None, None, None], images.flip(3), images),
        torch.where(which[:, None, None], turned, objects),
    )


def train_detector(
    detector: ObjectDetector,
    data: ImageSet,
    *,
    epochs: int,
    batch: int,
    training: Training,
    trainer: Trainer,
    seed: int,
) -> ObjectDetector:
    """Train a detector in place and return it in evaluation mode.

    Args:
        detector: The network.
        data: Images with objects.
        epochs: Passes over the data.
        batch: Images per step; capped at the size of the data.
        training: Optimiser and schedule.
        trainer: Runs the loop.
        seed: Seeds order and mirroring.

    Raises:
        DataError: The data say of no image what is where in it.
    """
    if data.objects is None:
        raise DataError(f"data set {data.name!r} has no boxes to learn from; use scenes or coco")
    module = Detecting(detector, training=training, seed=derive_seed(seed, "detection"))
    batches = ResidentBatches(data.images, labels=data.objects, batch=min(batch, len(data)), seed=seed)
    trainer.fit(module, batches, epochs=epochs)
    return detector.eval()
