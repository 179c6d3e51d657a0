"""Attacks that train: REFIT and its options, regularisation, adversarial training; against plain formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.adversarial import AdversarialTraining, ascend
from hallmark.attacks.cleanse import NeuralCleanse
from hallmark.attacks.consolidate import Consolidation, fisher
from hallmark.attacks.finetune import FineTuneAttack
from hallmark.attacks.labelled import label_rest
from hallmark.attacks.regularise import Regularise
from hallmark.components import identify, instantiate
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.errors import AccessError, ConfigError
from hallmark.models import files
from hallmark.optimisation import Training
from hallmark.supervised import train_classifier
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import CLASSES, attacked, data, differing, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]
REFIT: dict[str, Any] = {"optimiser": "sgd", "schedule": "exponential", "lr": 0.05, "batch": 32}
ATTACKS: list[Attack] = [
    FineTuneAttack(1, **REFIT),
    FineTuneAttack(1, **REFIT, ewc=10.0, labelled=0.5),
    Regularise(0.1, epochs=1, recovery_epochs=1, batch=32),
    AdversarialTraining(1, steps=2, batch=32),
    NeuralCleanse(1, index=0.0, steps=8, images=16, success=0.2, batch=32),
]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def name_of(attack: Attack) -> str:
    return f"{attack.name} {attack.unit}"


# What all have in common


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_the_victim_stays_and_the_result_is_stored(
    attack: Attack, kind: HostKind, trainer: LightningTrainer, tmp_path: Path
) -> None:
    assert kind in attack.hosts
    assert attack.needs_labels
    model = victim(kind)
    before = snapshot(model)
    result, same = (attacked(attack, model, kind, trainer) for _ in range(2))
    assert unchanged(model, before)
    assert list(result.state_dict()) == list(before)
    assert differing(model, result) == set(before)  # all layers are trained
    assert not differing(result, same)
    assert not any(m.training for m in result.modules())
    (tmp_path / "model").mkdir()
    files.save(result, tmp_path / "model")
    assert not differing(files.load(tmp_path / "model"), result)


@pytest.mark.parametrize(
    "attack", [FineTuneAttack(0, **REFIT, ewc=1.0), Regularise(0.0), AdversarialTraining(0), NeuralCleanse(0)]
)
def test_strength_nothing_is_the_identity(attack: Attack, trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    assert attack.strength == 0
    assert not differing(model, attacked(attack, model, HostKind.CLASSIFIER, trainer))


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_an_attack_is_its_configuration_and_needs_weights(attack: Attack, trainer: LightningTrainer) -> None:
    assert instantiate(identify(attack), "attack", Attack) == attack
    assert attack.knows == frozenset()
    suspect = Suspect(victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, Access.LABELS)
    with pytest.raises(AccessError, match="weights access"):
        attack.apply(suspect, data(), trainer=trainer, generator=generator(0))


@pytest.mark.parametrize("attack", ATTACKS, ids=name_of)
def test_other_classes_than_the_victims_are_refused(attack: Attack, trainer: LightningTrainer) -> None:
    with pytest.raises(ConfigError, match=r"answers 4 classes.*has 3"):
        attacked(attack, victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, trainer, classes=3)


def test_units_say_the_variant() -> None:
    assert [attack.unit for attack in ATTACKS] == [
        "epochs all sgd lr 0.05 exponential",
        "epochs all sgd lr 0.05 exponential ewc 10 labelled 0.5",
        "weight decay 1 epochs then 1 without",
        "epochs pgd 8 levels 2 steps",
        "epochs triggers of 8 steps on 16 images index 0",
    ]
    # what REFIT brought leaves fine-tuning what it was
    assert not {"ewc", "labelled"} & set(identify(FineTuneAttack(1)))


@pytest.mark.parametrize(
    ("attack", "wrong", "match"),
    [
        (FineTuneAttack, {"epochs": 1, "ewc": -1.0}, "finite ewc of at least 0"),
        (FineTuneAttack, {"epochs": 1, "labelled": 0.0}, "labelled in (0, 1]"),
        (FineTuneAttack, {"epochs": 1, "schedule": "linear"}, "allowed: cosine, exponential, steps"),
        (Regularise, {"decay": -0.1}, "at least 0, got -0.1"),
        (Regularise, {"decay": 0.1, "epochs": 0}, "epochs ≥ 1"),
        (Regularise, {"decay": 0.1, "lr": -1.0}, "lr ≥ 0"),
        (AdversarialTraining, {"epochs": -1}, "at least 0, got -1"),
        (AdversarialTraining, {"epochs": 1, "epsilon": 0.0}, "(0, 255] grey levels"),
        (AdversarialTraining, {"epochs": 1, "steps": 0}, "steps ≥ 1"),
        (NeuralCleanse, {"epochs": 1.5}, "got 1.5"),
        (NeuralCleanse, {"epochs": 1, "share": 0.0}, "(0, 1]"),
        (NeuralCleanse, {"epochs": 1, "images": 0}, "images ≥ 1"),
    ],
)
def test_impossible_settings_are_refused(attack: type[Attack], wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attack(**wrong)
    assert match in str(caught.value)


# What training offers them


def test_images_change_and_the_loss_grows_as_asked(trainer: LightningTrainer) -> None:
    """At a penalty's gradient alone (no image says anything) every weight falls by lr · gradient, step by step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, CLASSES))
    start = model[1].weight.detach().clone()
    steps, rates = [], []

    def change(images: Tensor, labels: Tensor, step: int) -> Tensor:
        assert images.shape == (32, 3, 12, 12)
        assert labels.shape == (32,)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        steps.append(step)
        return torch.zeros_like(images)  # so that the weights' own gradient is nothing

    def penalty(lr: float) -> Tensor:
        rates.append(lr)
        return 2 * model[1].weight.sum()

    train_classifier(
        model, data(), trained=[model[1].weight], epochs=2, batch=32, trainer=trainer, seed=0, change=change,
        penalty=penalty, training=Training("sgd", 0.5, 0.0, "exponential"),
    )  # fmt: skip
    assert steps == list(range(6))
    assert rates == pytest.approx([0.5 * 0.9 ** (60 * step / 6) for step in range(6)])
    momentum, moved = 0.0, 0.0
    for lr in rates:  # Nesterov: the gradient and the momentum after it
        momentum = 0.9 * momentum + 2
        moved += lr * (2 + 0.9 * momentum)
    assert torch.allclose(model[1].weight, start - moved, rtol=1e-4)


