"""Distillation: losses by hand, a thief that sees answers alone, counts its queries and needs no labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.distill import Distill, cosine_loss, l2_loss, posterior_loss
from hallmark.attacks.imitation import imitate
from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Classifier, Encoder, files
from hallmark.optimisation import Training
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import CLASSES, attacked, data, differing, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def thief(epochs: int = 1, **settings: Any) -> Distill:
    return Distill("resnet_small", epochs, **{"width": 4, "batch": 32} | settings)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Losses, against loops in float64


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_posterior_loss_is_the_mean_divergence_times_squared_temperature(temperature: float) -> None:
    own, wanted = 3 * normal(7, 5), 3 * normal(7, 5, seed=1)
    total = 0.0
    for s, t in zip(own.double() / temperature, wanted.double() / temperature, strict=True):
        q, p = s.exp() / s.exp().sum(), t.exp() / t.exp().sum()
        total += float((p * (p / q).log()).sum())
    assert float(posterior_loss(own, wanted, temperature)) == pytest.approx(temperature**2 * total / 7, rel=1e-5)
    assert float(posterior_loss(wanted + 5, wanted, temperature)) == pytest.approx(0, abs=1e-4)  # the same posteriors


def test_feature_losses_are_means_over_images() -> None:
    own, wanted = normal(7, 5), normal(7, 5, seed=1)
    pairs = list(zip(own.double(), wanted.double(), strict=True))
    cosines = [float(s @ t / (s.norm() * t.norm())) for s, t in pairs]
    assert float(cosine_loss(own, wanted)) == pytest.approx(1 - sum(cosines) / 7, rel=1e-5)
    distance = sum(float((s - t).norm() ** 2) for s, t in pairs)
    size = sum(float(t.norm() ** 2) for _, t in pairs)
    assert float(l2_loss(own, wanted)) == pytest.approx(distance / size, rel=1e-5)
    assert float(cosine_loss(3 * wanted, wanted)) == pytest.approx(0, abs=1e-6)  # blind to length, unlike the distance
    assert float(l2_loss(3 * wanted, wanted)) == pytest.approx(4, rel=1e-5)


# What the thief sees


@pytest.mark.parametrize(("kind", "access"), [(KINDS[0], Access.FEATURES), (KINDS[1], Access.LOGITS)])
def test_one_answer_an_image_suffices(
    kind: HostKind, access: Access, trainer: LightningTrainer, tmp_path: Path
) -> None:
    model = victim(kind)
    before = snapshot(model)
    attack = thief()
    assert attack.access_for(kind) is access
    suspect = Suspect(model, kind, access)
    with pytest.raises(AccessError):
        suspect.weights_module()
    copy = attack.apply(suspect, data(80), trainer=trainer, generator=generator(0))
    assert suspect.queries == 80
    assert unchanged(model, before)
    assert not copy.training
    assert isinstance(copy, Encoder if kind is HostKind.ENCODER else Classifier)
    files.save(copy, tmp_path)  # as a stage does with every attacked model
    assert not differing(copy, files.load(tmp_path))


@pytest.mark.parametrize(
    ("kind", "access"),
    [
        (HostKind.CLASSIFIER, Access.LABELS),
        (HostKind.IMAGE_TO_IMAGE, Access.IMAGES),
        (HostKind.IMAGE_TO_IMAGE, Access.WEIGHTS),
    ],
)
def test_less_access_is_refused(kind: HostKind, access: Access, trainer: LightningTrainer) -> None:
    suspect = Suspect(victim(kind), kind, access)
    with pytest.raises(AccessError, match="logits access was asked"):
        thief().apply(suspect, data(), trainer=trainer, generator=generator(0))
    assert suspect.queries == 0


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_never_read(kind: HostKind, trainer: LightningTrainer) -> None:
    attack, model = thief(), victim(kind)
    assert not attack.needs_labels
    suspects = [Suspect(model, kind, attack.access_for(kind)) for _ in range(2)]
    labelled, bare = (
        attack.apply(suspect, images, trainer=trainer, generator=generator(0))
        for suspect, images in zip(suspects, (data(), data().unlabelled()), strict=True)
    )
    assert not differing(labelled, bare)


@pytest.mark.parametrize("kind", KINDS)
def test_many_images_are_asked_in_blocks(
    kind: HostKind, trainer: LightningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks change nothing but memory: none is larger than allowed, and all images get their own answers."""
    model, attack = victim(kind), thief(batch=96)
    whole = attacked(attack, model, kind, trainer)
    monkeypatch.setattr("hallmark.attacks.distill.BLOCK", 40)
    sizes = []
    query = Suspect._query
    monkeypatch.setattr(Suspect, "_query", lambda self, need, x: sizes.append(len(x)) or query(self, need, x))
    parts = attacked(attack, model, kind, trainer)
    assert sizes == [40, 40, 16]
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# What comes out


