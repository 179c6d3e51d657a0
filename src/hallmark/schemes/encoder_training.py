"""Fine-tuning an encoder to bear a mark while clean features stay useful: what such trainings share."""

from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from hallmark.core.random import derive_seed, generator
from hallmark.data.augment import ViewRecipe, apply, draw
from hallmark.data.resident import Batch
from hallmark.models.inference import Answering
from hallmark.optimisation import Training
from hallmark.schemes.encoder_losses import pinning_loss

MILD = ViewRecipe(scale=(0.5, 1.0), jitter=0.0, grey=0.0)
"""Crops and flips under a pinned utility: the mark is put on afterwards, on what a user would submit."""

CONTRASTIVE = ViewRecipe()
"""The SimCLR recipe, where utility is the contrastive loss itself."""


class Settings(Protocol):
    """What the schemes' settings of such a training have in common."""

    @property
    def utility(self) -> str:
        """``pin`` holds clean features where the original puts them; ``contrastive`` goes on with NT-Xent."""

    @property
    def training(self) -> Training:
        """Optimiser and schedule."""

    @property
    def temperature(self) -> float:
        """τ of NT-Xent."""


class EncoderTraining(pl.LightningModule):
    """An encoder in training beside its frozen original, with frozen BatchNorm statistics; subclasses add the mark.

    Args:
        marked: The encoder being trained.
        original: The reference; a frozen copy of it is kept.
        settings: How to train; a subclass narrows its type.
        seed: Seeds views by step, and the projection head of a contrastive utility.
    """

    def __init__(self, marked: nn.Module, original: nn.Module, settings: Settings, seed: int) -> None:
        super().__init__()
        self.marked = marked
        self.original = Answering(original)
        self.training_settings = settings.training
        self.seed = seed
        self.criterion = NTXentLoss(settings.temperature)
        self.head = None
        if settings.utility == "contrastive":
            width = int(marked.num_features)  # type: ignore[arg-type]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "head"))
                self.head = SimCLRProjectionHead(width, width, 128)

    def on_train_epoch_start(self) -> None:
        """Evaluation mode, so that BatchNorm stays; the head of a contrastive utility trains."""
        self.marked.eval()

    def views(self, batch: Batch) -> Tensor:
        """One view ``(B, 3, H, W)`` of each image, or two ``(2B, 3, H, W)`` for a contrastive utility, in [0, 1]."""
        recipe, images = MILD, batch.images
        if self.head is not None:
            recipe, images = CONTRASTIVE, torch.cat([images, images])
        size = (images.shape[2], images.shape[3])
        return apply(images, draw(recipe, len(images), size, generator=generator(self.seed, "views", batch.step)))

    def utility(self, features: Tensor, views: Tensor) -> Tensor:
        """Loss of clean features ``(B, D)``, or of two views' ``(2B, D)``, of :meth:`views`."""
        if self.head is None:
            with torch.no_grad():
                reference = self.original(views).float()
            return pinning_loss(features, reference)
        with torch.autocast(features.device.type, enabled=False):
            loss: Tensor = self.criterion(*self.head(features).chunk(2))
        return loss

    def configure_optimizers(self) -> Any:
        """The optimiser over the encoder (and the head of a contrastive utility)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return self.training_settings.optimiser_for(trained, int(self.trainer.estimated_stepping_batches))
