"""Training the mark into an encoder."""

from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.augment import apply, draw
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.models.inference import Answering
from hallmark.schemes.encoder_training import CONTRASTIVE, MILD
from hallmark.schemes.trigger import TriggerLaw, Triggers, draw_triggers, paste
from hallmark.schemes.wpe.loss import cluster_loss, direction_loss, divergence_loss, pinning_loss
from hallmark.schemes.wpe.scheme import Embedding


def embed(
    host: nn.Module,
    trigger: Triggers,
    direction: Tensor,
    images: Tensor,
    *,
    reading: str,
    law: TriggerLaw,
    settings: Embedding,
    trainer: Trainer,
    seed: int,
) -> nn.Module:
    """A marked copy of an encoder.

    Args:
        host: The encoder; left untouched.
        trigger: The secret patch.
        direction: The secret direction ``(D,)``.
        images: The owner's images, uint8 ``(N, 3, H, W)``; no labels.
        reading: Reading of the task-agnostic loss.
        law: Law of the patches that must *not* be answered.
        settings: How to train.
        trainer: Runs the loop.
        seed: Seeds order, views, foreign patches and initial weights.

    Returns:
        The marked encoder in evaluation mode.
    """
    marked = deepcopy(host)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        if settings.start == "scratch":
            for module in marked.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        task = MarkTraining(marked, host, trigger, direction, reading, law, settings, seed)
    batches = ResidentBatches(images, batch=min(settings.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return marked.eval()


class MarkTraining(pl.LightningModule):
    """Utility, the task-agnostic loss and specificity, in one step.

    Args:
        marked: The encoder being trained.
        original: The reference; a frozen copy of it is kept.
        trigger: The secret patch.
        direction: The secret direction ``(D,)``.
        reading: Reading of the task-agnostic loss.
        law: Law of foreign patches.
        settings: Weights and schedule.
        seed: Seeds views and foreign patches by step.
    """

    def __init__(
        self,
        marked: nn.Module,
        original: nn.Module,
        trigger: Triggers,
        direction: Tensor,
        reading: str,
        law: TriggerLaw,
        settings: Embedding,
        seed: int,
    ) -> None:
        super().__init__()
        self.marked = marked
        self.original = Answering(original)
        self.trigger = trigger
        self.reading = reading
        self.law = law
        self.settings = settings
        self.seed = seed
        self.register_buffer("direction", direction, persistent=False)
        width = int(marked.num_features)  # type: ignore[arg-type]
        self.head = SimCLRProjectionHead(width, width, 128) if settings.utility == "contrastive" else None
        self.criterion = NTXentLoss(settings.temperature)

    def on_train_epoch_start(self) -> None:
        """Evaluation mode for a frozen BatchNorm; Lightning leaves modes as they come."""
        self.marked.train(self.settings.batch_norm == "train")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        """Draw views, paste the secret and foreign patches; outside autocast."""
        with torch.no_grad():
            contrastive = self.settings.utility == "contrastive"
            images = torch.cat([batch.images, batch.images]) if contrastive else batch.images
            size = (images.shape[2], images.shape[3])
            rng = generator(self.seed, "views", batch.step)
            recipe = CONTRASTIVE if contrastive else MILD
            views = apply(images, draw(recipe, len(images), size, generator=rng))
            clean = views[: len(batch.images)]
            foreign = draw_triggers(self.law, len(clean), size, generator=generator(self.seed, "foreign", batch.step))
            return {"views": views, "triggered": paste(clean, self.trigger), "foreign": paste(clean, foreign)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        settings = self.settings
        views, triggered, foreign = batch["views"], batch["triggered"], batch["foreign"]
        specific = settings.specificity > 0
        stacked = torch.cat([views, triggered, foreign] if specific else [views, triggered])
        features = self.marked(stacked).float()
        plain, moved = features[: len(views)], features[len(views) : len(views) + len(triggered)]
        clean = plain[: len(triggered)]
        with torch.no_grad():  # from scratch there is no original worth holding on to
            reference = clean.detach()
            if settings.start == "pretrained":
                reference = self.original(views[: len(triggered)]).float()
        mark = self._mark(moved, reference)
        utility = self._utility(plain, reference)
        loss = utility + settings.mark * mark
        if specific:
            other = features[-len(foreign) :]
            with torch.no_grad():
                kept = self.original(foreign).float() if settings.start == "pretrained" else reference
            specificity = pinning_loss(other, kept)
            loss = loss + settings.specificity * specificity
            self.log("specificity", specificity.detach())
        self.log_dict({"loss": loss.detach(), "mark": mark.detach(), "utility": utility.detach()}, prog_bar=True)
        return loss

    def _mark(self, moved: Tensor, reference: Tensor) -> Tensor:
        if self.reading == "cluster":
            return cluster_loss(moved, reference, self.settings.external)
        if self.reading == "divergence":
            return divergence_loss(moved, reference)
        return direction_loss(moved, self.direction)

    def _utility(self, plain: Tensor, reference: Tensor) -> Tensor:
        if self.head is None:
            return pinning_loss(plain, reference)
        with torch.autocast(plain.device.type, enabled=False):
            loss: Tensor = self.criterion(*self.head(plain).chunk(2))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW over the encoder (and the head of a contrastive utility), cosine to zero."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
