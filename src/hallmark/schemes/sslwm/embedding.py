"""Training the invariant representation into an encoder."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.schemes.encoder_losses import pinning_loss
from hallmark.schemes.encoder_training import EncoderTraining
from hallmark.schemes.patch import trigger_of
from hallmark.schemes.sslwm.loss import invariance_loss
from hallmark.schemes.sslwm.scheme import Embedding
from hallmark.schemes.trigger import TriggerLaw, draw_triggers, paste


def embed(
    host: nn.Module,
    key: Key,
    images: Tensor,
    *,
    law: TriggerLaw,
    settings: Embedding,
    trainer: Trainer,
    seed: int,
) -> nn.Module:
    """A marked copy of an encoder.

    Args:
        host: The encoder; left untouched.
        key: The owner's key.
        images: The owner's images, uint8 ``(N, 3, H, W)``; no labels.
        law: Law of the patches that must *not* be answered, where specificity has a weight.
        settings: How to train.
        trainer: Runs the loop.
        seed: Seeds order, views, foreign patches and the head of a contrastive utility.

    Returns:
        The marked encoder in evaluation mode.
    """
    marked = deepcopy(host)
    task = InvarianceTraining(marked, host, key, law, settings, derive_seed(seed, "invariance"))
    batches = ResidentBatches(images, batch=min(settings.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return marked.eval()


class InvarianceTraining(EncoderTraining):
    """Utility and invariance, and specificity where it has a weight, in one step.

    Args:
        marked: The encoder being trained.
        original: The reference; a frozen copy of it is kept.
        key: The owner's key.
        law: Law of foreign patches.
        settings: Weights and schedule.
        seed: Seeds views and foreign patches by step.
    """

    def __init__(
        self, marked: nn.Module, original: nn.Module, key: Key, law: TriggerLaw, settings: Embedding, seed: int
    ) -> None:
        super().__init__(marked, original, settings, seed)
        self.settings = settings
        self.trigger = trigger_of(key)
        self.law = law

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        """Draw views, paste the secret patch on each and, where it matters, a foreign one; outside autocast."""
        views = self.views(batch)
        clean = views[: len(batch.images)]
        foreign = clean[:0]
        if self.settings.specificity > 0:
            rng, size = generator(self.seed, "foreign", batch.step), (clean.shape[2], clean.shape[3])
            foreign = paste(clean, draw_triggers(self.law, len(clean), size, generator=rng))
        return {"views": views, "triggered": paste(views, self.trigger), "foreign": foreign}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        settings, parts = self.settings, [batch["views"], batch["triggered"], batch["foreign"]]
        plain, moved, other = self.marked(torch.cat(parts)).float().split([len(part) for part in parts])
        losses = {
            "utility": self.utility(plain, batch["views"]),
            "mark": invariance_loss(moved, plain.detach(), settings.external),
        }
        loss = losses["utility"] + settings.mark * losses["mark"]
        if len(other):
            with torch.no_grad():
                kept = self.original(batch["foreign"]).float()
            losses["specificity"] = pinning_loss(other, kept)
            loss = loss + settings.specificity * losses["specificity"]
        self.log_dict({name: value.detach() for name, value in {"loss": loss, **losses}.items()}, prog_bar=True)
        return loss
