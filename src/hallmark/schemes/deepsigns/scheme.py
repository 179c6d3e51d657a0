"""deepsigns: bits in the mean activations of a layer under images of chosen classes (Rouhani et al. 2019)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Evidence, HostKind, Key, Scheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, DataError, KeyFileError
from hallmark.models.classifier import Classifier
from hallmark.schemes.deepsigns.activations import FEATURES, centres, trigger_centres, width
from hallmark.schemes.situations import Situation
from hallmark.schemes.uchida.regulariser import loss_per_bit, right_bits


@dataclass(frozen=True)
class Embedding(Situation):
    """How the mark gets into the network, beside what every :class:`~hallmark.schemes.situations.Situation` sets.

    Args:
        mark: γ₂, the weight of loss₂, the cross entropy of the centres' projections, summed over the bits.
        pull: γ₁, the weight of loss₁, the mean squared distance of trigger activations from their centres.
        triggers: Trigger images that accompany each step at the most, in equal parts for each class.
    """

    pull: float = 0.01
    triggers: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pull < math.inf:
            raise ConfigError(f"scheme.embedding.pull must be a finite number of at least 0, got {self.pull}")
        if self.triggers < 1:
            raise ConfigError(f"scheme.embedding.triggers must be at least 1, got {self.triggers}")


@dataclass(frozen=True)
class DeepSigns(Scheme):
    """A message whose bits are the signs of secret projections of centres, the mean activations of chosen classes.

    Every bit of a key that the suspect never saw is a fair coin of its own (``chance`` = ½), whatever the suspect:
    trigger images and projection fix what is read from it, and the message is drawn apart from these, uniformly.  So
    bit j is right with probability ½ given the reading and all other bits, and the count is Binomial(T, ½).

    Args:
        bits: T, the length of the message, in equal parts for each chosen class.
        layer: ``features``, or the module name of a convolution or linear layer, in full or the end of it.
        classes: Number s of classes whose centres bear the message.
        triggers: Trigger images in all, in equal parts for each class.
        embedding: How the mark gets into the network.
    """

    bits: int = 256
    layer: str = FEATURES
    classes: int = 2
    triggers: int = 100
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "deepsigns"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    passes: ClassVar[int] = 5
    uses_labels: ClassVar[bool] = True
    chance: ClassVar[float | None] = 0.5

    def __post_init__(self) -> None:
        for name in ("bits", "triggers"):
            value = getattr(self, name)
            if self.classes < 1 or value < 1 or value % self.classes:
                raise ConfigError(
                    f"scheme.{name}={value} cannot be shared equally by scheme.classes={self.classes}; make it a "
                    "positive multiple"
                )
        if self.embedding.triggers < self.classes:
            raise ConfigError(
                f"scheme.embedding.triggers={self.embedding.triggers} gives some of {self.classes} classes no image a "
                "step; raise it to at least scheme.classes"
            )

    @property
    def access(self) -> frozenset[Access]:  # type: ignore[override]
        """Features show the mark where they bear it; the activations of other layers take the network itself."""
        return frozenset({Access.WEIGHTS, Access.FEATURES} if self.layer == FEATURES else {Access.WEIGHTS})

    def check(self, image_size: int, images: int) -> None:
        """The owner needs at least as many images as triggers."""
        if self.triggers > images:
            raise ConfigError(f"scheme.triggers={self.triggers} exceeds the owner's {images} images; lower it")

    def check_host(self, host: nn.Module) -> None:
        """Refuse a layer that the host has not, and more bits than its centres have room for."""
        self._width(host)

    def _width(self, host: nn.Module) -> int:
        """D, the number of activations.

        A centre behind a ReLU has D signs of its own to keep, and D coordinates meet about 2 D sign conditions in
        general position (Cover 1965): D bits are what is left for a class.
        """
        size = width(_classifier(host), self.layer)
        if self.bits > size * self.classes:
            raise ConfigError(
                f"scheme.bits={self.bits} is too many: {size} activations of {self.layer!r} have room for {size} bits "
                f"a class, and scheme.classes={self.classes}; lower scheme.bits, or raise scheme.classes"
            )
        return size

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw classes, trigger images of them, the projection A and the message; the host's weights are not looked at.

        Raises:
            ConfigError: The host has no such layer, or it has no room for the bits, or there are too few classes.
            DataError: Labels are withheld, or a class has too few images.
        """
        size = self._width(host)
        chosen, images = self._triggers(owner_data, generator)
        tensors = {"images": images, **self._secret(size, generator)}
        return Key(self.name, tensors, {"layer": self.layer, "width": size, "classes": chosen})

    def _triggers(self, owner_data: Images, generator: torch.Generator) -> tuple[list[int], Tensor]:
        """Chosen classes, and images ``(s, n, 3, H, W)`` of them."""
        labels, each = owner_data.labels.cpu(), self.triggers // self.classes
        if int((labels < 0).sum()):
            raise DataError(
                "deepsigns chooses trigger images by their class, and labels are withheld; give labelled data"
            )
        if self.classes > owner_data.classes:
            raise ConfigError(
                f"scheme.classes={self.classes} exceeds the {owner_data.classes} classes of the images; lower it"
            )
        chosen = torch.randperm(owner_data.classes, generator=generator)[: self.classes].tolist()
        rows = []
        for label in chosen:
            own = (labels == label).nonzero().flatten()
            if len(own) < each:
                raise DataError(
                    f"scheme.triggers={self.triggers} takes {each} images of class {label}, and the owner has "
                    f"{len(own)}; lower it"
                )
            rows.append(own[torch.randperm(len(own), generator=generator)[:each]])
        return chosen, owner_data.images[torch.stack(rows).to(owner_data.images.device)].cpu()

    def _secret(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A standard normal projection ``(D, N)`` and a uniform message ``(s, N)``."""
        each = self.bits // self.classes
        return {
            "projection": torch.randn(size, each, generator=generator),
            "message": torch.randint(0, 2, (self.classes, each), generator=generator, dtype=torch.uint8),
        }

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh projections and messages over the true key's trigger images, which no label is needed for."""
        rngs = (generator_for(seed, "decoy", i) for i in range(count))
        return [replace(key, tensors={**key.tensors, **self._secret(key.meta["width"], rng)}) for rng in rngs]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the centres to bear the message.

        Raises:
            DataError: Labels are needed and withheld.
            KeyFileError: The key was made for a layer of another width.
        """
        from hallmark.schemes.deepsigns.embedding import embed  # Lightning is needed here alone

        seed = generator.initial_seed()
        return embed(_classifier(host), key, owner_data, settings=self.embedding, trainer=trainer, seed=seed), key

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Count the bits that the suspect's mean activations give back.

        Raises:
            AccessError: The suspect does not show the layer.
            ConfigError: The suspect has no such layer.
            KeyFileError: The key was made for a layer of another width.
        """
        return self.extract_many(suspect, [key])[0]

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """The evidence of many keys; the suspect sees trigger images that keys share once."""
        self.require_access(suspect)
        found: dict[int, Tensor] = {}
        evidence = []
        for key in keys:
            place = id(key.tensors["images"])
            if place not in found:
                found[place] = _seen(suspect, key)
            message = key.tensors["message"]
            right = right_bits(found[place] @ key.tensors["projection"], message)
            evidence.append(Evidence(suspect.access, matches=right, trials=message.numel()))
        return evidence

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """``embed_loss``: loss₂ of the suspect's mean activations as a mean over the bits, in nats.

        Raises:
            AccessError: The suspect does not show the layer.
            ConfigError: The suspect has no such layer.
            KeyFileError: The key was made for a layer of another width.
        """
        self.require_access(suspect)
        answers = _seen(suspect, key) @ key.tensors["projection"]
        return {"embed_loss": loss_per_bit(answers.flatten(), key.tensors["message"].flatten())}


def require_width(model: Classifier, key: Key) -> None:
    """Refuse a key that was made for a layer of another width.

    Raises:
        ConfigError: The model has no such layer.
        KeyFileError: The widths differ.
    """
    _require_width(width(model, key.meta["layer"]), key)


def _require_width(found: int, key: Key) -> None:
    made_for, layer = key.meta["width"], key.meta["layer"]
    if made_for != found:
        raise KeyFileError(
            f"the key was made for {made_for} activations, but {layer!r} has {found}; use the key of this architecture"
        )


def _seen(suspect: Suspect, key: Key) -> Tensor:
    """Centres ``(s, D)`` of a suspect's activations, float32 on the CPU."""
    images = key.tensors["images"]
    if suspect.access is Access.FEATURES:
        features = suspect.features(images.flatten(0, 1).float() / 255)
        _require_width(features.shape[1], key)
        return centres(features, len(images))
    model = _classifier(suspect.weights_module())
    require_width(model, key)
    return trigger_centres(model, images, key.meta["layer"]).cpu()


def _classifier(model: nn.Module) -> Classifier:
    """The model, if it is a classifier.

    Raises:
        ConfigError: It is another kind of network.
    """
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"deepsigns marks classifiers, whose classes choose the trigger images, not {type(model).__name__}"
        )
    return model
