"""uchida: bits in the mean filter of one layer (Uchida et al. 2017; Nagai et al. 2018)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Key, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.layers import find_layer
from hallmark.schemes.situations import Situation
from hallmark.schemes.uchida.bits import FilterBits, Reader
from hallmark.schemes.uchida.carriers import CARRIERS, draw_carrier
from hallmark.schemes.uchida.filters import filter_shape
from hallmark.schemes.uchida.posthoc import embed_posthoc
from hallmark.schemes.uchida.regulariser import host_layer, read

MESSAGES = ("random", "ones")


@dataclass(frozen=True)
class Embedding(Situation):
    """How the mark gets into the network.

    Args:
        situation: As in :class:`~hallmark.schemes.situations.Situation`, or ``posthoc``: the host layer alone moves to
            the nearest weights that carry the mark, without data.
        mark: λ, the weight of the embedding loss summed over the bits.
        epochs: Passes over the owner's images; like everything below, without meaning for ``posthoc``.
        batch: Images per step.
        training: Optimiser and schedule.
        view: Augmentation.
        batch_norm: ``train`` updates the statistics, ``frozen`` keeps the host's.
    """

    situations: ClassVar[tuple[str, ...]] = (*Situation.situations, "posthoc")


@dataclass(frozen=True)
class Uchida(FilterBits):
    """A message whose bits are the signs of secret projections of a layer's mean filter.

    Args:
        bits: T, the length of the message.
        layer: Module name of the host layer, in full or the end of it.
        carrier: Law of X: ``direct``, ``diff`` or ``random``.
        message: ``random`` bits, or all ``ones`` as in the papers' experiments.
        embedding: How the mark gets into the network.
    """

    bits: int = 256
    layer: str = "group2.conv2"
    carrier: str = "random"
    message: str = "random"
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "uchida"
    sampled: ClassVar[tuple[str, ...]] = ("responses", "weights")

    def __post_init__(self) -> None:
        if self.carrier not in CARRIERS:
            raise ConfigError(allowed(self.carrier, CARRIERS, "scheme.carrier"))
        if self.message not in MESSAGES:
            raise ConfigError(allowed(self.message, MESSAGES, "scheme.message"))
        if self.bits < 1:
            raise ConfigError(f"scheme.bits must be at least 1, got {self.bits}")

    @property
    def uses_labels(self) -> bool:  # type: ignore[override]
        """Where the network learns them along with the mark."""
        return self.embedding.learns_labels

    @property
    def chance(self) -> float | None:  # type: ignore[override]
        """½ where X is Gaussian and the message random: every bit is then a fair coin of its own, whatever the weights.

        All-ones messages are ranked even under a Gaussian X: a layer pruned to zeros reads as all ones.
        """
        return 0.5 if (self.carrier, self.message) == ("random", "random") else None

    def check_host(self, host: nn.Module) -> None:
        """Refuse a layer that the host has not, a message it has no room for, and training without labels to learn."""
        self.embedding.check_host(host)
        self.keygen(host, None, generator=torch.Generator())

    def keygen(self, host: nn.Module, owner_data: Images | None, *, generator: torch.Generator) -> Key:
        """Draw X and the message for the host layer; neither weights nor images are looked at.

        Raises:
            ConfigError: The host has no such layer, or the layer has no room for the bits.
        """
        shape = filter_shape(find_layer(host, self.layer))
        carrier = draw_carrier(self.carrier, self.bits, math.prod(shape), generator=generator)
        message = torch.ones(self.bits, dtype=torch.uint8)
        if self.message == "random":
            message = torch.randint(0, 2, (self.bits,), generator=generator, dtype=torch.uint8)
        meta = {"carrier": self.carrier, "layer": self.layer, "shape": list(shape)}
        return Key(self.name, {"carrier": carrier, "message": message}, meta)

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Write the message, in the situation that ``embedding`` names.

        Raises:
            ConfigError: The situation does not fit the host.
            DataError: Labels are needed and withheld.
            KeyFileError: The key was made for another layer.
        """
        if self.embedding.situation == "posthoc":
            return embed_posthoc(host, key, self.embedding.mark), key
        from hallmark.schemes.uchida.embedding import embed  # Lightning is needed here alone

        marked = embed(host, key, owner_data, settings=self.embedding, trainer=trainer, seed=generator.initial_seed())
        return marked, key

    def reader(self, model: nn.Module) -> Reader:
        """The responses X w of a model's host layer."""
        return partial(read, model)

    def samples(self, suspect: Suspect, key: Key) -> Mapping[str, Tensor]:
        """What figures 1 and 2 of the papers draw, at the layer of the key.

        Returns:
            ``responses``: σ(X w) of each bit ``(T,)``, turned round where the message has a 0, so that 1 is right for
            every bit as it is for the papers' message of all ones; ``weights``: all weights of the layer.

        Raises:
            AccessError: The suspect grants less than its weights.
            ConfigError: The suspect has no such layer.
            KeyFileError: The key was made for another layer.
        """
        self.require_access(suspect)
        model = suspect.weights_module()
        right = 2 * key.tensors["message"].double() - 1
        layer = host_layer(model, key).weight.detach().cpu().double()
        return {"responses": torch.sigmoid(right * read(model, key)), "weights": layer.flatten()}