# REFIT


def test_information_is_the_mean_square_of_the_score() -> None:
    """A linear softmax classifier's, by hand: the gradient of log p(y) is (e_y − p) xᵀ."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, CLASSES)).double()
    images = data(20).images
    found = fisher(_Float(model), list(model.parameters()), images, generator=generator(3))
    rng, weight, bias = generator(3), torch.zeros(CLASSES, 432).double(), torch.zeros(CLASSES).double()
    for image in images.double().flatten(1) / 255:
        with torch.no_grad():
            p = model[1](image).float().softmax(0)
        y = int(torch.multinomial(p, 1, generator=rng))
        score = (F.one_hot(torch.tensor(y), CLASSES) - p).double()
        weight += (score[:, None] * image[None]) ** 2
        bias += score**2
    largest = max(weight.max(), bias.max())
    assert torch.allclose(found[0], weight / largest, atol=1e-5)
    assert torch.allclose(found[1], bias / largest, atol=1e-5)
    assert max(float(part.max()) for part in found) == 1.0


class _Float(nn.Module):
    """A float64 network for float32 images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.double())


def test_the_penalty_is_a_spring_that_never_swings_past_where_it_began() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    information = torch.tensor([0.0, 0.01, 1.0])
    spring = Consolidation([weight], [information], strength=10.0)
    with torch.no_grad():
        weight.add_(torch.tensor([1.0, 2.0, -3.0]))
    # λF is 0, 0.1 and 10; at a rate of 0.5 no more than 2
    assert float(spring(0.5)) == pytest.approx((0 * 1 + 0.1 * 4 + 2 * 9) / 2)
    assert float(spring(0.0)) == pytest.approx((0 * 1 + 0.1 * 4 + 10 * 9) / 2)
    (gradient,) = torch.autograd.grad(spring(0.5), weight)
    assert (weight - 0.5 * gradient).tolist() == pytest.approx([2.0, -0.1, 3.0])  # the stiffest is back at its place
    assert float(Consolidation([], [], 1.0)(0.1)) == 0.0