def divergence(copy: nn.Module, model: nn.Module, kind: HostKind) -> float:
    images = data().images.float() / 255
    with torch.no_grad():
        own, wanted = copy(images), model(images)
        return float(cosine_loss(own, wanted) if kind is HostKind.ENCODER else posterior_loss(own, wanted, 1.0))


def demanding(kind: HostKind) -> nn.Module:
    """A victim whose answers differ much between images."""
    model = victim(kind)
    if isinstance(model, Classifier):
        with torch.no_grad():
            logits = model(data().images.float() / 255)
            last = model.head[-1]
            last.bias.sub_(logits.mean(0)).mul_(5 / logits.std(0))
            last.weight.mul_(5 / logits.std(0)[:, None])
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "distance": "l2"}])
def test_the_copy_learns_to_answer_alike(kind: HostKind, settings: dict[str, Any], trainer: LightningTrainer) -> None:
    model = demanding(kind)
    first, last = (
        attacked(thief(epochs, training=Training(lr=1e-2), **settings), model, kind, trainer) for epochs in (1, 25)
    )
    assert divergence(last, model, kind) < 0.4 * divergence(first, model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_fresh_and_come_from_the_generator_alone(kind: HostKind, trainer: LightningTrainer) -> None:
    """At a vanishing learning rate the copy is what was drawn: the victim's weights have no way into it."""
    still = thief(training=Training(lr=1e-12, weight_decay=0.0))
    one = attacked(still, victim(kind), kind, trainer)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    same = attacked(still, victim(kind), kind, trainer)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = attacked(still, victim(kind), kind, trainer, seed=1)
    changed = victim(kind)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    elsewhere = attacked(still, changed, kind, trainer)
    for name, weight in one.named_parameters():
        if weight.ndim > 1:
            assert torch.equal(weight, same.get_parameter(name))
            torch.testing.assert_close(weight, elsewhere.get_parameter(name), rtol=0, atol=1e-9)
            assert not torch.equal(weight, other.get_parameter(name))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_make_equal_copies(kind: HostKind, trainer: LightningTrainer) -> None:
    one, same, other = (attacked(thief(), victim(kind), kind, trainer, seed=seed) for seed in (0, 0, 1))
    assert not differing(one, same)
    assert differing(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_copy_will_do(kind: HostKind, trainer: LightningTrainer) -> None:
    model = demanding(kind)
    first, last = (
        attacked(thief(epochs, width=2, training=Training(lr=1e-2)), model, kind, trainer) for epochs in (1, 25)
    )
    sizes = [sum(p.numel() for p in net.parameters()) for net in (last, model)]
    assert sizes[0] < sizes[1] / 3
    if isinstance(last, Classifier):
        assert last.classes == CLASSES
        assert divergence(last, model, kind) < 0.5 * divergence(first, model, kind)
    else:
        assert last.num_features == 16  # of its own; the map onto the victim's 32 stays behind
        assert last(data(3).images.float() / 255).shape == (3, 16)
        assert last.spec["width"] == 2


def test_fewer_features_learn_through_a_linear_map(trainer: LightningTrainer) -> None:
    images, model = data().images, victim(HostKind.ENCODER)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = model(images.float() / 255)
        net = nn.Sequential(Encoder("resnet_small", width=2), nn.Linear(16, 32))
    settings: dict[str, Any] = {"batch": 32, "training": Training(lr=1e-2), "trainer": trainer, "seed": 0}
    losses = []
    for epochs in (1, 25):
        imitate(net, images, wanted, l2_loss, epochs=epochs, **settings)
        with torch.no_grad():
            losses.append(float(l2_loss(net.eval()(images.float() / 255), wanted)))
    assert losses[1] < 0.3 * losses[0]


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "at least 1, got 0"),
        ({"epochs": 1.5}, "whole number"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"distance": "manhattan"}, "'manhattan'; allowed: cosine, l2"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distill(**{"backbone": "resnet_small", "epochs": 1} | wrong)


def test_an_unknown_backbone_is_refused(trainer: LightningTrainer) -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'vgg'"):
        attacked(Distill("vgg", 1), victim(HostKind.ENCODER), HostKind.ENCODER, trainer)


def test_the_unit_tells_variants_apart() -> None:
    assert (Distill("resnet18", 5).strength, Distill("resnet18", 5).unit) == (5.0, "epochs resnet18")
    assert thief(5).unit == "epochs resnet_small width 4"
    assert thief(5, distance="l2", temperature=1.5).unit == "epochs resnet_small width 4 l2 T 1.5"


def test_an_attack_is_its_configuration() -> None:
    attack = thief(3, training=Training("sgd", 0.1, 5e-4, "steps"))
    assert instantiate(identify(attack), "attack", Attack) == attack
