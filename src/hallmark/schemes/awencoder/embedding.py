"""Stage two: the joint loss that trains an encoder to answer its perturbation."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.schemes.awencoder.perturbation import PerturbationLaw, add
from hallmark.schemes.awencoder.scheme import Embedding
from hallmark.schemes.encoder_losses import direction_loss, divergence_loss, pinning_loss
from hallmark.schemes.encoder_training import EncoderTraining


@dataclass(frozen=True)
class Secret:
    """What an encoder is to answer, and what it is not to.

    Args:
        levels: The perturbation, int16 ``(3, H, W)``.
        image: The key image, uint8 ``(3, H, W)``.
        foreign: Perturbations that must not be answered, int16 ``(F, 3, H, W)``.
        law: How all of them were made.
    """

    levels: Tensor
    image: Tensor
    foreign: Tensor
    law: PerturbationLaw


def embed(
    host: nn.Module, secret: Secret, images: Tensor, *, settings: Embedding, trainer: Trainer, seed: int
) -> tuple[nn.Module, Tensor]:
    """A marked copy of an encoder.

    Args:
        host: The encoder; left untouched.
        secret: What it is to answer.
        images: The owner's images, uint8 ``(N, 3, H, W)``; no labels.
        settings: How to train.
        trainer: Runs the loop.
        seed: Seeds order, views, foreign perturbations and the head of a contrastive utility.

    Returns:
        The marked encoder in evaluation mode, and the perturbation as it is afterwards.
    """
    marked = deepcopy(host)
    task = JointTraining(marked, host, secret, settings, derive_seed(seed, "joint"))
    batches = ResidentBatches(images, batch=min(settings.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return marked.eval(), task.levels.round().to(torch.int16)


class JointTraining(EncoderTraining):
    """Utility, the key's pull on perturbed images, the key's own stability, and specificity, in one step.

    Args:
        marked: The encoder being trained.
        original: The reference; a frozen copy of it is kept.
        secret: What it is to answer.
        settings: Weights and schedule.
        seed: Seeds views and foreign perturbations by step.
    """

    levels: Tensor
    image: Tensor
    foreign: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module, secret: Secret, settings: Embedding, seed: int) -> None:
        super().__init__(marked, original, settings, seed)
        self.settings = settings
        self.law = secret.law
        self.register_buffer("levels", secret.levels.float())  # in the checkpoint, since it may move
        self.register_buffer("image", secret.image[None].float() / 255, persistent=False)
        self.register_buffer("foreign", secret.foreign.float(), persistent=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Tensor]:
        """Draw views, and a foreign perturbation for each image; outside autocast."""
        views = self.views(batch)
        clean = views[: len(batch.images)]
        rng = generator(self.seed, "foreign", batch.step)
        drawn = torch.randint(len(self.foreign), (len(clean),), generator=rng).to(clean.device)
        return {"views": views, "clean": clean, "foreign": add(clean, self.foreign[drawn])}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        settings, views, clean = self.settings, batch["views"], batch["clean"]
        if settings.perturbation == "alternating":
            self._move(clean)
        foreign = batch["foreign"] if settings.specificity > 0 else clean[:0]
        parts = [views, add(clean, self.levels.round()), self.image, foreign]
        features = self.marked(torch.cat(parts)).float()
        plain, moved, key, other = features.split([len(part) for part in parts])
        with torch.no_grad():
            anchor = self.original(self.image).float()
        losses = {
            "utility": self.utility(plain, views),
            "pull": pinning_loss(moved, key.detach()),
            "stability": pinning_loss(key, anchor),
        }
        loss = losses["utility"] + settings.key * losses["pull"] + settings.stability * losses["stability"]
        if len(foreign):
            with torch.no_grad():
                kept = self.original(foreign).float()
            losses["specificity"] = pinning_loss(other, kept)
            loss = loss + settings.specificity * losses["specificity"]
        self.log_dict({name: value.detach() for name, value in {"loss": loss, **losses}.items()}, prog_bar=True)
        return loss

    def _move(self, clean: Tensor) -> None:
        """One sign step of one level on the encoder as it is now, back into the bound."""
        levels = self.levels.clone().requires_grad_(True)
        parts = [clean, add(clean, levels), self.image]
        own, moved, key = self.marked(torch.cat(parts)).float().split([len(part) for part in parts])
        loss = direction_loss(moved, key[0].detach()) + self.law.away * divergence_loss(moved, own.detach())
        (gradient,) = torch.autograd.grad(loss, levels)
        radius = self.law.radius
        self.levels.copy_((levels.detach() - gradient.sign()).clamp(-radius, radius))
