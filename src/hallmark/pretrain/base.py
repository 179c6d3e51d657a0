"""What SimCLR, MoCo v2 and BYOL share: views, optimiser, schedule."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.models.utils import get_weight_decay_parameters
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn

from hallmark.data.resident import Batch
from hallmark.models.encoders import Encoder
from hallmark.pretrain.recipe import Optimisation


def build_optimiser(
    optimisation: Optimisation, modules: list[nn.Module], *, batch: int, steps: int, steps_per_epoch: int
) -> dict[str, Any]:
    """Lightning's optimiser dictionary.

    Args:
        optimisation: Optimiser and schedule.
        modules: What is trained.
        batch: Effective batch over all devices.
        steps: Optimiser steps in all.
        steps_per_epoch: Optimiser steps in an epoch.
    """
    decayed, plain = get_weight_decay_parameters(modules)
    groups = [{"params": decayed, "weight_decay": optimisation.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    scaled = optimisation.lr * batch / 256
    optimiser: torch.optim.Optimizer
    if optimisation.name == "adamw":
        optimiser = torch.optim.AdamW(groups, lr=optimisation.lr, fused=True)
    elif optimisation.name == "sgd":
        optimiser = torch.optim.SGD(groups, lr=scaled, momentum=0.9, fused=True)
    else:
        optimiser = LARS(groups, lr=scaled, momentum=0.9)
    warmup = min(round(optimisation.warmup_epochs * steps_per_epoch), steps - 1)
    schedule = CosineWarmupScheduler(optimiser, warmup_epochs=warmup, max_epochs=steps)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ContrastiveModule(pl.LightningModule):
    """A contrastive method around an encoder.

    Args:
        encoder: Trained in place.
        views: Turns a resident batch of b images into two views, ``(2b, 3, H, W)`` in [0, 1]; rows ``0 … b-1`` are
            the first view.
        optimisation: Optimiser and schedule.
        batch: Effective batch over all devices.
    """

    def __init__(
        self, encoder: Encoder, views: Callable[[Batch], Tensor], optimisation: Optimisation, batch: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.views = views
        self.optimisation = optimisation
        self.batch = batch

    @property
    def hot(self) -> tuple[nn.Module, ...]:
        """What torch.compile is worth its while for."""
        return tuple(child for child in self.children() if isinstance(child, Encoder))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Draw the views on the device, outside autocast: resampling in bfloat16 would cost the images bits."""
        with torch.no_grad():
            return self.views(batch)

    def training_step(self, views: Tensor, batch_idx: int) -> Tensor:
        """Loss of one batch of views ``(2b, 3, H, W)``."""
        loss = self.loss(views)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    @abstractmethod
    def loss(self, views: Tensor) -> Tensor:
        """Contrastive loss of stacked views ``(2b, 3, H, W)``, averaged over this process's images."""

    @abstractmethod
    def trained(self) -> list[nn.Module]:
        """The modules whose parameters the optimiser updates."""

    def total_steps(self) -> int:
        """Optimiser steps of the whole run, for schedules."""
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        """Optimiser over :meth:`trained` with the cosine schedule."""
        steps = self.total_steps()
        per_epoch = max(1, steps // max(1, self.trainer.max_epochs or 1))
        return build_optimiser(
            self.optimisation, self.trained(), batch=self.batch, steps=steps, steps_per_epoch=per_epoch
        )