def test_consolidation_holds_what_answers_hang_on(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    information = fisher(model, list(model.parameters()), data().images, generator=generator(0))

    def strain(attack: Attack) -> float:
        result = attacked(attack, model, HostKind.CLASSIFIER, trainer)
        moved = [(a - b).square() for a, b in zip(result.parameters(), model.parameters(), strict=True)]
        return float(sum((f * m).sum() for f, m in zip(information, moved, strict=True)))

    free, held = (strain(FineTuneAttack(3, **REFIT, ewc=ewc)) for ewc in (0.0, 1000.0))
    assert held < free / 2


def test_a_layer_that_starts_afresh_is_not_held(trainer: LightningTrainer) -> None:
    """Held at any cost, the rest stays; the head, which was drawn anew, is free to learn."""
    model = victim(HostKind.CLASSIFIER)
    attack = FineTuneAttack(2, **{**REFIT, "lr": 1e-3}, reinitialise=True, ewc=1e12, weight_decay=0.0)
    result = attacked(attack, model, HostKind.CLASSIFIER, trainer)
    still = attacked(FineTuneAttack(1, lr=0.0, reinitialise=True), model, HostKind.CLASSIFIER, trainer)
    assert all(not torch.equal(a, b) for a, b in zip(result.head.parameters(), still.head.parameters(), strict=True))


def test_labels_that_are_withheld_are_never_used(trainer: LightningTrainer) -> None:
    model, images = victim(HostKind.CLASSIFIER), data()
    attack = FineTuneAttack(1, **REFIT, labelled=0.25)
    known = torch.randperm(len(images), generator=generator(0, "attack"))[:24]
    hidden = torch.ones(len(images), dtype=torch.bool)
    hidden[known] = False
    other = type(images)("other", images.images, torch.where(hidden, (images.labels + 1) % CLASSES, images.labels), 4)
    suspect = Suspect(model, HostKind.CLASSIFIER, Access.WEIGHTS)
    one, two = (
        attack.apply(suspect, given, trainer=trainer, generator=generator(0, "attack")) for given in (images, other)
    )
    assert not differing(one, two)
    assert differing(one, attacked(FineTuneAttack(1, **REFIT), model, HostKind.CLASSIFIER, trainer))
    filled = label_rest(model, other, known)
    with torch.no_grad():
        answers = model(images.images.float() / 255).argmax(1)
    assert torch.equal(filled.labels, torch.where(hidden, answers, images.labels))
    with pytest.raises(ConfigError, match=r"labelled=0.001 leaves no label of 96 images"):
        attacked(FineTuneAttack(1, labelled=0.001), model, HostKind.CLASSIFIER, trainer)


# Regularisation


def test_the_penalty_shrinks_weights_and_recovery_does_not(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)

    def size(attack: Attack) -> float:
        result = attacked(attack, model, HostKind.CLASSIFIER, trainer)
        return float(sum(p.square().sum() for n, p in result.named_parameters() if p.ndim == 4)) ** 0.5

    usual, strong = (size(Regularise(decay, 5, 0, batch=32)) for decay in (5e-4, 1.0))
    # 15 steps of lr 0.01 falling along a cosine, ten times that by momentum: exp(−15 · 0.05) at the most
    assert strong < 0.7 * usual
    assert size(Regularise(1.0, 5, 1, batch=32)) == pytest.approx(strong, rel=0.1)


# Adversarial training


def test_ascent_finds_the_worst_case_of_a_linear_classifier() -> None:
    """Of two classes the worst change is the bound times the sign of the difference of their weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    images = torch.rand(6, 3, 8, 8, generator=generator(1))
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    found = ascend(model, images, labels, epsilon=0.1, steps=9, step=0.03, generator=generator(2))
    towards = (model[1].weight[1 - labels] - model[1].weight[labels]).detach().view_as(images).sign()
    assert torch.allclose(found, (images + 0.1 * towards).clamp(0, 1), atol=1e-6)
    # fewer steps than the way there leave some pixels inside
    short = ascend(model, images, labels, epsilon=0.1, steps=1, step=0.03, generator=generator(2))
    assert (short - images).abs().max() <= 0.1 + 1e-6
    assert F.cross_entropy(model(images), labels) < F.cross_entropy(model(short), labels)
    assert F.cross_entropy(model(short), labels) < F.cross_entropy(model(found), labels)


def test_hardened_networks_withstand_more(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    plain = attacked(FineTuneAttack(20, lr=1e-2, batch=32), model, HostKind.CLASSIFIER, trainer)
    hard = attacked(AdversarialTraining(20, lr=1e-2, batch=32), model, HostKind.CLASSIFIER, trainer)
    images, labels = data().images.float() / 255, data().labels

    def accuracy(network: nn.Module) -> float:
        worst = ascend(network, images, labels, epsilon=8 / 255, steps=7, step=2 / 255, generator=generator(0))
        with torch.no_grad():
            return float((network(worst).argmax(1) == labels).float().mean())

    assert accuracy(hard) > accuracy(plain)
