"""What schemes share whose bits are the signs of numbers read from one layer's filters."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect
from hallmark.schemes.uchida.regulariser import host_layer, loss_per_bit, right_bits

Reader = Callable[[Key], Tensor]
"""From a key to the numbers ``(T,)`` that it reads from one model; at least 0 reads as 1."""


class FilterBits(Scheme):
    """A message of T bits in the host layer that the key's ``layer`` and ``shape`` name, under ``message``."""

    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER, HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    passes: ClassVar[int] = 4

    @abstractmethod
    def reader(self, model: nn.Module) -> Reader:
        """How keys are read from a model; what several keys share is made once.

        The reader raises ConfigError if the model has no such layer, KeyFileError if the key was made for another.
        """

    def reads(self, model: nn.Module, key: Key) -> Collection[str]:
        """The weight of the host layer."""
        layer = host_layer(model, key)
        return [f"{name}.weight" for name, module in model.named_modules() if module is layer]

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Count the bits that the suspect's weights give back.

        Raises:
            AccessError: The suspect grants less than its weights.
            ConfigError: The suspect has no such layer.
            KeyFileError: The key was made for another layer.
        """
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """The evidence of many keys; the suspect's weights are copied once."""
        self.require_access(suspect)
        read = self.reader(suspect.weights_module())
        messages = [key.tensors["message"] for key in keys]
        return [
            Evidence(Access.WEIGHTS, matches=right_bits(read(key), message), trials=len(message))
            for key, message in zip(keys, messages, strict=True)
        ]

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """``embed_loss``: the bits' cross entropy at the suspect as a mean over the bits, in nats.

        Raises:
            AccessError: The suspect grants less than its weights.
            ConfigError: The suspect has no such layer.
            KeyFileError: The key was made for another layer.
        """
        self.require_access(suspect)
        return {"embed_loss": loss_per_bit(self.reader(suspect.weights_module())(key), key.tensors["message"])}
