"""Fitting image-to-image networks to pairs, shared by hosts, the owner's own surrogate and surrogate attacks."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.alternating import Alternating, frozen
from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Images, Trainer
from hallmark.data.geometry import move
from hallmark.data.pairs import PairLaw, cut, degrade
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.models.image_to_image import Architecture, Barriered, Discriminator, ImageToImage, fresh
from hallmark.models.perceptual import Perceptual
from hallmark.restoration_settings import Fit

Trained = TypeVar("Trained", ImageToImage, Barriered)
CONTENT = 100.0
"""Weight of the content loss beside a discriminator's, on images in [-1, 1], as in the released surrogate code."""


class PairTraining(Alternating):
    """One of the paper's five losses between a network's outputs and the targets.

    Args:
        model: Trained in place.
        fit: Loss and schedule.
        law: Makes inputs from a batch's images; None where a batch's images are inputs and its labels targets.
        teacher: Makes the targets from the inputs; None where the images are the targets themselves.
        seed: Seeds degradations by step, and the discriminator's weights.
    """

    def __init__(
        self, model: ImageToImage | Barriered, fit: Fit, *, law: PairLaw | None, teacher: nn.Module | None, seed: int
    ) -> None:
        super().__init__(fit.lr)
        self.model = model
        self.fit = fit
        self.law = law
        self.teacher = teacher
        self.seed = seed
        self.perceptual = Perceptual(fit.perceptual) if fit.loss.startswith("perceptual") else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "discriminator"))
            self.discriminator = Discriminator(model.architecture.width) if fit.adversarial else None

    def players(self) -> list[list[nn.Module]]:
        """The network, and a discriminator where the loss has one."""
        return [[self.model]] if self.discriminator is None else [[self.model], [self.discriminator]]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, float in [0, 1]; outside autocast."""
        with torch.no_grad():
            images = batch.images.float() / 255
            share = {"total": batch.total, "start": batch.start}
            if self.law is None:
                inputs, targets = images, batch.labels.float() / 255  # type: ignore[union-attr]
            else:
                inputs = degrade(images, self.law, generator=generator(self.seed, "degrade", batch.step), **share)
                targets = images if self.teacher is None else self.teacher(inputs)
            if self.fit.geometric:
                rng = generator(self.seed, "move", batch.step)
                inputs, targets = move(torch.cat([inputs, targets], 1), generator=rng, **share).chunk(2, dim=1)
            return inputs, targets

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """A turn of the network, and one of the discriminator."""
        inputs, targets = batch
        outputs = self.model.unclamped(inputs)
        loss = self._content(outputs, targets)
        if self.discriminator is not None:
            with frozen(self.discriminator):
                loss = CONTENT * loss + _cross_entropy(self.discriminator(outputs), real=True)
        self.turn(0, loss)
        if self.discriminator is not None:
            judged = _cross_entropy(self.discriminator(targets), real=True)
            self.turn(1, judged + _cross_entropy(self.discriminator(outputs.detach()), real=False))
        self.log("loss", loss.detach(), prog_bar=True)
        return {"loss": loss.detach()}

    def _content(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.perceptual is not None:
            distance: Tensor = self.perceptual(outputs, targets)
            return distance
        if self.fit.loss.startswith("l1"):
            return 2 * F.l1_loss(outputs, targets)
        return 4 * F.mse_loss(outputs, targets)


def train_on_pairs(
    model: Trained,
    images: Tensor,
    fit: Fit,
    *,
    targets: Tensor | None = None,
    law: PairLaw | None = None,
    teacher: nn.Module | None = None,
    trainer: Trainer,
    seed: int,
) -> Trained:
    """Train a network in place and return it in evaluation mode.

    Args:
        model: The network; one behind a barrier takes a loss without a discriminator.
        images: uint8 ``(N, 3, H, W)``: inputs where ``targets`` are given, else clean images.
        fit: Loss and schedule.
        targets: uint8 ``(N, 3, H, W)``, fixed beforehand.
        law: Degrades clean images afresh at every step.
        teacher: With a law: a network whose outputs are the targets, in place of the clean images.
        trainer: Runs the loop.
        seed: Seeds order and degradations.
    """
    task = PairTraining(model, fit, law=law, teacher=teacher, seed=derive_seed(seed, "pairs"))
    batches = ResidentBatches(images, labels=targets, batch=min(fit.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=fit.epochs)
    return model.eval()


def train_restorer(
    architecture: Architecture, law: PairLaw, owner: Images, fit: Fit, *, trainer: Trainer, seed: int
) -> ImageToImage:
    """A host: a fresh network that learns to undo a degradation.

    Args:
        architecture: Which network.
        law: What it is to undo; patches are of the law's side.
        owner: The owner's images, at least as large as a patch.
        fit: Loss and schedule.
        trainer: Runs the loop.
        seed: Seeds weights, patches, order and degradations.
    """
    patches = cut(owner.images, law.side, fit.patches, generator=generator(seed, "patches"))
    return train_on_pairs(fresh(architecture, seed), patches, fit, law=law, trainer=trainer, seed=seed)


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    wanted = torch.full_like(logits, float(real), dtype=torch.float32)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)
