"""Activations of a layer, by name: the penultimate features, or the outputs of a convolution or linear layer."""

import torch
from torch import Tensor, nn

from hallmark.models.classifier import Classifier
from hallmark.models.layers import find_layer, output_axis

FEATURES = "features"
"""The name of what a classifier's head reads."""


def width(model: Classifier, layer: str) -> int:
    """Number D of a layer's activations.

    Raises:
        ConfigError: The model has no such layer; the message lists them.
    """
    if layer == FEATURES:
        return model.encoder.num_features
    found = find_layer(model, layer)
    groups = found.groups if isinstance(found, nn.ConvTranspose2d) else 1
    return found.weight.shape[output_axis(found)] * groups


def answer(model: Classifier, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Logits ``(B, C)`` and a layer's activations ``(B, D)``, both float32; of maps the mean over space.

    Args:
        model: A classifier.
        images: ``(B, 3, H, W)`` in [0, 1].
        layer: :data:`FEATURES`, or the name of a layer as :func:`hallmark.models.layers.find_layer` takes it.

    Raises:
        ConfigError: The model has no such layer.
    """
    if layer == FEATURES:
        features = model.features(images)
        logits: Tensor = model.head(features)
        return logits.float(), features.float()
    seen: list[Tensor] = []
    hook = find_layer(model, layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = model(images)
    finally:
        hook.remove()
    found = seen[0].float()
    return logits.float(), found.mean((2, 3)) if found.ndim == 4 else found


def centres(activations: Tensor, classes: int) -> Tensor:
    """Mean activations ``(s, D)`` of trigger images that lie class by class in ``(s · n, D)``."""
    return activations.unflatten(0, (classes, -1)).mean(1)


@torch.no_grad()
def trigger_centres(model: Classifier, images: Tensor, layer: str) -> Tensor:
    """Centres ``(s, D)`` of a model's activations, on its own device.

    Args:
        model: A classifier in evaluation mode.
        images: Trigger images by class, uint8 ``(s, n, 3, H, W)``.
        layer: See :func:`answer`.
    """
    device = next(model.parameters()).device
    found = [answer(model, block.to(device).float() / 255, layer)[1] for block in images.flatten(0, 1).split(256)]
    return centres(torch.cat(found), len(images))
