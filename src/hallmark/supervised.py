"""Supervised training of a classifier, shared by the fine-tune task and the fine-tuning attacks."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Images, Trainer
from hallmark.data.augment import ViewRecipe, apply, draw
from hallmark.data.resident import Batch, ResidentBatches

LIGHT = ViewRecipe(scale=(0.6, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0)
"""Random crops only: right for digits and traffic signs too, which must not be mirrored or recoloured."""


class Supervised(pl.LightningModule):
    """Cross entropy on augmented images, AdamW with a cosine schedule.

    Args:
        classifier: Maps images in [0, 1] to logits; trained in place.
        trained: The parameters that move.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        seed: Seeds the crops.
        after_step: Called after every optimiser step, e.g. to keep pruned weights at zero.
        frozen: Modules kept in evaluation mode, so that their BatchNorm statistics stay.
    """

    def __init__(
        self,
        classifier: nn.Module,
        trained: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        seed: int,
        after_step: Callable[[], None] | None = None,
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.trained = list(trained)
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.after_step = after_step
        self.frozen = list(frozen)

    def on_train_epoch_start(self) -> None:
        """Training mode for all but the frozen parts; models come in evaluation mode, and Lightning leaves them so."""
        self.classifier.train()
        for module in self.frozen:
            module.eval()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Crop the batch's images, outside autocast."""
        with torch.no_grad():
            size = (batch.images.shape[2], batch.images.shape[3])
            parameters = draw(LIGHT, len(batch.images), size, generator=generator(self.seed, "crop", batch.step))
            return apply(batch.images, parameters), batch.labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self.classifier(images).float(), labels)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Run ``after_step``."""
        if self.after_step is not None:
            self.after_step()

    def configure_optimizers(self) -> Any:
        """AdamW and a cosine to zero over all steps."""
        optimiser = torch.optim.AdamW(self.trained, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_classifier(
    classifier: nn.Module,
    data: Images,
    *,
    trained: Iterable[nn.Parameter],
    epochs: int,
    lr: float,
    batch: int,
    weight_decay: float,
    trainer: Trainer,
    seed: int,
    after_step: Callable[[], None] | None = None,
    frozen: Iterable[nn.Module] = (),
) -> nn.Module:
    """Train a classifier in place and return it in evaluation mode.

    Args:
        classifier: Maps images in [0, 1] to logits.
        data: Labelled images.
        trained: The parameters that move.
        epochs: Passes over the data.
        lr: Peak learning rate.
        batch: Images per step; capped at the size of the data.
        weight_decay: Decoupled weight decay.
        trainer: Runs the loop.
        seed: Seeds order and crops.
        after_step: Called after every optimiser step.
        frozen: Modules kept in evaluation mode.
    """
    module = Supervised(
        classifier,
        trained,
        lr=lr,
        weight_decay=weight_decay,
        seed=derive_seed(seed, "supervised"),
        after_step=after_step,
        frozen=frozen,
    )
    batches = ResidentBatches(data.images, labels=data.labels, batch=min(batch, len(data)), seed=seed)
    trainer.fit(module, batches, epochs=epochs)
    return classifier.eval()
