"""Extraction: losses by hand, a budget of queries that is kept, and copies that learn from features alone."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.distill import cosine_loss
from hallmark.attacks.extract import METHODS, Extract, contrast_loss, normalised_loss, queries
from hallmark.attacks.imitation import Imitation
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.data.resident import Batch
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Encoder, files
from hallmark.optimisation import Training
from hallmark.stages.plan import plan
from hallmark.supervised import LIGHT
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from smoke import TINY
from stolen import attacked, data, differing, snapshot, unchanged, victim

KIND = HostKind.ENCODER


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def thief(count: int = 96, **settings: Any) -> Extract:
    return Extract(count, "resnet_small", **{"width": 4, "batch": 32, "steps": 3} | settings)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Losses, against loops in float64


def test_stolen_encoder_measures_between_normalised_features() -> None:
    own, wanted = normal(7, 5), normal(7, 5, seed=1)
    total = sum(float((s / s.norm() - t / t.norm()).norm()) for s, t in zip(own.double(), wanted.double(), strict=True))
    assert float(normalised_loss(own, wanted)) == pytest.approx(total / 7, rel=1e-5)
    own = (3 * wanted).requires_grad_(True)
    normalised_loss(own, wanted).backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()  # at its minimum too


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_cont_steal_tells_each_query_from_all_other_features(temperature: float) -> None:
    """Each of the 2B features against the 2B − 1 others, of which one is its own query's."""
    own, wanted = normal(6, 5), normal(6, 5, seed=1)
    features = torch.cat([own, wanted]).double()
    features = features / features.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(12):
        logits = {j: float(features[i] @ features[j]) / temperature for j in range(12) if j != i}
        total += math.log(sum(math.exp(value) for value in logits.values())) - logits[(i + 6) % 12]
    assert float(contrast_loss(temperature)(own, wanted)) == pytest.approx(total / 12, rel=1e-4)


def test_views_count_as_often_as_they_weigh() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5))
    images, answers = data(8).images, normal(8, 5)
    settings: dict[str, Any] = {
        "classifier": model, "trained": model.parameters(), "training": Training(), "view": LIGHT, "seed": 0,
    }  # fmt: skip
    batch = Batch(images, answers, torch.arange(8), 0, 0, 8)

    def loss(views: float | None) -> float:
        module = Imitation(cosine_loss, views, **settings)
        module.log = lambda *args, **named: None  # type: ignore[method-assign,assignment]
        with torch.no_grad():
            return float(module.training_step(module.on_after_batch_transfer(batch, 0), 0))

    with torch.no_grad():
        plain = float(cosine_loss(model(images.float() / 255), answers))
    assert loss(0.0) == pytest.approx(plain, rel=1e-5)
    augmented = loss(None)
    assert augmented != pytest.approx(plain, rel=1e-3)
    assert loss(2.5) == pytest.approx(plain + 2.5 * augmented, rel=1e-5)


# What is asked


