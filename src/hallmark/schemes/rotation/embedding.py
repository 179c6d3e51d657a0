"""Training an encoder so that its features tell which way an image was turned."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Key
from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.schemes.encoder_training import EncoderTraining
from hallmark.schemes.feature_reading import reader_of
from hallmark.schemes.rotation.scheme import Embedding
from hallmark.schemes.rotation.turning import rotated, side


def embed(
    host: nn.Module, key: Key, images: Tensor, *, settings: Embedding, trainer: Trainer, seed: int
) -> tuple[nn.Module, nn.Module]:
    """A marked copy of an encoder, and the trained head.

    Args:
        host: The encoder; left untouched.
        key: The owner's key.
        images: The owner's images, uint8 ``(N, 3, H, W)``; no labels.
        settings: How to train.
        trainer: Runs the loop.
        seed: Seeds order, views, angles and the projection head of a contrastive utility.

    Returns:
        Both in evaluation mode.
    """
    marked = deepcopy(host)
    task = RotationTraining(marked, host, key, settings, derive_seed(seed, "rotation"))
    batches = ResidentBatches(images, batch=min(settings.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return marked.eval(), task.reader.eval()


class RotationTraining(EncoderTraining):
    """Utility and the head's cross entropy in one step.

    Args:
        marked: The encoder being trained.
        original: The reference; a frozen copy of it is kept.
        key: The owner's key.
        settings: Weights and schedule.
        seed: Seeds views and angles by step.
    """

    order: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module, key: Key, settings: Embedding, seed: int) -> None:
        super().__init__(marked, original, settings, seed)
        self.settings = settings
        self.reader = deepcopy(reader_of(key)).requires_grad_(True)
        self.register_buffer("order", key.tensors["order"], persistent=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        """Draw views, and turn each image as it is by a uniform angle; outside autocast."""
        rng = generator(self.seed, "angles", batch.step)
        angles = (360 * torch.rand(len(batch.images), generator=rng)).to(batch.images.device)
        turned = rotated(batch.images.float() / 255, angles)
        return {"views": self.views(batch), "turned": turned, "side": side(angles)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        parts = [batch["views"], batch["turned"]]
        plain, turned = self.marked(torch.cat(parts)).float().split([len(part) for part in parts])
        told = self.reader(turned[:, self.order]).float()
        losses = {"utility": self.utility(plain, batch["views"]), "mark": F.cross_entropy(told, batch["side"])}
        loss = losses["utility"] + self.settings.mark * losses["mark"]
        self.log_dict({name: value.detach() for name, value in {"loss": loss, **losses}.items()}, prog_bar=True)
        return loss
