"""Training in which several optimisers take turns within a step, such as a generator and its discriminator."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR


class Alternating(pl.LightningModule, ABC):
    """A LightningModule whose step gives each player its own backward pass and optimiser step.

    Optimisers and schedules are Lightning's own, so checkpoints hold them and a resumed run goes on as it was.

    Args:
        lr: Learning rate of every player's Adam; constant for half of the steps, then falling linearly to zero.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr

    @abstractmethod
    def players(self) -> list[list[nn.Module]]:
        """The modules that are trained, in the order of their turns; modules of one turn share an optimiser."""

    def on_train_epoch_start(self) -> None:
        """Training mode for the players alone; everything else answers as it is."""
        self.eval()
        for module in chain(*self.players()):
            module.train()

    def turn(self, player: int, loss: Tensor) -> None:
        """One optimiser step of one player on its loss."""
        take_turn(self, player, loss)

    def configure_optimizers(self) -> Any:
        """Adam with the momenta usual for GANs, one for each player."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimisers, schedules = zip(*(gan_adam(modules, self.lr, steps) for modules in self.players()), strict=True)
        return list(optimisers), list(schedules)


def take_turn(module: pl.LightningModule, player: int, loss: Tensor) -> None:
    """One step of one of a module's optimisers, and of its schedule, on a loss.

    Args:
        module: Optimises by hand, with one schedule an optimiser.
        player: Number of the optimiser.
        loss: What it minimises.
    """
    optimisers, schedules = module.optimizers(), module.lr_schedulers()
    optimiser = optimisers[player] if isinstance(optimisers, list) else optimisers
    schedule = schedules[player] if isinstance(schedules, list) else schedules
    optimiser.zero_grad()
    module.manual_backward(loss)
    optimiser.step()
    schedule.step()  # type: ignore[union-attr]


def gan_adam(modules: Iterable[nn.Module], lr: float, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Adam with the momenta usual for GANs; its rate is constant for half of the steps, then falls linearly to zero."""
    optimiser = torch.optim.Adam(chain(*(m.parameters() for m in modules)), lr=lr, betas=(0.5, 0.999))
    return optimiser, LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """A module through which gradients flow without reaching its own parameters."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)
