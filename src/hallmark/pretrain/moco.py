"""MoCo v2 (Chen, Fan, Girshick and He 2020; He et al. 2020)."""

from copy import deepcopy
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from hallmark.pretrain.base import ContrastiveModule


class MoCo(ContrastiveModule):
    """Contrast a query with its key from a momentum encoder against a queue of earlier keys (He 2020, equation 1).

    Shuffling BatchNorm (He 2020, §3.3) is not needed: on one device it changes nothing, and over many devices the
    suite synchronises BatchNorm, so that a key's statistics hold every image and leak no shortcut.

    Args:
        temperature: τ.
        queue: Number of keys kept; a multiple of the effective batch.
        momentum: m of the key encoder.
        hidden: Width of the projection head's hidden layer.
        projection: Width of the projection.
        base: Arguments of :class:`ContrastiveModule`.
    """

    def __init__(
        self, *, temperature: float, queue: int, momentum: float, hidden: int, projection: int, **base: Any
    ) -> None:
        super().__init__(**base)
        self.head = MoCoProjectionHead(self.encoder.num_features, hidden, projection)
        self.key_encoder = deepcopy(self.encoder)
        self.key_head = deepcopy(self.head)
        deactivate_requires_grad(self.key_encoder)
        deactivate_requires_grad(self.key_head)
        self.momentum = momentum
        self.criterion = NTXentLoss(temperature, memory_bank_size=(queue, projection), gather_distributed=True)

    def trained(self) -> list[nn.Module]:
        """Query encoder and head."""
        return [self.encoder, self.head]

    def loss(self, views: Tensor) -> Tensor:
        """InfoNCE of the first view's queries against the second view's keys and the queue."""
        update_momentum(self.encoder, self.key_encoder, self.momentum)
        update_momentum(self.head, self.key_head, self.momentum)
        first, second = views.chunk(2)
        queries = self.head(self.encoder(first))
        with torch.no_grad():
            keys = self.key_head(self.key_encoder(second))
        with torch.autocast(views.device.type, enabled=False):
            loss: Tensor = self.criterion(queries.float(), keys.float())
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the queue, which lightly leaves out of the state: without it a resumed run would differ."""
        bank = self.criterion.memory_bank
        checkpoint["queue"] = {"bank": bank.bank, "pointer": bank.bank_ptr}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the queue."""
        bank = self.criterion.memory_bank
        bank.bank.copy_(checkpoint["queue"]["bank"])
        bank.bank_ptr.copy_(checkpoint["queue"]["pointer"])
