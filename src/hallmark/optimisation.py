"""Optimiser and schedule of training with labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hallmark.errors import ConfigError, allowed

OPTIMISERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "steps", "exponential")
EXPONENTIAL_END = 0.9**60
"""Share of the peak at the end of an exponential schedule: REFIT's 0.9 an epoch after its 60 epochs."""


def require_batch(batch: int, what: str) -> None:
    """Refuse a batch without images; ``what`` names whose it is.

    Raises:
        ConfigError: The batch is below 1.
    """
    if batch < 1:
        raise ConfigError(f"{what} batch must be at least 1, got {batch}")


@dataclass(frozen=True)
class Training:
    """How weights move.

    Args:
        optimiser: ``adamw``, or ``sgd`` with Nesterov momentum 0.9.
        lr: Peak learning rate.
        weight_decay: Decoupled for ``adamw``; an L2 penalty for ``sgd``.
        schedule: ``cosine`` to zero; ``steps``: a fifth after 30, 60 and 80 % of the steps, which is Zagoruyko and
            Komodakis's schedule (2016, §3) at any length; or ``exponential`` down to :data:`EXPONENTIAL_END`, which is
            that of Chen et al. (2021) at any length.
    """

    optimiser: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise ConfigError(allowed(self.optimiser, OPTIMISERS, "optimiser"))
        if self.schedule not in SCHEDULES:
            raise ConfigError(allowed(self.schedule, SCHEDULES, "schedule"))
        if self.lr < 0 or self.weight_decay < 0:
            raise ConfigError(f"training needs lr ≥ 0 and weight_decay ≥ 0, got {self.lr} and {self.weight_decay}")

    def optimiser_for(self, parameters: Iterable[nn.Parameter], steps: int) -> dict[str, Any]:
        """Lightning's optimiser dictionary.

        Args:
            parameters: What is trained.
            steps: Optimiser steps in all.
        """
        optimiser: torch.optim.Optimizer
        if self.optimiser == "adamw":
            optimiser = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        else:
            optimiser = torch.optim.SGD(
                parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay, fused=True
            )
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        elif self.schedule == "exponential":
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, EXPONENTIAL_END ** (1 / max(1, steps)))
        else:
            turns = sorted({max(1, round(share * steps)) for share in (0.3, 0.6, 0.8)})
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, turns, gamma=0.2)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
