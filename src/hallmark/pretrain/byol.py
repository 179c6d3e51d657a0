"""BYOL (Grill et al. 2020)."""

from copy import deepcopy
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from hallmark.pretrain.base import ContrastiveModule


class BYOL(ContrastiveModule):
    """Predict the target network's projection of one view from the other, both ways (equation 2), without negatives.

    Args:
        momentum: Base τ of the target's moving average; it rises to 1 along a cosine (§3.2).
        hidden: Width of the heads' hidden layers.
        projection: Width of the projection.
        base: Arguments of :class:`ContrastiveModule`.
    """

    def __init__(self, *, momentum: float, hidden: int, projection: int, **base: Any) -> None:
        super().__init__(**base)
        self.head = BYOLProjectionHead(self.encoder.num_features, hidden, projection)
        self.predictor = BYOLPredictionHead(projection, hidden, projection)
        self.target_encoder = deepcopy(self.encoder)
        self.target_head = deepcopy(self.head)
        deactivate_requires_grad(self.target_encoder)
        deactivate_requires_grad(self.target_head)
        self.momentum = momentum
        self.criterion = NegativeCosineSimilarity()

    def trained(self) -> list[nn.Module]:
        """Online encoder, projection and prediction heads."""
        return [self.encoder, self.head, self.predictor]

    def loss(self, views: Tensor) -> Tensor:
        """Symmetrised negative cosine similarity, −1 … 1."""
        momentum = cosine_schedule(self.global_step, self.total_steps(), self.momentum, 1.0)
        update_momentum(self.encoder, self.target_encoder, momentum)
        update_momentum(self.head, self.target_head, momentum)
        predictions = self.predictor(self.head(self.encoder(views))).chunk(2)
        with torch.no_grad():
            targets = self.target_head(self.target_encoder(views)).chunk(2)
        with torch.autocast(views.device.type, enabled=False):
            first = self.criterion(predictions[0].float(), targets[1].float())
            second = self.criterion(predictions[1].float(), targets[0].float())
        loss: Tensor = 0.5 * (first + second)
        return loss
