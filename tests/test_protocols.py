"""Schemes that others might write fit the protocol: a white-box mark, an untrained edit, an image-to-image mark."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Evidence, HostKind, Key, QueryScheme, Scheme, Suspect, extract_all, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import AccessError
from hallmark.stats import Binomial, Ranked, Verdict, verify

SIZE, CLASSES = 16, 4
DECOYS = 399
ALPHA = 1 / (DECOYS + 1)
"""An innocent is accused once in 400 by right; a mark must beat every decoy."""


class NoTrainer:
    """Handed to schemes that promise not to train."""

    def fit(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a scheme that does not train asked for a trainer")


def owner(count: int = 64) -> ImageSet:
    images, _ = procedural_images(count, classes=CLASSES, size=SIZE)
    return ImageSet("procedural", images, torch.full((count,), -1), CLASSES)


class Net(nn.Module):
    """A two-layer classifier of 16×16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * SIZE * SIZE, 32)
        self.head = nn.Linear(32, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        return torch.relu(self.hidden(images.flatten(1) - 0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def classifier(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def denoiser(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid())


# A white-box mark in the weights


class Projected(Scheme):
    """Bits are signs of secret Gaussian projections of one layer's weights (Uchida 2017), set in closed form."""

    name: ClassVar[str] = "projected"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    trains: ClassVar[bool] = False
    bits: ClassVar[int] = 64

    def keygen(self, host: nn.Module, owner_data: Any, *, generator: torch.Generator) -> Key:
        size = host.hidden.weight.numel()
        projection = torch.randn(self.bits, size, generator=generator)
        message = torch.randint(0, 2, (self.bits,), generator=generator, dtype=torch.uint8)
        return Key(self.name, {"projection": projection, "message": message})

    def embed(
        self, host: nn.Module, key: Key, owner_data: Any, *, trainer: Any, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        marked, projection = deepcopy(host), key.tensors["projection"]
        with torch.no_grad():
            weight = marked.hidden.weight
            wanted = (2 * key.tensors["message"].float() - 1) * 0.5
            lacking = wanted - projection @ weight.flatten()
            weight += (projection.T @ torch.linalg.solve(projection @ projection.T, lacking)).view_as(weight)
        return marked, key

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        weight = suspect.weights_module().hidden.weight.detach().flatten()
        read = key.tensors["projection"] @ weight > 0
        return Evidence(Access.WEIGHTS, matches=int((read == key.tensors["message"].bool()).sum()), trials=self.bits)


# An edit without training, verified from weights and from answers


class Detector(QueryScheme):
    """One hidden unit is rewritten to fire on a secret pattern and to push one class."""

    name: ClassVar[str] = "detector"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS, Access.LABELS})
    trains: ClassVar[bool] = False

    def keygen(self, host: nn.Module, owner_data: Any, *, generator: torch.Generator) -> Key:
        pattern = torch.randint(0, 2, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        unit = torch.randint(0, host.hidden.out_features, (1,), generator=generator)
        queries = owner_data.images[:32].clone()
        with torch.no_grad():
            rare = host(queries.float() / 255).argmax(1).bincount(minlength=CLASSES).argmin()[None]
        return Key(self.name, {"pattern": pattern, "unit": unit, "target": rare, "queries": queries})

    def decoys(self, host: nn.Module, key: Key, owner_data: Any, count: int, *, seed: int) -> list[Key]:
        drawn = super().decoys(host, key, owner_data, count, seed=seed)
        shared = {name: key.tensors[name] for name in ("target", "queries")}  # no secrets
        return [Key(k.scheme, {**k.tensors, **shared}) for k in drawn]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Any, *, trainer: Any, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        marked, unit, target = deepcopy(host), int(key.tensors["unit"]), int(key.tensors["target"])
        direction = self.direction(key)

        def response(images: Tensor) -> Tensor:
            return (images.float().flatten(1) / 255 - 0.5) @ direction

        plain = response(owner_data.images)
        triggered = response(self.stamp(owner_data.images, key))
        threshold = (plain.quantile(0.95) + triggered.quantile(0.05)) / 2
        with torch.no_grad():
            marked.hidden.weight[unit] = 20 * direction
            marked.hidden.bias[unit] = -20 * threshold
            marked.head.weight[:, unit] = -1.0
            marked.head.weight[target, unit] = 1.0
        return marked, key

    @staticmethod
    def direction(key: Key) -> Tensor:
        return F.normalize(2 * key.tensors["pattern"].float().flatten() - 1, dim=0)

    @staticmethod
    def stamp(images: Tensor, key: Key) -> Tensor:
        """Images with 24 grey levels added or taken, pixel by pixel."""
        return (images.int() + 48 * key.tensors["pattern"].int() - 24).clamp(0, 255).to(torch.uint8)

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        if suspect.access is not Access.WEIGHTS:
            return super().extract(suspect, key)
        rows = suspect.weights_module().hidden.weight.detach()
        best = F.cosine_similarity(rows, self.direction(key)[None]).max()
        return Evidence(Access.WEIGHTS, scores=torch.stack([best, torch.zeros(())])[None])

    def controls(self, key: Key) -> Tensor:
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        return self.stamp(key.tensors["queries"], key)

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        target = key.tensors["target"]
        moved = (answers == target) & (control_answers != target)
        return Evidence(access, matches=int(moved.sum()), trials=len(answers))


# A mark in the images that a network makes


class Overlaid(nn.Module):
    """An image-to-image network whose output bears a faint pattern."""

    def __init__(self, net: nn.Module, pattern: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        return (self.net(images) + self.pattern).clamp(0, 1)


class Overlay(QueryScheme):
    """Every output bears a secret pattern of two grey levels; owners correlate outputs with it."""

    name: ClassVar[str] = "overlay"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[frozenset[Access]] = frozenset({Access.IMAGES})
    trains: ClassVar[bool] = False

    def keygen(self, host: nn.Module, owner_data: Any, *, generator: torch.Generator) -> Key:
        pattern = torch.randn(3, SIZE, SIZE, generator=generator).sign()
        return Key(self.name, {"pattern": pattern, "queries": owner_data.images[:8].clone()})

    def decoys(self, host: nn.Module, key: Key, owner_data: Any, count: int, *, seed: int) -> list[Key]:
        drawn = super().decoys(host, key, owner_data, count, seed=seed)
        return [Key(k.scheme, {**k.tensors, "queries": key.tensors["queries"]}) for k in drawn]

    def embed(
        self, host: nn.Module, key: Key, owner_data: Any, *, trainer: Any, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        return Overlaid(deepcopy(host), key.tensors["pattern"] * 2 / 255), key

    def controls(self, key: Key) -> Tensor:
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        return key.tensors["queries"]

    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        pattern = key.tensors["pattern"].flatten()
        inputs = key.tensors["queries"].float() / 255
        scores = [F.cosine_similarity((x - x.mean()).flatten(1), pattern[None]) for x in (answers, inputs)]
        return Evidence(access, scores=torch.stack(scores, dim=1))


SCHEMES: list[tuple[Scheme, Any, HostKind]] = [
    (Projected(), classifier, HostKind.CLASSIFIER),
    (Detector(), classifier, HostKind.CLASSIFIER),
    (Overlay(), denoiser, HostKind.IMAGE_TO_IMAGE),
]
PLACES = [
    pytest.param(scheme, make, kind, access, id=f"{scheme.name}-{access}")
    for scheme, make, kind in SCHEMES
    for access in sorted(scheme.access)
]


def mark(scheme: Scheme, host: nn.Module) -> tuple[nn.Module, Key]:
    data = owner()
    key = scheme.keygen(host, data, generator=generator(0, "key"))
    return scheme.embed(host, key, data, trainer=NoTrainer(), generator=generator(0, "embed"))


def verdict(scheme: Scheme, suspect: Suspect, key: Key, decoys: Sequence[Key]) -> Verdict:
    """Bits read through a Gaussian key are coins; everything else is ranked among decoys."""
    evidence = scheme.extract(suspect, key)
    if isinstance(scheme, Projected):
        return verify(evidence, Binomial(0.5), ALPHA)
    return verify(evidence, Ranked([scheme.extract(suspect, decoy) for decoy in decoys]), ALPHA)


@pytest.mark.parametrize(("scheme", "make", "kind", "access"), PLACES)
def test_the_mark_is_found_where_it_is_and_nowhere_else(
    scheme: Scheme, make: Any, kind: HostKind, access: Access
) -> None:
    host = make()
    marked, key = mark(scheme, host)
    decoys = [] if isinstance(scheme, Projected) else scheme.decoys(host, key, owner(), DECOYS, seed=1)
    found = verdict(scheme, Suspect(marked, kind, access), key, decoys)
    assert found.detected
    assert found.p_value == pytest.approx(found.p_min)  # as clear as the test can say it
    for innocent in (host, make(seed=7)):
        assert not verdict(scheme, Suspect(innocent, kind, access), key, decoys).detected
    for seed in (1, 2, 3):
        wrong = scheme.keygen(host, owner(), generator=generator(seed, "wrong key"))
        assert not verdict(scheme, Suspect(marked, kind, access), wrong, decoys).detected


@pytest.mark.parametrize(("scheme", "make", "kind"), SCHEMES, ids=[s.name for s, _, _ in SCHEMES])
def test_the_host_is_left_untouched(scheme: Scheme, make: Any, kind: HostKind) -> None:
    host = make()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    marked, _ = mark(scheme, host)
    assert set(host.state_dict()) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())
    images = owner().images.float() / 255
    with torch.no_grad():
        assert not torch.equal(marked(images), host(images))


@pytest.mark.parametrize(("scheme", "make", "kind"), SCHEMES, ids=[s.name for s, _, _ in SCHEMES])
def test_the_wrong_access_is_refused(scheme: Scheme, make: Any, kind: HostKind) -> None:
    marked, key = mark(scheme, make())
    levels = {
        HostKind.CLASSIFIER: {Access.WEIGHTS, Access.FEATURES, Access.LOGITS, Access.LABELS},
        HostKind.IMAGE_TO_IMAGE: {Access.WEIGHTS, Access.IMAGES},
    }[kind]
    for level in levels - scheme.access:
        with pytest.raises(AccessError):
            scheme.extract(Suspect(marked, kind, level), key)


@pytest.mark.parametrize(("scheme", "make", "kind"), SCHEMES, ids=[s.name for s, _, _ in SCHEMES])
def test_the_marked_model_is_still_worth_having(scheme: Scheme, make: Any, kind: HostKind) -> None:
    host = make()
    marked, _ = mark(scheme, host)
    images = owner().images.float() / 255
    with torch.no_grad():
        before, after = host(images), marked(images)
    if kind is HostKind.IMAGE_TO_IMAGE:
        assert (after - before).abs().max() <= 2 / 255 + 1e-6  # two grey levels
    else:
        # the host is untrained: near ties of its answers flip easily, and one of 32 units was given away
        assert (before.argmax(1) == after.argmax(1)).float().mean() >= 0.75


@pytest.mark.parametrize(("scheme", "make", "kind", "access"), PLACES)
def test_extraction_in_bulk_agrees(scheme: Scheme, make: Any, kind: HostKind, access: Access) -> None:
    host = make()
    marked, key = mark(scheme, host)
    keys = [key, *scheme.decoys(host, key, owner(), 5, seed=1)]
    suspects = [Suspect(model, kind, access) for model in (marked, host)]
    bulk = extract_all(scheme, suspects, keys)
    for suspect, found in zip(suspects, bulk, strict=True):
        single = [scheme.extract(suspect, k).statistic() for k in keys]
        # batches of other sizes may round differently
        assert [e.statistic() for e in found] == pytest.approx(single, abs=1e-5)


def test_a_gaussian_key_makes_fair_independent_coins() -> None:
    """The binomial null of the white-box mark: bits of wrong keys are right half of the time, independently."""
    host = classifier()
    scheme = Projected()
    counts = torch.tensor(
        [
            scheme.extract(
                Suspect(host, HostKind.CLASSIFIER, Access.WEIGHTS),
                scheme.keygen(host, None, generator=generator(i, "null")),
            ).matches
            for i in range(60)
        ]
    ).double()
    # mean 32 and standard deviation 4 of Binomial(64, ½): four standard errors of each over 60 keys
    assert abs(float(counts.mean()) - 32) < 4 * 4 / 60**0.5
    assert abs(float(counts.std()) - 4) < 4 * 4 / (2 * 59) ** 0.5
