"""Layers of other widths than their architecture's own: how they are described, made and filled."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from hallmark.errors import ConfigError


def layer_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Input and output channels of every convolution, linear layer and BatchNorm, by module name."""
    return {name: _widths(layer) for name, layer in _layers(model).items()}


def set_widths(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> None:
    """Give layers other input and output channels, in place; those that change start afresh.

    Args:
        model: Any network.
        widths: Input and output channels by module name, as :func:`layer_widths` lists them.

    Raises:
        ConfigError: A name is not that of a layer with widths.
    """
    layers = _layers(model)
    for name, (inputs, outputs) in widths.items():
        if name not in layers:
            raise ConfigError(f"there is no layer {name!r} to make {outputs} wide; allowed: {', '.join(layers)}")
        if _widths(layers[name]) != (inputs, outputs):
            _resize(layers[name], inputs, outputs)


def with_state(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model that holds a state, its layers as wide as the state's tensors.

    Args:
        model: Any network; it is left untouched.
        state: Tensors of the model's names, perhaps of other widths.
    """
    edited = deepcopy(model)
    for name, layer in _layers(edited).items():
        first = next((state[f"{name}.{own}"] for own in ("weight", "running_mean") if f"{name}.{own}" in state), None)
        if first is not None:
            outputs = first.shape[0]
            inputs = first.shape[1] * getattr(layer, "groups", 1) if first.ndim > 1 else outputs
            set_widths(edited, {name: (inputs, outputs)})
    edited.load_state_dict(state)
    return edited


def _layers(model: nn.Module) -> dict[str, Any]:
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _widths(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.num_features, layer.num_features


def _resize(layer: Any, inputs: int, outputs: int) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.in_channels, layer.out_channels = inputs, outputs
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        layer.num_features = outputs
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.ndim:  # all but the counter of batches
            fan_in = [inputs // getattr(layer, "groups", 1)] if tensor.ndim > 1 else []
            resized = tensor.new_empty([outputs, *fan_in, *tensor.shape[2:]])
            setattr(layer, name, nn.Parameter(resized, tensor.requires_grad) if name in layer._parameters else resized)
    layer.reset_parameters()
