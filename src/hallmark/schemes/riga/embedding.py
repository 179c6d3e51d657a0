"""Host, extractor and detector in turns: the host hides from the detector what the extractor reads from it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.alternating import frozen, gan_adam, take_turn
from hallmark.core import Key
from hallmark.core import generator as generator_for
from hallmark.core.random import derive_seed
from hallmark.core.scheme import Images, Trainer
from hallmark.models.layers import find_layer
from hallmark.schemes.perceptrons import fresh, packed, unpacked
from hallmark.schemes.riga.networks import EXTRACTOR, layer_mean, ordered, responses
from hallmark.schemes.riga.scheme import Embedding
from hallmark.schemes.riga.unmarked import relatives, resampled
from hallmark.schemes.situated_training import SituatedTraining, fit, start
from hallmark.schemes.uchida.carriers import draw_carrier
from hallmark.schemes.uchida.filters import filter_mean
from hallmark.schemes.uchida.regulariser import host_layer, mark_loss, right_bits

_HOST, _EXTRACTOR, _DETECTOR = range(3)
"""Order of the optimisers."""


def embed(
    host: nn.Module, key: Key, owner_data: Images, *, settings: Embedding, trainer: Trainer, seed: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A marked network of the host's architecture in evaluation mode, and the trained extractor as a key holds it.

    Args:
        host: The unmarked host; left untouched.
        key: The owner's key.
        owner_data: The owner's images; see :func:`hallmark.schemes.situated_training.start`.
        settings: Situation, schedule and the players' weights.
        trainer: Runs the loop.
        seed: Seeds order, views, fresh weights, the detector and all unmarked weights.

    Raises:
        ConfigError: The situation needs labels and the host is no classifier.
        DataError: The situation needs labels and the data have none.
        KeyFileError: The key was made for another layer.
    """
    host_layer(host, key)
    begun = start(host, owner_data, settings, seed)
    unmarked = layer_mean(host, key)
    task = RigaTraining(begun.marked, begun.original, key, unmarked, settings, derive_seed(seed, "mark"))
    marked = fit(task, begun, owner_data, settings, trainer=trainer, seed=seed)
    return marked, packed(task.extractor, EXTRACTOR)


