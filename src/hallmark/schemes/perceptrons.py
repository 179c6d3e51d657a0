"""The owner's small networks, which read a mark and are kept in the key."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """A fully connected network ``(…, widths[0]) → (…, widths[-1])`` with a ReLU between its layers."""
    layers = [layer for inputs, outputs in pairwise(widths) for layer in (nn.Linear(inputs, outputs), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def fresh(widths: Sequence[int], seed: int) -> nn.Sequential:
    """An untrained :func:`perceptron`, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return perceptron(widths)


def packed(network: nn.Module, name: str) -> dict[str, Tensor]:
    """A network's tensors as a key holds them, under ``name``."""
    return {f"{name}.{part}": tensor.detach().cpu().clone() for part, tensor in network.state_dict().items()}


def unpacked(tensors: Mapping[str, Tensor], name: str) -> nn.Sequential:
    """The :func:`perceptron` that a key holds under ``name``, frozen; it shares the key's tensors."""
    state = {part.removeprefix(f"{name}."): t for part, t in tensors.items() if part.startswith(f"{name}.")}
    places = sorted({int(part.split(".")[0]) for part in state})
    weights = [state[f"{place}.weight"] for place in places]
    with torch.device("meta"):
        network = perceptron([weights[0].shape[1], *(len(weight) for weight in weights)])
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)
