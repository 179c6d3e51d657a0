"""Which layers can bear a detector, and which is taken when none is named."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.network import Network
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.trigger import Pipeline, field

LEAST = 128
"""Dimensions that a lock's detector shall have at least: with fewer, natural images fire it."""
_PROBES = 4


@dataclass(frozen=True)
class Candidate:
    """A layer that can bear a detector.

    Args:
        site: Where it is.
        network: The graph around it.
        size: m, weights of a neuron.
        width: Neurons.
        private: Whether one layer alone reads it, so that a code fits in and a conduit can begin.
    """

    site: Site
    network: Network
    size: int
    width: int
    private: bool

    @property
    def name(self) -> str:
        """Full name of the layer."""
        return self.site.layer


def layers(model: nn.Module) -> list[str]:
    """Convolutions and linear layers, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def candidate(model: nn.Module, name: str) -> Candidate | None:
    """A layer as a candidate, or None if it cannot bear a detector."""
    try:
        site, network = Site.of(model, name)
    except ConfigError:
        return None
    if not site.norm and getattr(model.get_submodule(site.layer), "bias", None) is None:
        return None  # no threshold fits in
    width = site.width(model)
    try:
        readers = list(network.readers(network.layer, width))
    except ConfigError:
        readers = []
    return Candidate(site, network, site.size(model), width, len(readers) == 1 and not readers[0].shared)


def bearing(model: nn.Module) -> Iterator[Candidate]:
    """All layers that can bear a detector, in the model's order."""
    return (found for name in layers(model) if (found := candidate(model, name)) is not None)


def for_stain(model: nn.Module, *, code: bool) -> str:
    """The layer of most dimensions in the second half of the network, the first of them.

    With more dimensions fewer natural images fire a detector, and from the middle on codes are reached.

    Raises:
        ConfigError: No layer fits.
    """
    names = layers(model)
    sizes = {name: model.get_submodule(name).weight[0].numel() for name in names}  # type: ignore[operator, union-attr]
    later = sorted(names[len(names) // 2 :], key=lambda name: -sizes[name])
    for name in later + names[: len(names) // 2][::-1]:
        found = candidate(model, name)
        if found is not None and (found.private or not code):
            return name
    hint = "; try --no-code" if code else ""
    raise ConfigError(
        "no layer of this network can bear a stain: none is followed by an activation with a dead zone" + hint
    )


def for_lock(model: nn.Module) -> list[str]:
    """Layers to try for a lock, the earliest first, as those need the smallest patches.

    Raises:
        ConfigError: No layer fits.
    """
    found = [one for one in bearing(model) if one.private]
    large = [one.name for one in found if one.size >= LEAST]
    if not found:
        raise ConfigError("no layer of this network can bear a lock: none writes to one reader behind an activation")
    return large or [one.name for one in found]


def patch_side(pipeline: Pipeline, site: Site) -> int:
    """Side in pixels of what a layer sees from its corner."""
    return max(field(pipeline, site, (0, 0), generator=torch.Generator().manual_seed(0), images=_PROBES).shape)
