"""Classifiers on encoders."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hallmark.models.encoders import Encoder


class Classifier(nn.Module):
    """A head on an encoder: images in [0, 1] ``(B, 3, H, W)`` to logits ``(B, C)``.

    Args:
        encoder: The encoder.
        classes: Number of classes C.
        hidden: Widths of hidden ReLU layers; none gives a linear head.
    """

    def __init__(self, encoder: Encoder, classes: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head(encoder.num_features, classes, hidden)
        self.classes = classes

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the head's hidden layers."""
        return tuple(layer.out_features for layer in self.head if isinstance(layer, nn.Linear))[:-1]

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture."""
        return {"encoder": self.encoder.spec, "classes": self.classes, "hidden": list(self.hidden)}

    def features(self, images: Tensor) -> Tensor:
        """Encoder features ``(B, D)``."""
        features: Tensor = self.encoder(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def head(features: int, classes: int, hidden: Sequence[int] = ()) -> nn.Sequential:
    """A linear or multi-layer head ``(B, features) → (B, classes)``."""
    widths = [features, *hidden]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
