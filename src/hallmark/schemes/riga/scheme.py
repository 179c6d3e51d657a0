"""riga: bits that a trained extractor reads from one layer, hidden from a detector (Wang and Kerschbaum 2021)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Key, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.models.layers import find_layer
from hallmark.schemes.perceptrons import fresh, packed, unpacked
from hallmark.schemes.riga.networks import EXTRACTOR, channels, layer_mean, responses
from hallmark.schemes.situations import Situation
from hallmark.schemes.uchida.bits import FilterBits, Reader
from hallmark.schemes.uchida.filters import filter_shape

MIN_CHANNELS = 8
"""Input channels of a host layer; 7 have 5040 orders, barely more than a verdict draws."""


@dataclass(frozen=True)
class Embedding(Situation):
    """How the mark gets into the network, beside what every :class:`~hallmark.schemes.situations.Situation` sets.

    Args:
        mark: λ₁, the weight of the embedding loss summed over the bits.
        covert: λ₂, the weight of the loss against the detector; 0 trains without hiding.
        networks_lr: Learning rate of the extractor's and the detector's Adam.
        clip: Bound on the detector's weights.
        unmarked: Number of unmarked mean filters that extractor and detector each know; see
            :mod:`hallmark.schemes.riga.unmarked`.
        noise: The largest noise on those of the extractor, in root mean squares of the host's mean filter.
    """

    covert: float = 0.1
    networks_lr: float = 1e-4
    clip: float = 0.01
    unmarked: int = 64
    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("covert", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"scheme.embedding.{name} must be a finite number of at least 0, got {getattr(self, name)}"
                )
        for name in ("networks_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"scheme.embedding.{name} must be a finite number above 0, got {getattr(self, name)}")
        if self.unmarked < 2:
            raise ConfigError(f"scheme.embedding.unmarked must be at least 2, got {self.unmarked}")


@dataclass(frozen=True)
class RIGA(FilterBits):
    """A message that a secret network, trained along with the host, reads from a layer's mean filter.

    The verdict ranks the key among keys with the same extractor and message that take the suspect's input channels in
    other orders.  A network that was trained from its own random weights has no preferred order of hidden channels:
    initialisation and training treat them all alike, so the law of its weights is the same in every order.  Hence the
    true order, drawn uniformly, is exchangeable with fresh ones on every such suspect, however much the extractor leans
    towards its message.  The host itself and what is made from it are not such suspects, since the extractor was
    trained on the host; there it rests on the training against unmarked weights.

    Args:
        bits: T, the length of the message.
        layer: Module name of the host layer, in full or the end of it.
        hidden: Width of the extractor's and the detector's hidden layers.
        embedding: How the mark gets into the network.
    """

    bits: int = 256
    layer: str = "group2.conv2"
    hidden: int = 256
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "riga"
    embedded: ClassVar[tuple[str, ...]] = (f"{EXTRACTOR}.",)

    def __post_init__(self) -> None:
        if self.bits < 1 or self.hidden < 1:
            raise ConfigError(f"scheme.bits and hidden must be at least 1, got {self.bits} and {self.hidden}")

    @property
    def uses_labels(self) -> bool:  # type: ignore[override]
        """Where the network learns them along with the mark."""
        return self.embedding.learns_labels

    def check_host(self, host: nn.Module) -> None:
        """Refuse a layer that the host has not or whose channels have too few orders, and bits it has no room for."""
        self.embedding.check_host(host)
        self._shape(host)

    def _shape(self, host: nn.Module) -> tuple[int, ...]:
        """Shape of one filter of the host layer."""
        layer = find_layer(host, self.layer)
        shape = filter_shape(layer)
        if channels(layer) < MIN_CHANNELS:
            raise ConfigError(
                f"layer {self.layer!r} reads {channels(layer)} channels, too few orders to rank a key among; choose a "
                f"scheme.layer that reads at least {MIN_CHANNELS}"
            )
        if self.bits > math.prod(shape):
            raise ConfigError(
                f"scheme.bits={self.bits} is too many: this layer has {math.prod(shape)} weights a filter; lower "
                "scheme.bits or choose a larger scheme.layer"
            )
        return shape

    def keygen(self, host: nn.Module, owner_data: Images | None, *, generator: torch.Generator) -> Key:
        """Draw the message, an untrained extractor and the order in which it takes the host layer's input channels.

        Raises:
            ConfigError: The host has no such layer, or the layer does not suit.
        """
        shape = self._shape(host)
        seed = int(torch.randint(2**62, (), generator=generator))
        extractor = fresh((math.prod(shape), self.hidden, self.hidden, self.bits), seed)
        message = torch.randint(0, 2, (self.bits,), generator=generator, dtype=torch.uint8)
        order = torch.randperm(shape[0], generator=generator)
        tensors = {"message": message, "channels": order, **packed(extractor, EXTRACTOR)}
        return Key(self.name, tensors, {"layer": self.layer, "shape": list(shape)})

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Keys with the true one's extractor and message, which take the channels in fresh orders.

        The extractor is no secret to be drawn again: one that somebody trains on the marked weights reads any message
        from them.  What the mark hangs on is which channel is where.
        """
        rng = generator_for(seed, "orders")
        count_channels = len(key.tensors["channels"])
        return [
            replace(key, tensors={**key.tensors, "channels": torch.randperm(count_channels, generator=rng)})
            for _ in range(count)
        ]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Write the message; the key returned holds the trained extractor.

        Raises:
            ConfigError: The situation does not fit the host.
            DataError: Labels are needed and withheld.
            KeyFileError: The key was made for another layer.
        """
        from hallmark.schemes.riga.embedding import embed  # Lightning is needed here alone

        seed = generator.initial_seed()
        marked, extractor = embed(host, key, owner_data, settings=self.embedding, trainer=trainer, seed=seed)
        return marked, replace(key, tensors={**key.tensors, **extractor})

    def reader(self, model: nn.Module) -> Reader:
        """What the keys' extractors read from a model's host layer."""
        return _Extraction(model)


class _Extraction:
    """Reads many keys' bits from one model; keys that share an extractor or a layer share its making.

    Args:
        model: Any model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._extractors: dict[int, nn.Module] = {}
        self._means: dict[tuple[str, ...], Tensor] = {}

    def __call__(self, key: Key) -> Tensor:
        """Logits ``(T,)`` that the key's extractor gives for the host layer; at least 0 reads as 1.

        Raises:
            ConfigError: The model has no such layer.
            KeyFileError: The key was made for filters of another shape.
        """
        tensors, layer = key.tensors, (key.meta["layer"], str(key.meta["shape"]))
        network = id(tensors["extractor.0.weight"])  # kept alive by the key
        if network not in self._extractors:
            self._extractors[network] = unpacked(tensors, EXTRACTOR)
        if layer not in self._means:
            self._means[layer] = layer_mean(self.model, key)
        return responses(self._extractors[network], self._means[layer], tensors["channels"])
