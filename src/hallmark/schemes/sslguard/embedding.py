"""Shadow, decoder with trigger, and encoder in turns: what the decoder reads is to survive the shadow's imitation."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.alternating import frozen, take_turn
from hallmark.core import Key
from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import Trainer
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.models.layers import reinitialise
from hallmark.schemes.encoder_losses import divergence_loss
from hallmark.schemes.encoder_training import EncoderTraining
from hallmark.schemes.feature_reading import reader_of
from hallmark.schemes.sslguard.loss import secret_loss
from hallmark.schemes.sslguard.scheme import Embedding
from hallmark.schemes.trigger import Triggers, paste

_SHADOW, _DECODER, _ENCODER = range(3)
"""Order of the optimisers."""


def embed(
    host: nn.Module, key: Key, images: Tensor, *, settings: Embedding, trainer: Trainer, seed: int
) -> tuple[nn.Module, nn.Module, Tensor]:
    """A marked copy of an encoder.

    Args:
        host: The encoder; left untouched.
        key: The owner's key.
        images: The owner's images, uint8 ``(N, 3, H, W)``; no labels.
        settings: How to train.
        trainer: Runs the loop.
        seed: Seeds order, views and the shadow's weights.

    Returns:
        The marked encoder in evaluation mode, the trained decoder, and the trained trigger, uint8 ``(3, H, W)``.
    """
    marked = deepcopy(host)
    task = GuardTraining(marked, host, key, settings, derive_seed(seed, "guard"))
    batches = ResidentBatches(images, batch=min(settings.batch, len(images)), seed=seed)
    trainer.fit(task, batches, epochs=settings.epochs)
    return marked.eval(), task.decoder, task.levels.detach().round().to(torch.uint8)


class GuardTraining(EncoderTraining):
    """One step is a turn each of shadow, decoder with trigger, and encoder.

    Args:
        marked: The encoder F_w being trained.
        original: The reference F_0; a frozen copy of it is kept.
        key: The owner's key.
        settings: Weights and schedules.
        seed: Seeds views by step, and the shadow's weights.
    """

    mask: Tensor
    secret: Tensor
    order: Tensor

    def __init__(self, marked: nn.Module, original: nn.Module, key: Key, settings: Embedding, seed: int) -> None:
        super().__init__(marked, original, settings, seed)
        self.automatic_optimization = False
        self.settings = settings
        self.shadow = deepcopy(original)
        if settings.shadow == "fresh":
            reinitialise(self.shadow, generator=generator(seed, "shadow"))
        self.decoder = deepcopy(reader_of(key)).requires_grad_(True)
        self.levels = nn.Parameter(key.tensors["trigger"].float())
        self.register_buffer("mask", key.tensors["mask"].bool(), persistent=False)
        self.register_buffer("secret", key.tensors["secret"], persistent=False)
        self.register_buffer("order", key.tensors["order"], persistent=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Draw views; outside autocast."""
        return self.views(batch)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The three turns; the encoder's loss."""
        imitation = self.shadow_loss(batch)
        take_turn(self, _SHADOW, imitation)
        self.shadow.eval()
        with frozen(self.marked), frozen(self.shadow):
            decoding = self.decoder_loss(batch)
            take_turn(self, _DECODER, decoding)
        with torch.no_grad():
            self.levels.clamp_(0, 255)
        with frozen(self.decoder):
            utility, mark = self.encoder_losses(batch)
            loss = utility + self.settings.mark * mark
            take_turn(self, _ENCODER, loss)
        losses = {"loss": loss, "utility": utility, "mark": mark, "decoder": decoding, "shadow": imitation}
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)
        return loss

    def shadow_loss(self, clean: Tensor) -> Tensor:
        """1 − c(F_w(x), F_s(x)): a thief's imitation, with batch statistics of its own."""
        with torch.no_grad():
            wanted = self.marked(clean).float()
        return 1 - divergence_loss(self.shadow.train()(clean).float(), wanted)

    def decoder_loss(self, clean: Tensor) -> Tensor:
        """Marked and shadow encoder tell the secret of triggered images; the original, and clean images, do not."""
        triggered = self.triggered(clean)
        telling = [self.decode(network(triggered)) for network in (self.marked, self.shadow)]
        silent = [self.decode(self.original(triggered))]
        with torch.no_grad():
            plain = [network(clean) for network in (self.original, self.marked, self.shadow)]
        return secret_loss(telling, [*silent, *map(self.decode, plain)], self.secret)

    def encoder_losses(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Utility of clean features, and −c(G F_w(x_t), s) + c(G F_w(x), s)²."""
        plain, moved = self.marked(torch.cat([clean, self.triggered(clean).detach()])).float().chunk(2)
        return self.utility(plain, clean), secret_loss([self.decode(moved)], [self.decode(plain)], self.secret)

    def triggered(self, clean: Tensor) -> Tensor:
        """Images with the trigger as it is now; gradients reach it."""
        return paste(clean, Triggers(self.levels[None], self.mask[None]))

    def decode(self, features: Tensor) -> Tensor:
        """What the decoder reads ``(B, S)`` from features ``(B, D)``."""
        decoded: Tensor = self.decoder(features.float()[:, self.order])
        return decoded.float()

    def configure_optimizers(self) -> Any:
        """One optimiser each for the shadow, for decoder and trigger, and for the encoder."""
        steps = int(self.trainer.estimated_stepping_batches)
        networks, trigger_lr = self.settings.networks, 255 * self.settings.trigger_lr
        groups: Any = [{"params": list(self.decoder.parameters())}, {"params": [self.levels], "lr": trigger_lr}]
        return [
            networks.optimiser_for(self.shadow.parameters(), steps),
            networks.optimiser_for(groups, steps),
            self.training_settings.optimiser_for(self.marked.parameters(), steps),
        ]
