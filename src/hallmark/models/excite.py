"""A Squeeze-and-Excite block appended behind any block of a network, and its description for stored models."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.errors import ConfigError


class Excite(nn.Module):
    """Gates on channels, opened by one squeezed number: ``x ⊙ σ(S₂ · ReLU(S₁ · mean(x) + τ₁) + τ₂)``.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, 1)
        self.excite = nn.Linear(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gated maps ``(B, C, H, W)`` or tokens ``(B, T, C)``; the mean is over places."""
        maps = x.ndim == 4
        gates = self.excite(self.squeeze(x.mean((2, 3) if maps else 1)).relu()).sigmoid()
        gated: Tensor = x * (gates[:, :, None, None] if maps else gates[:, None, :])
        return gated


class Excited(nn.Module):
    """A block of a network with gates behind it.

    Args:
        block: The block; its output has C channels.
        channels: C.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block = block
        self.gates = Excite(channels)
        self.train(block.training)

    @property
    def channels(self) -> int:
        """C."""
        return self.gates.squeeze.in_features

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The block's output, gated."""
        gated: Tensor = self.gates(self.block(*args, **kwargs))
        return gated


def append(model: nn.Module, name: str, channels: int) -> Excited:
    """Put gates behind a module of a model, in place; its own tensors move from ``name.…`` to ``name.block.…``.

    Raises:
        ConfigError: The model has no such module.
    """
    parent, _, last = name.rpartition(".")
    try:
        block = model.get_submodule(name)
    except AttributeError:
        block = None
    if not name or block is None:
        raise ConfigError(f"gates cannot be appended behind {name!r}, which the model lacks")
    excited = Excited(block, channels)
    first = next(block.parameters(), torch.empty(0))
    setattr(model.get_submodule(parent), last, excited.to(first.device))
    return excited


def moved(name: str, appended: str) -> str:
    """Where a module is found after gates were appended behind ``appended``."""
    inside = name == appended or name.startswith(f"{appended}.")
    return f"{appended}.block{name.removeprefix(appended)}" if inside else name


def originally(model: nn.Module, name: str) -> str:
    """What a module of a model was called before anything was appended; the inverse of :func:`moved`."""
    parts, kept = name.split("."), []
    for at, part in enumerate(parts):
        if not (part == "block" and at and isinstance(model.get_submodule(".".join(parts[:at])), Excited)):
            kept.append(part)
    return ".".join(kept)


def additions(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What was appended to a model, as plain JSON by module name, outer blocks first; see :func:`append_all`."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, Excited))
    return {name: {"kind": "excite", "channels": module.channels} for name, module in found}


def append_all(model: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Append to a model, in place, what :func:`additions` described.

    Raises:
        ConfigError: A description is of no known kind, or names a module that the model lacks.
    """
    for name, fields in sorted(described.items(), key=lambda item: item[0].count(".")):  # JSON may reorder: outer first
        if fields.get("kind") != "excite":
            raise ConfigError(f"unknown addition {fields.get('kind')!r} at {name!r}; allowed: excite")
        append(model, name, int(fields["channels"]))
    return model
