"""Supervised training of a classifier, shared by hosts, the fine-tune task and the fine-tuning attacks."""

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
from hallmark.optimisation import Training

LIGHT = ViewRecipe(scale=(0.6, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0)
"""Random crops only: right for digits and traffic signs too, which must not be mirrored or recoloured."""
Change = Callable[[Tensor, Tensor, int], Tensor]
"""From images ``(B, 3, H, W)`` in [0, 1], labels ``(B,)`` and the number of the step to the images that are learnt
from; outside autocast.  What it draws depends on the step alone, so that a resumed run goes on as it would have."""
Penalty = Callable[[float], Tensor]
"""From the learning rate to a number that is added to the loss."""


class Supervised(pl.LightningModule):
    """Cross entropy on augmented images.

    Args:
        classifier: Maps images in [0, 1] to logits; trained in place.
        trained: The parameters that move.
        training: Optimiser and schedule.
        view: Augmentation.
        seed: Seeds the augmentation.
        after_step: Called after every optimiser step, e.g. to keep pruned weights at zero.
        frozen: Modules kept in evaluation mode, so that their BatchNorm statistics stay.
        change: What becomes of a batch's augmented images; see :data:`Change`.
        penalty: Added to the loss, given the learning rate of the step.
    """

    def __init__(
        self,
        classifier: nn.Module,
        trained: Iterable[nn.Parameter],
        *,
        training: Training,
        view: ViewRecipe,
        seed: int,
        after_step: Callable[[], None] | None = None,
        frozen: Iterable[nn.Module] = (),
        change: Change | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.hot = (classifier,)
        self.trained = list(trained)
        self.recipe = training
        self.view = view
        self.seed = seed
        self.after_step = after_step
        self.frozen = list(frozen)
        self.change = change
        self.penalty = penalty

    def on_train_epoch_start(self) -> None:
        """Training mode for all but the frozen parts; models come in evaluation mode, and Lightning leaves them so."""
        self.classifier.train()
        for module in self.frozen:
            module.eval()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Draw a view of each image, outside autocast; for the whole batch, so that ranks see different ones."""
        with torch.no_grad():
            size = (batch.images.shape[2], batch.images.shape[3])
            drawn = draw(self.view, batch.total, size, generator=generator(self.seed, "crop", batch.step))
            views = apply(batch.images, drawn[batch.start : batch.start + len(batch.images)])
        return views if self.change is None else self.change(views, batch.labels, batch.step), batch.labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self.classifier(images).float(), labels)
        if self.penalty is not None:
            loss = loss + self.penalty(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Run ``after_step``."""
        if self.after_step is not None:
            self.after_step()

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser over all steps."""
        return self.recipe.optimiser_for(self.trained, int(self.trainer.estimated_stepping_batches))


def train_classifier(
    classifier: nn.Module,
    data: Images,
    *,
    trained: Iterable[nn.Parameter],
    epochs: int,
    batch: int,
    training: Training,
    trainer: Trainer,
    seed: int,
    view: ViewRecipe = LIGHT,
    after_step: Callable[[], None] | None = None,
    frozen: Iterable[nn.Module] = (),
    change: Change | None = None,
    penalty: Penalty | None = None,
) -> nn.Module:
    """Train a classifier in place and return it in evaluation mode.

    Args:
        classifier: Maps images in [0, 1] to logits.
        data: Labelled images.
        trained: The parameters that move.
        epochs: Passes over the data.
        batch: Images per step; capped at the size of the data.
        training: Optimiser and schedule.
        trainer: Runs the loop.
        seed: Seeds order and views.
        view: Augmentation.
        after_step: Called after every optimiser step.
        frozen: Modules kept in evaluation mode.
        change: What becomes of a batch's augmented images.
        penalty: Added to the loss, given the learning rate.
    """
    module = Supervised(
        classifier,
        trained,
        training=training,
        view=view,
        seed=derive_seed(seed, "supervised"),
        after_step=after_step,
        frozen=frozen,
        change=change,
        penalty=penalty,
    )
    batches = ResidentBatches(data.images, labels=data.labels, batch=min(batch, len(data)), seed=seed)
    trainer.fit(module, batches, epochs=epochs)
    return classifier.eval()
