"""How many of its images an attack says it looks at, against what it does when there are none."""

from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
from torch import nn

from hallmark.components import instantiate
from hallmark.composition import compose_parts
from hallmark.core import Attack, HostKind, Suspect, generator
from hallmark.models import Encoder
from hallmark.models.classifier import Classifier
from hallmark.models.image_to_image import Architecture, ImageToImage
from hallmark.stages.inputs import len_of
from hallmark.stages.plan import plan

CLASSES = 10


class TouchedError(Exception):
    """The attacker's images were looked at."""


class Nothing:
    """Where the attacker's images would be; whoever looks, or trains on them, learns that there are none."""

    def __len__(self) -> int:
        raise TouchedError

    def __getattr__(self, name: str) -> NoReturn:
        raise TouchedError

    def unlabelled(self) -> "Nothing":
        return self


def host(kind: HostKind) -> nn.Module:
    if kind is HostKind.IMAGE_TO_IMAGE:
        return ImageToImage(Architecture("unet", 4, 2)).eval()
    encoder = Encoder("resnet_small", 4)
    return (encoder if kind is HostKind.ENCODER else Classifier(encoder, CLASSES)).eval()


KINDS = {
    "matrix/encoders": HostKind.ENCODER,
    "matrix/classifiers": HostKind.CLASSIFIER,
    "matrix/images": HostKind.IMAGE_TO_IMAGE,
}


def attacks() -> Iterator[tuple[HostKind, Attack, int, int]]:
    """Every attack of the matrix that works on hosts of a kind, the images there are, and those in the plan."""
    for config in compose_parts(["experiment=matrix", "scale=smoke"]):
        seen = set()
        for subject in plan(config, str).subjects:
            if subject.attack != "none" and (subject.attack, subject.unit, subject.strength) not in seen:
                seen.add((subject.attack, subject.unit, subject.strength))
                settings: dict[str, Any] = dict(subject.stage.config)
                attack = instantiate(settings["attack"], "attack", Attack)
                yield KINDS[config["name"]], attack, len_of(settings["data"]), subject.images


@pytest.fixture(scope="module")
def listed() -> list[tuple[HostKind, Attack, int, int]]:
    return list(attacks())


def test_attacks_that_say_they_need_no_images_look_at_none_and_the_others_do(listed) -> None:
    assert len(listed) > 60
    said = {True: set(), False: set()}
    for kind, attack, images, planned in listed:
        victim = Suspect(host(kind), kind, attack.access_for(kind))
        try:
            attack.apply(victim, Nothing(), trainer=Nothing(), generator=generator(0, "attack"))  # type: ignore[arg-type]
            looked = False
        except TouchedError:
            looked = True
        said[looked].add(attack.name)
        assert looked == (attack.images_used(images) > 0), (kind, attack)
        assert planned == attack.images_used(images)
    assert {"finetune", "extract", "surrogate", "overwrite", "reestimate", "refit"} <= said[True]
    assert {"prune", "quantize", "perturb", "permute", "preprocess", "postprocess"} <= said[False]


def test_nobody_uses_more_images_than_there_are(listed) -> None:
    assert all(0 <= used <= images for _, _, images, used in listed)
    assert {("reestimate", 250), ("refit", 250), ("invert", 256)} <= {(a.name, used) for _, a, _, used in listed}


def test_a_chain_uses_what_its_greediest_step_does() -> None:
    steps = [
        {"_target_": "hallmark.attacks.prune.Prune", "fraction": 0.5},
        {"_target_": "hallmark.attacks.reestimate.Reestimate", "images": 8},
        {"_target_": "hallmark.attacks.quantize.Quantize", "bits_removed": 24},
    ]
    chain = {"_target_": "hallmark.attacks.chain.Chain", "steps": steps}
    used = [instantiate(chain | {"length": length}, "chain", Attack).images_used(100) for length in (1, 2, 3)]
    assert used == [0, 8, 8]


def test_training_after_pruning_takes_all_images() -> None:
    prune = {"_target_": "hallmark.attacks.prune.Prune", "fraction": 0.5}
    filters = {"_target_": "hallmark.attacks.filters.PruneFilters", "fraction": 0.5, "images": 16}

    def used(settings: dict[str, Any]) -> int:
        found: Attack = instantiate(settings, "attack", Attack)
        return found.images_used(100)

    assert [used(prune), used(prune | {"retrain_epochs": 1})] == [0, 100]
    assert [used(filters), used(filters | {"by": "activation"})] == [0, 16]
    assert used(filters | {"by": "activation", "retrain_epochs": 1}) == 100
