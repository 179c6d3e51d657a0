"""Networks in the key that read a mark: one that is trained on the suspect reads any mark from it.

Decoys take features, or a layer's channels, in another order.  So the network learns to say what it should in the key's
order, and the contrary in any other.  No draw from a public string is in the way: the order, the message and the images
are as they are drawn, and an honest key's network is trained too.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.forging.common import Forger, Forgery, changed, taught
from hallmark.core import Access, Key, Suspect
from hallmark.core.scheme import Images
from hallmark.schemes.feature_reading import FeatureReading, reader_of, trained
from hallmark.schemes.perceptrons import packed, unpacked
from hallmark.schemes.riga.networks import EXTRACTOR, layer_mean, responses
from hallmark.schemes.riga.scheme import RIGA
from hallmark.schemes.rotation.scheme import Rotation
from hallmark.schemes.rotation.turning import side
from hallmark.schemes.sslguard.loss import secret_cosine
from hallmark.schemes.sslguard.scheme import SSLGuard

ORDERS = 8
"""Other orders that each step of training sees."""


@dataclass(frozen=True)
class _TeachingForger(Forger):
    """What forgers share that train a key's network.

    Args:
        steps: Of training.
    """

    steps: int = 100

    gains: ClassVar[bool] = False
    compared: ClassVar[int] = 19  # a network leans to some answer in every order

    @property
    def work(self) -> float:
        """Steps that cost about as much as so many images."""
        return float(30 * self.steps)


@dataclass(frozen=True)
class _ReaderForger(_TeachingForger):
    """What forgers of networks that read features share."""

    scheme: FeatureReading

    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES})

    def needed(self, decoys: int) -> int:
        """The query images."""
        return self.scheme.queries

    @property
    def work(self) -> float:
        """The queries once, and the training."""
        return self.scheme.queries + super().work

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key whose network was trained on the suspect's answers."""
        self.scheme.require_access(suspect)
        key = self.drawn(self._like(suspect, images), images, generator)
        seen = suspect.features(self.scheme.questions(key).float() / 255)
        order = key.tensors["order"]

        def loss(network: nn.Module) -> Tensor:
            others = torch.stack([torch.randperm(len(order), generator=generator) for _ in range(ORDERS)])
            return self.said(network(seen[:, order]), key) + self.denied(network(seen[:, others].transpose(0, 1)), key)

        made = trained(key, taught(reader_of(key), loss, steps=self.steps))
        return Forgery(made, suspect.access, public=self.public)

    @staticmethod
    def _like(suspect: Suspect, images: Images) -> nn.Module:
        """Something as wide as the suspect, of which a key is drawn for the width alone."""
        like = nn.Module()
        like.num_features = suspect.features(images.images[:1].float() / 255).shape[1]  # type: ignore[assignment]
        return like

    @abstractmethod
    def said(self, read: Tensor, key: Key) -> Tensor:
        """The loss of what the network reads ``(Q, …)`` in the key's order."""

    @abstractmethod
    def denied(self, read: Tensor, key: Key) -> Tensor:
        """The loss of what it reads in other orders ``(orders, Q, …)``."""


@dataclass(frozen=True)
class SSLGuardForger(_ReaderForger):
    """The decoder learns to give the secret away, and its contrary where the features come in another order."""

    scheme: SSLGuard

    def said(self, read: Tensor, key: Key) -> Tensor:
        """Less the mean cosine to the secret."""
        return -secret_cosine(read, key.tensors["secret"])

    def denied(self, read: Tensor, key: Key) -> Tensor:
        """The mean cosine to the secret."""
        return secret_cosine(read.flatten(0, 1), key.tensors["secret"])


@dataclass(frozen=True)
class RotationForger(_ReaderForger):
    """The head learns the sides of the queries by heart, and the wrong ones for features in another order."""

    scheme: Rotation

    def said(self, read: Tensor, key: Key) -> Tensor:
        """Cross entropy to the sides."""
        return F.cross_entropy(read, side(key.tensors["angles"]))

    def denied(self, read: Tensor, key: Key) -> Tensor:
        """Cross entropy to the other sides."""
        return F.cross_entropy(read.flatten(0, 1), (1 - side(key.tensors["angles"])).repeat(len(read)))


@dataclass(frozen=True)
class RIGAForger(_TeachingForger):
    """The extractor learns to read the message from the suspect's layer, and its contrary from other orders of it."""

    scheme: RIGA

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key whose extractor was trained on the suspect's weights."""
        model = self.copy(suspect)
        key = self.drawn(model, images, generator)
        mean, order, message = layer_mean(model, key), key.tensors["channels"], key.tensors["message"].float()

        def loss(network: nn.Module) -> Tensor:
            said = F.binary_cross_entropy_with_logits(responses(network, mean, order), message)
            others = [torch.randperm(len(order), generator=generator) for _ in range(ORDERS)]
            read = torch.stack([responses(network, mean, other) for other in others])
            return said + F.binary_cross_entropy_with_logits(read, (1 - message).expand_as(read))

        extractor = taught(unpacked(key.tensors, EXTRACTOR), loss, steps=self.steps)
        return Forgery(changed(key, **packed(extractor, EXTRACTOR)), suspect.access, public=self.public)
