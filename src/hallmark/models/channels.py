"""Channels that several tensors of a network count together, and edits of them that leave its function alone.

A channel is free when nobody outside the network sees it: its place among the others may change if every tensor that
produces or consumes it changes along, and its scale may change if what lies between is positively homogeneous.
:func:`hallmark.models.tracing.channel_groups` finds out which channels these are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""Tensors by name on the CPU.  Edits return another dictionary and leave the tensors of this one alone."""


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor of the state dict that counts channels, each ``repeat`` times in a row.

    A linear layer on flattened ``(B, C, H, W)`` maps sees each channel H · W times.
    """

    tensor: str
    dim: int
    repeat: int = 1


@dataclass(frozen=True)
class Norm:
    """A BatchNorm that reads a stream: its running statistics follow the stream's scale."""

    name: str
    eps: float
    repeat: int = 1

    @property
    def mean(self) -> Axis:
        """The running mean."""
        return Axis(f"{self.name}.running_mean", 0, self.repeat)

    @property
    def var(self) -> Axis:
        """The running variance."""
        return Axis(f"{self.name}.running_var", 0, self.repeat)


@dataclass(frozen=True)
class Stream:
    """Activations whose channels have one scale, from what produces them to the layers and norms that read them."""

    position: int
    """Place in the order of execution of its first producer."""
    producers: tuple[Axis, ...]
    """Output axes of weights and biases, scale and shift of BatchNorm; those of the first producer come first."""
    consumers: tuple[Axis, ...]
    """Input axes of weights."""
    norms: tuple[Norm, ...]
    scalable: bool
    """Whether its channels may be multiplied by positive factors of their own."""


@dataclass(frozen=True)
class Group:
    """Streams whose channels stand in one order, since BatchNorms and residual sums couple them."""

    size: int
    """Number of channels."""
    streams: tuple[Stream, ...]
    free: bool
    """Whether its channels may be reordered."""

    @property
    def producers(self) -> tuple[Axis, ...]:
        """Axes that make the channels, in order of execution."""
        return tuple(axis for stream in self.streams for axis in stream.producers)

    @property
    def consumers(self) -> tuple[Axis, ...]:
        """Axes that read the channels."""
        return tuple(axis for stream in self.streams for axis in stream.consumers)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis that counts the group's channels."""
        norms = [axis for stream in self.streams for norm in stream.norms for axis in (norm.mean, norm.var)]
        return (*self.producers, *self.consumers, *norms)


def channelwise(tensor: Tensor, axis: Axis) -> Tensor:
    """A view of a tensor with the channels of one of its axes first: ``(C, …)``."""
    view: Tensor = tensor.unflatten(axis.dim, (-1, axis.repeat))  # type: ignore[no-untyped-call]
    return view.movedim(axis.dim, 0)


def select(state: State, group: Group, index: Tensor) -> dict[str, Tensor]:
    """Channels ``index`` (int64 ``(K,)``) of a group, in that order; each may come once, several times or never.

    The network computes the same as before only if the index is a permutation.
    """
    edited = dict(state)
    for axis in group.axes:
        tensor = edited[axis.tensor]
        places = index[:, None] * axis.repeat + torch.arange(axis.repeat)
        edited[axis.tensor] = tensor.index_select(axis.dim, places.flatten())
    return edited


def scale(state: State, stream: Stream, factors: Tensor) -> dict[str, Tensor]:
    """The channels of a stream times positive factors ``(C,)``, undone where they are consumed."""
    edited = dict(state)

    def multiply(axis: Axis, by: Tensor) -> None:
        tensor = edited[axis.tensor]
        shape = [-1 if dim == axis.dim else 1 for dim in range(tensor.ndim)]
        edited[axis.tensor] = tensor * by.to(tensor).repeat_interleave(axis.repeat).view(shape)

    for axis in stream.producers:
        multiply(axis, factors)
    for axis in stream.consumers:
        multiply(axis, 1 / factors)
    for norm in stream.norms:
        var, by = edited[norm.var.tensor], factors.to(edited[norm.var.tensor]).repeat_interleave(norm.repeat)
        # BatchNorm divides by sqrt(var + eps), and eps does not scale along: the weight makes up for it
        weight = f"{norm.name}.weight"
        edited[weight] = edited[weight] * ((var + norm.eps / by**2) / (var + norm.eps)).sqrt()
        multiply(norm.mean, factors)
        multiply(norm.var, factors**2)
    return edited