class RigaTraining(SituatedTraining):
    """One step is a turn each of detector, extractor and host.

    Args:
        marked: Classifier or encoder being trained.
        original: The host whose answers are learnt; None where labels are learnt.
        key: The owner's key.
        unmarked: The unmarked host's mean filter ``(M,)``.
        settings: Situation, schedule and the players' weights.
        seed: Seeds views, the detector and all unmarked weights.
    """

    message: Tensor
    order: Tensor
    relatives: Tensor
    natural: Tensor
    projection: Tensor

    def __init__(
        self,
        marked: nn.Module,
        original: nn.Module | None,
        key: Key,
        unmarked: Tensor,
        settings: Embedding,
        seed: int,
    ) -> None:
        super().__init__(marked, original, settings, seed)
        self.automatic_optimization = False
        self.settings = settings
        self.layer = key.meta["layer"]
        message, order = key.tensors["message"], key.tensors["channels"]
        self.extractor = unpacked({name: t.clone() for name, t in key.tensors.items()}, EXTRACTOR).requires_grad_(True)
        size, hidden = len(unmarked), self.extractor[0].out_features
        self.detector = fresh((size, hidden, hidden, 1), derive_seed(seed, "detector"))
        rng = generator_for(seed, "unmarked")
        kin = relatives(unmarked, len(order), settings.unmarked, settings.noise, generator=rng)
        natural = resampled(unmarked, len(order), settings.unmarked, generator=rng)
        self.scale = float(unmarked.square().mean().sqrt().clamp_min(1e-12))
        for name, tensor in (
            ("message", message),
            ("order", order),
            ("relatives", kin),
            ("natural", natural),
            ("projection", draw_carrier("random", len(message), size, generator=rng)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor | None], batch_idx: int) -> Tensor:
        """Detector, extractor, host; the host's loss is E₀ + λ₁ E_wm + λ₂ E_det."""
        images, labels = batch
        with torch.autocast(images.device.type, enabled=False):  # as for uchida: precision would be felt in the mark
            mean = self.mean().detach()
            suspicion = self.detector_loss(mean)
            take_turn(self, _DETECTOR, suspicion)
            self.clip()
            take_turn(self, _EXTRACTOR, self.extractor_loss(mean, batch_idx))
        task = self.task_loss(images, labels, self.classifier(images))
        with torch.autocast(images.device.type, enabled=False), frozen(self.extractor), frozen(self.detector):
            mark, covert = self.mark_losses(self.mean())
            loss = task + self.settings.mark * mark + self.settings.covert * covert
        take_turn(self, _HOST, loss)
        self.log_losses(loss, task, mark / len(self.message), covert=covert, detector=suspicion)
        return loss

    def mean(self) -> Tensor:
        """The mean filter ``(M,)`` of the host layer in training."""
        return filter_mean(find_layer(self.classifier, self.layer))

    def mark_losses(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """E_wm, the bits' summed cross entropy, and E_det = −log F_det, of a mean filter ``(M,)``."""
        mark = mark_loss(responses(self.extractor, mean, self.order), self.message)
        return mark, F.softplus(-self.naturalness(mean)).mean()

    def extractor_loss(self, mean: Tensor, step: int) -> Tensor:
        """Mean cross entropy per bit: of the marked weights to the message, of unmarked ones to messages of their own.

        Unmarked are the stored relatives of the host and as many reorderings of the marked weights themselves, drawn at
        each step: nothing but the order of channels bears the mark.  An unmarked network's message is what a random
        carrier, which knows nothing of the mark, reads from it.
        """
        rng = generator_for(self.seed, "reordered", self.current_epoch, step)
        orders = torch.stack([torch.randperm(len(self.order), generator=rng) for _ in self.relatives])
        reordered = mean.unflatten(0, (len(self.order), -1))[orders.to(mean.device)].flatten(1)
        own = mark_loss(responses(self.extractor, mean, self.order), self.message) / len(self.message)
        others = torch.cat([self.relatives, reordered])
        messages = ordered(others, self.order) @ self.projection.T >= 0
        return own + mark_loss(responses(self.extractor, others, self.order), messages) / messages.numel()

    def detector_loss(self, mean: Tensor) -> Tensor:
        """−log F_det(unmarked) − log(1 − F_det(marked)), of sorted weights."""
        return F.softplus(-self.naturalness(self.natural)).mean() + F.softplus(self.naturalness(mean)).mean()

    def naturalness(self, means: Tensor) -> Tensor:
        """F_det before its sigmoid, ``(…, 1)``: large where mean filters ``(…, M)`` look unmarked."""
        found: Tensor = self.detector(means.sort(dim=-1).values / self.scale)
        return found

    @torch.no_grad()
    def clip(self) -> None:
        """Keep the detector's weights within ±``settings.clip``."""
        for parameter in self.detector.parameters():
            parameter.clamp_(-self.settings.clip, self.settings.clip)

    def on_train_epoch_end(self) -> None:
        """Log the bit error rate once an epoch."""
        with torch.no_grad():
            right = right_bits(responses(self.extractor, self.mean(), self.order), self.message)
        self.log("ber", 1 - right / len(self.message))

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser for the host, an Adam each for extractor and detector."""
        steps = int(self.trainer.estimated_stepping_batches)
        host = self.recipe.optimiser_for(self.trained, steps)
        others = [gan_adam([network], self.settings.networks_lr, steps) for network in (self.extractor, self.detector)]
        return [host, *({"optimizer": optimiser, "lr_scheduler": schedule} for optimiser, schedule in others)]
