"""Whole neurons that look as if they had been put in, found without the key and taken out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.attacks.hearing import heard
from hallmark.attacks.prune import apply_masks
from hallmark.attacks.sample import draw_images
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.channels import Group, channelwise
from hallmark.models.tracing import channel_groups

CRITERIA = ("silent", "bias", "norm")


@dataclass(frozen=True)
class RemoveNeurons(Attack):
    """Remove the most suspicious neurons: everything that makes one or reads it becomes zero.

    A neuron is a channel between two layers; in a residual network, one channel of a whole stage.  Suspicion is
    relative to the other neurons of the same layer, so all layers are ranked together.

    Args:
        fraction: Share of the neurons removed, 0 … 1.
        by: ``silent`` removes those that hardly ever fire: least largest activation on the attacker's images, in
            medians of the layer.  ``bias`` removes those whose bias, BatchNorm included, is far from the others', and
            ``norm`` those whose incoming weights are far larger or smaller; both look at no image.
        images: The attacker's images, without labels, that ``silent`` looks at.
    """

    fraction: float
    by: str = "silent"
    images: int = 256

    name: ClassVar[str] = "remove_neurons"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS

    def __post_init__(self) -> None:
        if self.by not in CRITERIA:
            raise ConfigError(allowed(self.by, CRITERIA, "remove_neurons criterion"))
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"remove_neurons fraction must lie in 0 … 1, got {self.fraction}")
        if self.images < 1:
            raise ConfigError(f"remove_neurons images must be at least 1, got {self.images}")

    def images_used(self, images: int) -> int:
        """Those that ``silent`` looks at."""
        return self.images if self.by == "silent" else 0

    @property
    def strength(self) -> float:
        """Share of the neurons."""
        return self.fraction

    @property
    def unit(self) -> str:
        """The criterion."""
        return f"fraction {self.by}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model without those neurons.

        Raises:
            ConfigError: No neurons are found, or the attacker has fewer images.
        """
        model = victim.weights_module()
        if not self.fraction:
            return model
        groups = [group for group in channel_groups(model) if group.free and group.consumers]
        if not groups:
            raise ConfigError(f"no neurons of this {type(model).__name__} may be removed: all are seen from outside")
        if self.by == "silent":
            rows = draw_images(attacker_data, self.images, "remove_neurons.images", generator=generator)
            scores = silence(model, groups, attacker_data.images[rows])
        else:
            scores = [outlyingness(values) for values in _PROPERTIES[self.by](model, groups)]
        together = torch.cat(scores)
        chosen = torch.zeros(len(together), dtype=torch.bool)
        ranked = together.argsort(descending=True, stable=True)
        chosen[ranked[: round(self.fraction * len(together))]] = True
        for group, gone in zip(groups, chosen.split([g.size for g in groups]), strict=True):
            remove(model, group, gone)
        return model


def silence(model: nn.Module, groups: list[Group], images: Tensor) -> list[Tensor]:
    """For each group minus the largest activation of each of its channels ``(C,)``, in medians over the channels.

    Args:
        model: The network, in evaluation mode.
        groups: Channels that layers read.
        images: uint8 ``(N, 3, H, W)``.
    """
    peaks = [found.peak for found in heard(model, groups, images)]
    return [-peak / peak.median().clamp_min(torch.finfo().tiny) for peak in peaks]


def outlyingness(values: list[Tensor]) -> Tensor:
    """How far channels lie from the median of their layer ``(C,)``, in median absolute deviations; the farthest counts.

    Args:
        values: Properties ``(C,)`` of the same channels, one for each layer that makes them.
    """
    distances = []
    for value in values:
        deviation = (value - value.median()).abs()
        distances.append(deviation / deviation.median().clamp_min(1e-6 * (1 + value.abs().max())))
    return torch.stack(distances).amax(0)


def biases(model: nn.Module, groups: list[Group]) -> list[list[Tensor]]:
    """Biases ``(C,)`` of the layers that make each group's channels, less what BatchNorm takes off for the mean."""
    found = []
    for group in groups:
        made = []
        for axis in group.producers:
            layer, _, own = axis.tensor.rpartition(".")
            if own == "bias":
                module = model.get_submodule(layer)
                bias: Tensor = module.bias.detach().cpu()  # type: ignore[union-attr, operator]
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                    bias = bias - _gain(module) * module.running_mean.cpu()  # type: ignore[union-attr]
                made.append(bias.view(-1, axis.repeat)[:, 0])
        found.append(made or [torch.zeros(group.size)])
    return found


def norms(model: nn.Module, groups: list[Group]) -> list[list[Tensor]]:
    """Logarithms of the norms of the incoming weights of a group's channels ``(C,)``, as BatchNorm scales them."""
    found = []
    for group in groups:
        made = []
        for stream in group.streams:
            gains = [_gain(model.get_submodule(norm.name)).view(-1, norm.repeat)[:, 0].abs() for norm in stream.norms]
            gain = torch.stack(gains).amax(0) if gains else torch.ones(group.size)
            for axis in stream.producers:
                weight = model.get_parameter(axis.tensor).detach().cpu()
                if weight.ndim > 1:
                    made.append((channelwise(weight, axis).flatten(1).norm(dim=1) * gain).clamp_min(1e-12).log())
        found.append(made or [torch.zeros(group.size)])
    return found


_PROPERTIES: Mapping[str, Callable[[nn.Module, list[Group]], list[list[Tensor]]]] = {"bias": biases, "norm": norms}


def remove(model: nn.Module, group: Group, gone: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Zero, in place, what makes and what reads some channels of a group.

    Args:
        model: The network.
        group: Of its channels.
        gone: bool ``(C,)``, the channels.

    Returns:
        Each tensor in question with its mask (1 kept, 0 removed).
    """
    masks = []
    for axis in (*group.producers, *group.consumers):
        tensor = model.get_parameter(axis.tensor)
        mask = torch.ones_like(tensor, requires_grad=False)
        channelwise(mask, axis)[gone] = 0
        masks.append((tensor, mask))
    apply_masks(masks)
    return masks


def _gain(norm: nn.Module) -> Tensor:
    """Factor of a BatchNorm in evaluation mode ``(C,)``."""
    gain = 1 / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
    return (gain if norm.weight is None else gain * norm.weight.detach()).cpu()  # type: ignore[no-any-return]
