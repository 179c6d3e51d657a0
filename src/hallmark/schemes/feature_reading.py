"""What schemes share whose mark a small network of the owner's reads from an encoder's features.

That network was trained against the marked encoder, so it leans towards its answer on anything, and neither a fresh
secret nor a fixed threshold would be a null for it.  What the mark hangs on is which feature is where.  An encoder that
was trained from its own random weights has no preferred order of features: initialisation and training treat all alike,
so the law of its features is the same in every order.  The true order, drawn uniformly, is therefore exchangeable with
fresh ones on every such suspect, however much the network leans, and its rank among them is uniform (as for riga).
The unmarked host and what is made from it are not such suspects, since the network saw the host; there it rests on the
training.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, KeyFileError
from hallmark.schemes.perceptrons import fresh, packed, unpacked
from hallmark.schemes.queries import draw_queries, require_queries

READER = "reader"
"""What the owner's network is called in a key."""


@dataclass(frozen=True)
class FeatureReading(Scheme):
    """A mark that a perceptron in the key reads from features, whose order it takes from the key too.

    Args:
        queries: Number Q of the owner's images that a verification asks about.
        hidden: Width of the network's first hidden layer.
    """

    queries: int = 100
    hidden: int = 512

    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES})
    embedded: ClassVar[tuple[str, ...]] = (f"{READER}.",)
    shown: ClassVar[tuple[str, ...]]
    """The tensors of a key that decide which images a suspect is asked about."""

    def __post_init__(self) -> None:
        require_queries(self.queries, self.queries)
        if self.hidden < 1:
            raise ConfigError(f"scheme.hidden must be at least 1, got {self.hidden}")

    @abstractmethod
    def questions(self, key: Key) -> Tensor:
        """Images uint8 ``(N, 3, H, W)`` that a suspect is asked about."""

    @abstractmethod
    def judge(self, read: Tensor, key: Key) -> Evidence:
        """Evidence from what the key's network reads ``(N, …)`` from the answers to the questions."""

    def check(self, image_size: int, images: int) -> None:
        """The queries must be among the owner's images."""
        require_queries(self.queries, images)

    def common(
        self, host: nn.Module, owner_data: Images, widths: Sequence[int], *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A key's queries, order of features, and untrained network with these widths behind its input."""
        features = int(host.num_features)  # type: ignore[arg-type]
        queries = draw_queries(owner_data, self.queries, generator=generator)
        order = torch.randperm(features, generator=generator)
        network = fresh((features, *widths), int(torch.randint(2**62, (), generator=generator)))
        return {"queries": queries, "order": order, **packed(network, READER)}

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """The true key with fresh orders of features."""
        rng, features = generator_for(seed, "orders"), len(key.tensors["order"])
        orders = (torch.randperm(features, generator=rng) for _ in range(count))
        return [replace(key, tensors={**key.tensors, "order": order}) for order in orders]

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Ask, read, and judge.

        Raises:
            AccessError: The suspect does not show its features.
            KeyFileError: The key was made for another number of features.
        """
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """The evidence of many keys; those that ask the same images ask them once."""
        self.require_access(suspect)
        asked: dict[tuple[int, ...], Tensor] = {}
        networks: dict[int, nn.Module] = {}
        found = []
        for key in keys:  # they keep alive what is recognised by its identity here
            images = tuple(id(key.tensors[name]) for name in self.shown)
            if images not in asked:
                asked[images] = suspect.features(self.questions(key).float() / 255)
            network = id(key.tensors[f"{READER}.0.weight"])
            if network not in networks:
                networks[network] = reader_of(key)
            found.append(self.judge(read(networks[network], asked[images], key), key))
        return found

    def reading(self, suspect: Suspect, key: Key) -> Tensor:
        """What the key's network reads ``(N, …)`` from a suspect's answers; raises as :meth:`extract` does."""
        self.require_access(suspect)
        return read(reader_of(key), suspect.features(self.questions(key).float() / 255), key)


def reader_of(key: Key) -> nn.Sequential:
    """The key's network, frozen."""
    return unpacked(key.tensors, READER)


def trained(key: Key, network: nn.Module, **tensors: Tensor) -> Key:
    """A key whose network was trained, and what else has changed."""
    return replace(key, tensors={**key.tensors, **packed(network, READER), **tensors})


def require_width(features: int, key: Key) -> None:
    """Refuse a key that was made for another number of features.

    Raises:
        KeyFileError: The numbers differ.
    """
    made_for = len(key.tensors["order"])
    if made_for != features:
        raise KeyFileError(
            f"the {key.scheme} key reads {made_for} features, but this encoder gives {features}; use the key of this "
            "architecture"
        )


def read(network: nn.Module, features: Tensor, key: Key) -> Tensor:
    """What a key's network reads ``(N, …)`` from features ``(N, D)``; see :func:`require_width`."""
    require_width(features.shape[1], key)
    with torch.no_grad():
        found: Tensor = network(features[:, key.tensors["order"]])
    return found