def test_images_are_asked_about_before_their_views() -> None:
    images = data(40).images
    few, many = queries(images, 25, seed=0), queries(images, 105, seed=0)
    rows = [next(i for i, image in enumerate(images) if torch.equal(image, asked)) for asked in few]
    assert len(set(rows)) == 25
    assert torch.equal(many[:25], few)
    assert (many.shape, many.dtype) == ((105, 3, 12, 12), torch.uint8)
    assert {tuple(image.flatten().tolist()) for image in many[:40]} == {tuple(i.flatten().tolist()) for i in images}
    assert len(many.flatten(1).unique(dim=0)) == 105  # nothing is paid for twice
    assert torch.equal(many, queries(images, 105, seed=0))
    assert not torch.equal(many, queries(images, 105, seed=1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [50, 200])
def test_so_many_answers_are_bought(method: str, count: int, trainer: LightningTrainer, tmp_path: Path) -> None:
    model = victim(KIND)
    before = snapshot(model)
    attack = thief(count, method=method)
    suspect = Suspect(model, KIND, attack.access_for(KIND))
    with pytest.raises(AccessError):
        suspect.weights_module()
    bare = attack.apply(suspect, data().unlabelled(), trainer=trainer, generator=generator(0))
    assert suspect.queries == count
    assert unchanged(model, before)
    assert not bare.training
    files.save(bare, tmp_path)  # as a stage does with every attacked model
    assert not differing(bare, files.load(tmp_path))


def test_answers_of_a_classifier_are_not_enough(trainer: LightningTrainer) -> None:
    suspect = Suspect(victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, Access.LOGITS)
    with pytest.raises(AccessError, match="features access was asked"):
        thief().apply(suspect, data(), trainer=trainer, generator=generator(0))


# What comes out


def neighbours(model: nn.Module, other: nn.Module) -> float:
    """How alike two encoders place images among each other: correlation of all pairwise cosines, whatever the axes."""
    found = []
    for net in (model, other):
        with torch.no_grad():
            features = torch.nn.functional.normalize(net(data().images.float() / 255))
        centred = features - features.mean(0)
        found.append((centred @ centred.T).flatten())
    return float(torch.corrcoef(torch.stack(found))[0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_the_copy_comes_to_see_alike(method: str, trainer: LightningTrainer) -> None:
    model = victim(KIND)
    few, many = (
        attacked(thief(steps=steps, method=method, training=Training(lr=1e-2)), model, KIND, trainer)
        for steps in (1, 120)
    )
    assert neighbours(many, model) > max(0.5, neighbours(few, model) + 0.1)


def test_another_architecture_keeps_its_own_features(trainer: LightningTrainer) -> None:
    stolen = attacked(Extract(96, "wrn10", width=1, steps=2, batch=32), victim(KIND), KIND, trainer)
    assert isinstance(stolen, Encoder)
    assert stolen.spec["backbone"] == "wrn10"
    assert stolen(data(3).images.float() / 255).shape == (3, stolen.num_features)


def test_equal_generators_make_equal_copies(trainer: LightningTrainer) -> None:
    one, same, other = (attacked(thief(), victim(KIND), KIND, trainer, seed=seed) for seed in (0, 0, 1))
    assert not differing(one, same)
    assert differing(one, other)


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 1}, "at least 2, got 1"),
        ({"queries": 2.5}, "whole number"),
        ({"method": "telepathy"}, "'telepathy'; allowed: cont_steal, cosine, l2, stolen_encoder"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"views": -1.0}, "views ≥ 0"),
        ({"temperature": 0.0}, "temperature > 0"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Extract(**{"backbone": "resnet_small", "queries": 8} | wrong)


def test_an_attack_is_its_configuration() -> None:
    attack = thief(3, method="cont_steal", training=Training("sgd", 0.1, 5e-4, "steps"))
    assert instantiate(identify(attack), "attack", Attack) == attack
    assert (attack.strength, attack.unit) == (3.0, "queries cont_steal resnet_small width 4")


# In an experiment


def composed(*more: str) -> dict[str, Any]:
    return compose([*TINY, "+attack@attacks.extract=extract", "attacks.extract.strengths=[64]", *more])


def attack_stages(config: dict[str, Any]) -> list[Any]:
    stages = plan(config, lambda name: name).stages
    return [s for s in stages if s.kind == "attack" and "extract" in s.label]


def test_queries_may_be_other_data() -> None:
    own = attack_stages(composed())
    other = attack_stages(composed("+data/downstream@attacks.extract.data=digits"))
    assert [s.config["data"]["part"] for s in own] == ["attacker"] * 2
    assert [(s.config["data"]["name"], s.config["data"]["split"]) for s in other] == [("digits", "train")] * 2
    assert all("data" not in s.config["attack"] for s in other)
    assert (
        other[0].label == "extract 64 queries cosine resnet_small width 4 of digits on " + own[0].label.split(" on ")[1]
    )
    same = attack_stages(composed("+data/downstream@attacks.extract.data=procedural"))
    assert [s.config["data"] for s in same] == [s.config["data"] for s in own]  # the owner's images stay the owner's


def test_other_data_must_be_a_set() -> None:
    config = copy.deepcopy(composed())
    config["attacks"]["extract"]["data"] = "svhn"
    with pytest.raises(ConfigError, match=r"attacks\.extract\.data is 'svhn'; write e\.g\."):
        plan(config, lambda name: name)
