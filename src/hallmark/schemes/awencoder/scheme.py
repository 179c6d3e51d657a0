"""awencoder: a universal adversarial perturbation, and an encoder trained to answer it (Zhang et al. 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, HostKind, Key, QueryScheme, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, DataError, KeyFileError, allowed
from hallmark.models.inference import Answering
from hallmark.optimisation import Training
from hallmark.schemes.awencoder.perturbation import PerturbationLaw, add, features, fitted, optimise
from hallmark.schemes.awencoder.responses import READINGS, discrepancy
from hallmark.schemes.awencoder.roles import Roles, assign
from hallmark.schemes.encoder_losses import UTILITIES

NOISES = 5
"""Draws of random noise that figures average over."""


@dataclass(frozen=True)
class Embedding:
    """How the perturbation is trained into an encoder: the weights of the joint loss, and the schedule.

    Args:
        utility: ``pin`` holds clean features where the host puts them; ``contrastive`` goes on with NT-Xent instead.
        perturbation: ``fixed`` leaves w as stage one made it; ``alternating`` moves it by one level before each step.
        epochs: Passes over the owner's images.
        batch: Images per step.
        training: Optimiser and schedule.
        key: Weight of the key's pull: E⁺(x + w) goes to where E⁺(x_key) is, in angle and length.
        stability: Weight of the key's stability: E⁺(x_key) stays at E(x_key), in angle and length.
        specificity: Weight of the term under which images with *foreign* perturbations, those of other key images,
            keep the features that the host gives them; 0 leaves it out.
        foreign: Number of foreign perturbations, made on the host as the true one was.
        temperature: τ of NT-Xent where utility is contrastive.
    """

    utility: str = "pin"
    perturbation: str = "fixed"
    epochs: int = 4
    batch: int = 256
    training: Training = field(default_factory=lambda: Training("adamw", lr=1e-3, weight_decay=1e-4))
    key: float = 2.0
    stability: float = 1.0
    specificity: float = 1.0
    foreign: int = 64
    temperature: float = 0.5

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.utility, UTILITIES, "scheme.embedding.utility"),
            (self.perturbation, ("fixed", "alternating"), "scheme.embedding.perturbation"),
        ):
            if value not in choices:
                raise ConfigError(allowed(value, choices, what))
        if self.epochs < 1 or self.batch < 2 or self.foreign < 1:
            raise ConfigError(
                "scheme.embedding needs epochs ≥ 1, batch ≥ 2 and foreign ≥ 1, got "
                f"{self.epochs}, {self.batch} and {self.foreign}"
            )
        if min(self.key, self.stability, self.specificity) < 0:
            raise ConfigError(
                "scheme.embedding needs key, stability and specificity ≥ 0, got "
                f"{self.key}, {self.stability} and {self.specificity}"
            )


@dataclass(frozen=True)
class AWEncoder(QueryScheme):
    """A bounded perturbation that gathers any image's features around one key image's, in the marked encoder most.

    Args:
        reading: What counts as the discrepancy: ``key`` is the approach to the key image's answer, ``modal`` to the
            most common answer of perturbed queries, ``own`` the departure from each query's own answer.
        key_image: Row of the key image among the owner's images, or None to draw it.  Only a drawn one makes the true
            key exchangeable with decoys, and so the p-value exact.
        queries: Number Q of the owner's images that a verification asks about.
        perturbation: How perturbations are made.
        embedding: How the mark is trained in.
    """

    reading: str = "key"
    key_image: int | None = None
    queries: int = 100
    perturbation: PerturbationLaw = field(default_factory=PerturbationLaw)
    embedding: Embedding = field(default_factory=Embedding)

    name: ClassVar[str] = "awencoder"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES, Access.LOGITS, Access.LABELS})
    passes: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise ConfigError(allowed(self.reading, READINGS, "scheme.reading"))
        if self.queries < 2:
            raise ConfigError(f"scheme.queries must be at least 2, got {self.queries}")

    def check(self, image_size: int, images: int) -> None:
        """The key image must be one of the owner's, and they must suffice for every role."""
        if self.key_image is not None and not 0 <= self.key_image < images:
            raise ConfigError(
                f"scheme.key_image={self.key_image} is outside the owner's {images} images; give 0 to {images - 1}, or "
                "null to draw one"
            )
        needed = sum(self._sizes) + 2
        if needed > images:
            raise ConfigError(
                f"scheme.queries={self.queries}, perturbation.images={self.perturbation.images}, "
                f"embedding.foreign={self.embedding.foreign}, a key image and a decoy's need {needed} images, but the "
                f"owner has {images}; lower one of the three"
            )

    def check_decoys(self, images: int, count: int) -> None:
        """Each needs a key image of its own, beside those that have a role."""
        left = images - sum(self._sizes) - 1
        if count > left:
            raise ConfigError(
                f"calibration.decoys and trials need {count} key images, half as many again as a verdict takes, but "
                f"only {left} of the owner's {images} images are left to be; lower them, scheme.queries or "
                "scheme.perturbation.images"
            )

    @property
    def embedded(self) -> tuple[str, ...]:  # type: ignore[override]
        """The perturbation, where it moves along with the encoder."""
        return ("perturbation",) if self.embedding.perturbation == "alternating" else ()

    @property
    def decoy_work(self) -> int:
        """Images through the network, a backward pass counting double, that making a decoy costs; for estimates."""
        return 3 * self.perturbation.steps * self.perturbation.batch

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Queries, images to optimise on, foreign key images."""
        return self.queries, self.perturbation.images, self.embedding.foreign

    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw a key image and make its perturbation on the unmarked host.

        The key remembers the seed that gave every image its role, so that decoys are made on the same images.
        """
        height, width = owner_data.images.shape[2:]
        self.check(min(height, width), len(owner_data))
        seed = int(torch.randint(2**62, (), generator=generator))
        roles = self._roles(seed, len(owner_data))
        image = owner_data.images[roles.key]
        meta = {
            "seed": seed,
            "row": int(roles.key),
            "images": len(owner_data),
            "law": asdict(self.perturbation),
        }
        tensors = {
            "perturbation": self._perturbations(host, owner_data, roles, image)[0],
            "image": image[0],
            "queries": owner_data.images[roles.queries],
        }
        return Key(self.name, tensors, meta)

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Other key images' perturbations, made on the unmarked host exactly as the true one was.

        Key images are drawn without replacement from those without a role, so the true one is exchangeable with them.
        The cost is ``count`` times ``steps · batch`` images forth and back.

        Raises:
            ConfigError: There are fewer such images than ``count``.
            DataError: These are not the images that the key was made with.
            KeyFileError: The key's perturbation was made under another law.
        """
        self._require_same(key, owner_data)
        roles = self._roles(key.meta["seed"], len(owner_data))
        if count > len(roles.pool):
            raise ConfigError(
                f"{count} decoy keys were asked for, but only {len(roles.pool)} of the owner's images are left to be "
                "their key images; lower calibration.decoys and trials, scheme.queries or scheme.perturbation.images"
            )
        if not count:
            return []
        rows = roles.pool[torch.randperm(len(roles.pool), generator=generator_for(seed, "decoys"))[:count]]
        chosen = owner_data.images[rows]
        made = self._perturbations(host, owner_data, roles, chosen)
        return [
            _other(key, perturbation=levels, image=image, row=int(row))
            for levels, image, row in zip(made, chosen, rows, strict=True)
        ]

    def noise(self, key: Key, count: int, *, seed: int) -> list[Key]:
        """Keys whose perturbation is random, each value ±ε: what a suspect does under any noise of that size."""
        signs = torch.randint(
            2, (count, *key.tensors["perturbation"].shape), generator=generator_for(seed, "noise"), dtype=torch.int16
        )
        return [_other(key, perturbation=levels) for levels in (2 * signs - 1) * _radius(key)]

    def _roles(self, seed: int, images: int) -> Roles:
        return assign(seed, images, self._sizes, self.key_image)

    def _perturbations(self, host: nn.Module, owner_data: Images, roles: Roles, images: Tensor) -> Tensor:
        """One perturbation ``(K, 3, H, W)`` for each key image ``(K, 3, H, W)``."""
        encoder = Answering(host)
        return optimise(encoder, owner_data.images[roles.clean], features(encoder, images), self.perturbation)

    def _require_same(self, key: Key, owner_data: Images) -> None:
        """Refuse to go on under another law or with other images than the key was drawn under."""
        if key.meta["law"] != asdict(self.perturbation):
            raise KeyFileError(
                f"the key's perturbation was made with {key.meta['law']}, but scheme.perturbation is "
                f"{asdict(self.perturbation)}; set it to what the key was made with"
            )
        image, images = key.tensors["image"], owner_data.images
        if key.meta["images"] != len(images) or not torch.equal(images[key.meta["row"]].cpu(), image):
            raise DataError(
                f"the key was made with {key.meta['images']} images of {_size(image)}, and these are "
                f"{len(images)} of {_size(images)} or others; give the owner's images that the key was drawn from"
            )

    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Train the mark in; no label and no downstream set is seen."""
        from hallmark.schemes.awencoder.embedding import Secret, embed  # Lightning is needed here alone

        self._require_same(key, owner_data)
        roles = self._roles(key.meta["seed"], len(owner_data))
        foreign = self._perturbations(host, owner_data, roles, owner_data.images[roles.foreign])
        secret = Secret(key.tensors["perturbation"], key.tensors["image"], foreign, self.perturbation)
        seed = generator.initial_seed()
        marked, levels = embed(host, secret, owner_data.images, settings=self.embedding, trainer=trainer, seed=seed)
        return marked, _other(key, perturbation=levels)

    def controls(self, key: Key) -> Tensor:
        """The query images."""
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        """The perturbed query images, 8 bits a channel, and as the last one the key image: ``(Q + 1, 3, H, W)``.

        For queries of another size the perturbation and the key image are resized; see
        :func:`hallmark.schemes.awencoder.perturbation.fitted`.
        """
        queries, image = key.tensors["queries"], key.tensors["image"]
        size = (queries.shape[2], queries.shape[3])
        levels = fitted(key.tensors["perturbation"], size, _radius(key))
        if image.shape[1:] != size:
            image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
        return torch.cat([add(queries, levels), image[None]])

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        """Evidence at FEATURES, LOGITS or LABELS access; see :mod:`hallmark.schemes.awencoder.responses`."""
        return discrepancy(self.reading, access, answers[:-1], control_answers, answers[-1])

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """The response to the key and to random ±ε noise; at FEATURES also where the perturbation moves queries.

        Returns:
            ``response`` and ``response_noise``, the statistic of the key and the mean over noises; at FEATURES
            ``perturbation_linf`` in [0, 1], and mean cosines over the queries: ``own_cosine`` of perturbed to clean,
            ``key_cosine_clean`` and ``key_cosine`` of clean and of perturbed ones to the key image.
        """
        clean = suspect.ask(self.controls(key).float() / 255)

        def asked(of: Key) -> tuple[Tensor, float]:
            answers = suspect.ask(self.questions(of).float() / 255)
            return answers, self.judge(suspect.access, answers, clean, of).statistic()

        answers, response = asked(key)
        noises = [asked(noise)[1] for noise in self.noise(key, NOISES, seed=int(key.meta["seed"]))]
        found = {"response": response, "response_noise": sum(noises) / len(noises)}
        if suspect.access is Access.FEATURES:
            moved, wanted = answers[:-1], answers[-1:]
            found |= {
                "perturbation_linf": float(key.tensors["perturbation"].abs().max()) / 255,
                "own_cosine": float(F.cosine_similarity(moved, clean).mean()),
                "key_cosine_clean": float(F.cosine_similarity(clean, wanted).mean()),
                "key_cosine": float(F.cosine_similarity(moved, wanted).mean()),
            }
        return found


def _radius(key: Key) -> int:
    """Bound in levels on the key's perturbation."""
    return PerturbationLaw(**key.meta["law"]).radius


def _size(images: Tensor) -> str:
    height, width = images.shape[-2:]
    return f"{height}x{width}"


def _other(key: Key, *, row: int | None = None, **tensors: Tensor) -> Key:
    """A key with another secret over the same queries."""
    meta = key.meta if row is None else {**key.meta, "row": row}
    return replace(key, tensors={**key.tensors, **tensors}, meta=meta)
