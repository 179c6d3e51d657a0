"""Convolutions and linear layers of a network, by name; fresh weights."""

from copy import deepcopy

import torch
from torch import nn

from hallmark.errors import ConfigError, allowed

WeightLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """Every convolution and linear layer by module name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}


def find_layer(model: nn.Module, name: str) -> WeightLayer:
    """The layer of a model by its module name or the end of it.

    The end suffices, so that one name serves an encoder and the classifiers built on it.

    Args:
        model: Any model.
        name: Module name, such as ``layer1.conv2`` or ``encoder.backbone.layer1.conv2``.

    Raises:
        ConfigError: No layer has this name, or several end in it; the message lists them.
    """
    layers = weight_layers(model)
    if name in layers:
        return layers[name]
    found = [path for path in layers if path.endswith(f".{name}")]
    if not found:
        raise ConfigError(allowed(name, layers, "layer"))
    if len(found) > 1:
        raise ConfigError(f"layer {name!r} is ambiguous, {', '.join(found)} end in it; give more of the name")
    return layers[found[0]]


def output_axis(layer: WeightLayer) -> int:
    """The dimension of a layer's weight along which its outputs lie."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def reinitialise(module: nn.Module, *, generator: torch.Generator) -> None:
    """Give a module the weights of a fresh copy of itself, from the generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        fresh = deepcopy(module)
        for part in fresh.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
    module.load_state_dict(fresh.state_dict())
