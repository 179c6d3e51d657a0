"""SimCLR (Chen et al. 2020)."""

from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from hallmark.pretrain.base import ContrastiveModule


class SimCLR(ContrastiveModule):
    """Normalised-temperature cross entropy between the two views of a batch (equation 1).

    Args:
        temperature: τ.
        hidden: Width of the projection head's hidden layer.
        projection: Width of the projection.
        base: Arguments of :class:`ContrastiveModule`.
    """

    def __init__(self, *, temperature: float, hidden: int, projection: int, **base: Any) -> None:
        super().__init__(**base)
        self.head = SimCLRProjectionHead(self.encoder.num_features, hidden, projection)
        self.criterion = NTXentLoss(temperature, gather_distributed=True)

    def trained(self) -> list[nn.Module]:
        """Encoder and projection head."""
        return [self.encoder, self.head]

    def loss(self, views: Tensor) -> Tensor:
        """NT-Xent; negatives come from every rank."""
        first, second = self.head(self.encoder(views)).chunk(2)
        with torch.autocast(views.device.type, enabled=False):  # similarities over τ want more than 8 bits
            loss: Tensor = self.criterion(first.float(), second.float())
        return loss
