"""Pruning and fine-tuning: exact strengths, identities at zero, untouched victims, and no way to the owner's key."""

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from hallmark.attacks.adversarial import AdversarialTraining
from hallmark.attacks.chain import Chain
from hallmark.attacks.cleanse import NeuralCleanse
from hallmark.attacks.distill import Distill
from hallmark.attacks.filters import PruneFilters
from hallmark.attacks.finetune import FineTuneAttack
from hallmark.attacks.invert import Invert
from hallmark.attacks.overwrite import OverwriteAttack
from hallmark.attacks.perturb import WeightNoise, WeightShift
from hallmark.attacks.preprocess import Postprocess, Preprocess
from hallmark.attacks.prune import Prune, prune
from hallmark.attacks.quantize import Quantize
from hallmark.attacks.reestimate import Reestimate
from hallmark.attacks.refit import Refit
from hallmark.attacks.regularise import Regularise
from hallmark.attacks.remove import RemoveNeurons
from hallmark.components import identify, instantiate, locate
from hallmark.composition import CONF, compose
from hallmark.core import Access, Attack, HostKind, Key, Suspect, generator
from hallmark.core.attack import KNOWLEDGE
from hallmark.core.scheme import Images
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Encoder
from hallmark.stages.inputs import attack_settings, strengths
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from stolen import attacked, data, differing, prunable, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


# Pruning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 0.5, 0.999, 1.0])
def test_sparsity_is_exact(kind: HostKind, fraction: float, trainer: LightningTrainer) -> None:
    model = victim(kind)
    for weight in prunable(model):
        assert (weight != 0).all()  # so that every zero below was made by the attack
    together = torch.cat([w.flatten() for w in prunable(attacked(Prune(fraction, "global"), model, kind, trainer))])
    assert int((together == 0).sum()) == round(fraction * together.numel())
    for weight in prunable(attacked(Prune(fraction, "layer"), model, kind, trainer)):
        assert int((weight == 0).sum()) == round(fraction * weight.numel())


def test_sparsity_is_exact_among_equals() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 3))
    for weight in (model[0].weight, model[1].weight):
        nn.init.constant_(weight, 0.5)
    prune(model, 0.3, "global")
    assert sum(int((w == 0).sum()) for w in prunable(model)) == 39


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_smallest_weights_go_and_the_rest_stays(scope: str, trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    pruned = attacked(Prune(0.4, scope), model, HostKind.CLASSIFIER, trainer)
    pairs = list(zip(prunable(model), prunable(pruned), strict=True))
    groups = [pairs] if scope == "global" else [[pair] for pair in pairs]
    for group in groups:
        removed = torch.cat([before[after == 0].abs() for before, after in group])
        kept = torch.cat([before[after != 0].abs() for before, after in group])
        assert removed.max() <= kept.min()
    for before, after in pairs:
        assert torch.equal(after[after != 0], before[after != 0])
    weights = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert differing(model, pruned) <= weights  # neither biases nor normalisation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_nothing_and_everything(kind: HostKind, scope: str, trainer: LightningTrainer) -> None:
    model = victim(kind)
    assert not differing(model, attacked(Prune(0.0, scope), model, kind, trainer))
    assert not any(w.any() for w in prunable(attacked(Prune(1.0, scope), model, kind, trainer)))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_more_pruning_removes_a_superset(scope: str, trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    gone = torch.zeros(sum(w.numel() for w in prunable(model)), dtype=torch.bool)
    for fraction in (0.1, 0.3, 0.6, 0.9):
        pruned = attacked(Prune(fraction, scope), model, HostKind.ENCODER, trainer)
        now = torch.cat([w.flatten() for w in prunable(pruned)]) == 0
        assert (now | ~gone).all()
        assert now.sum() > gone.sum()
        gone = now


@pytest.mark.parametrize("kind", KINDS)
def test_retraining_keeps_the_zeros_and_moves_the_rest(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    before = snapshot(model)
    bare = attacked(Prune(0.5), model, kind, trainer)
    retrained = attacked(Prune(0.5, retrain_epochs=2, batch=32), model, kind, trainer)
    moved = 0
    for plain, after in zip(prunable(bare), prunable(retrained), strict=True):
        assert not after[plain == 0].any()
        moved += int((after[plain != 0] != plain[plain != 0]).sum())
    assert moved > 0.9 * sum(int((w != 0).sum()) for w in prunable(bare))
    assert unchanged(model, before)
    assert list(retrained.state_dict()) == list(before)
    assert not retrained.training


@pytest.mark.parametrize("wrong", [{"fraction": -0.1}, {"fraction": 1.1}, {"fraction": 0.5, "scope": "everything"}])
def test_impossible_prunings_are_refused(wrong: dict[str, typing.Any]) -> None:
    with pytest.raises(ConfigError):
        Prune(**wrong)


def test_strengths_carry_their_unit() -> None:
    assert (Prune(0.3).strength, Prune(0.3).unit) == (0.3, "fraction global")
    assert Prune(0.3, "layer", retrain_epochs=2).unit == "fraction layer retrained"
    assert (FineTuneAttack(3).strength, FineTuneAttack(3).unit) == (3.0, "epochs all")
    assert FineTuneAttack(3, "last", reinitialise=True).unit == "epochs last reinitialised"


# Fine-tuning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["all", "last"])
def test_no_epochs_change_nothing(kind: HostKind, scope: str, trainer: LightningTrainer) -> None:
    model = victim(kind)
    for again in (False, True):
        assert not differing(model, attacked(FineTuneAttack(0, scope, reinitialise=again), model, kind, trainer))


def last(kind: HostKind) -> str:
    """Names of what the last layer holds begin so."""
    return "backbone.layer4." if kind is HostKind.ENCODER else "head."


@pytest.mark.parametrize("kind", KINDS)
def test_scope_last_changes_the_last_layer_alone(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    before = snapshot(model)
    tuned = attacked(FineTuneAttack(2, "last", batch=32), model, kind, trainer)
    changed = differing(model, tuned)
    # not a weight, and not a running statistic of a frozen BatchNorm either
    assert changed == {name for name in before if name.startswith(last(kind))}
    assert unchanged(model, before)
    assert not tuned.training


@pytest.mark.parametrize("kind", KINDS)
def test_scope_all_changes_everything(kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    before = snapshot(model)
    tuned = attacked(FineTuneAttack(1, batch=32), model, kind, trainer)
    assert differing(model, tuned) == set(before)
    assert unchanged(model, before)
    assert not tuned.training


def weights_of(model: nn.Module, kind: HostKind) -> list[tuple[str, Tensor]]:
    return [(n, p.detach()) for n, p in model.named_parameters() if n.startswith(last(kind)) and p.ndim > 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["all", "last"])
def test_reinitialising_starts_afresh(kind: HostKind, scope: str, trainer: LightningTrainer) -> None:
    """At a learning rate of zero only the re-initialisation can change a weight."""
    model = victim(kind)
    with torch.no_grad():
        for _, weight in weights_of(model, kind):
            weight.add_(3)  # far from any initialisation
    still = FineTuneAttack(1, scope, lr=0.0, batch=32)
    afresh = FineTuneAttack(1, scope, reinitialise=True, lr=0.0, batch=32)
    names = {name for name, _ in model.named_parameters()}
    assert not differing(model, attacked(still, model, kind, trainer)) & names
    one, same, other = (attacked(afresh, model, kind, trainer, seed=seed) for seed in (0, 0, 1))
    assert differing(model, one) & names == {name for name in names if name.startswith(last(kind))} - {
        name
        for name in names
        if ".bn" in name or "shortcut.1" in name  # fresh BatchNorm weights are ones and zeros
    }
    for (_, weight), (_, again), (_, another) in zip(
        weights_of(one, kind), weights_of(same, kind), weights_of(other, kind), strict=True
    ):
        bound = 1 / (weight[0].numel() ** 0.5)  # torch's initialisation of linear layers and convolutions
        assert weight.abs().max() <= bound
        assert weight.std() > bound / 3  # a uniform law has 0.58 of its bound
        assert torch.equal(weight, again)
        assert not torch.equal(weight, another)


def test_fine_tuning_learns(trainer: LightningTrainer) -> None:
    """The loop does what it is for: the training images' accuracy rises well above that of the victim."""
    model = victim(HostKind.CLASSIFIER)
    tuned = attacked(FineTuneAttack(25, lr=1e-2, batch=32), model, HostKind.CLASSIFIER, trainer)
    images, labels = data().images.float() / 255, data().labels
    with torch.no_grad():
        before, after = ((m(images).argmax(1) == labels).float().mean() for m in (model, tuned))
    assert before < 0.5
    assert after > before + 0.3


def test_equal_seeds_fine_tune_equally(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    one, same, other = (
        attacked(FineTuneAttack(1, batch=32), model, HostKind.ENCODER, trainer, seed=seed) for seed in (0, 0, 1)
    )
    assert not differing(one, same)
    assert differing(one, other)


@pytest.mark.parametrize("attack", [FineTuneAttack(1), Prune(0.5, retrain_epochs=1)])
def test_other_classes_than_the_victims_are_refused(attack: Attack, trainer: LightningTrainer) -> None:
    with pytest.raises(ConfigError, match=r"answers 4 classes.*has 3"):
        attacked(attack, victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, trainer, classes=3)
    assert isinstance(attacked(attack, victim(HostKind.ENCODER), HostKind.ENCODER, trainer, classes=3), Encoder)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"epochs": 1.5}, {"epochs": 1, "scope": "first"}])
def test_impossible_fine_tunings_are_refused(wrong: dict[str, typing.Any]) -> None:
    with pytest.raises(ConfigError):
        FineTuneAttack(**wrong)


# What an attack can see


def attacks() -> Iterator[type[Attack]]:
    pending = Attack.__subclasses__()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.startswith("hallmark."):
            yield kind


def test_no_attack_can_be_handed_a_key() -> None:
    kinds = list(attacks())
    assert {Distill, FineTuneAttack, OverwriteAttack, Prune, Quantize, WeightNoise, WeightShift} <= set(kinds)
    assert {Invert, Postprocess, Preprocess, Reestimate, Refit, RemoveNeurons} <= set(kinds)
    assert {AdversarialTraining, Chain, NeuralCleanse, PruneFilters, Regularise} <= set(kinds)
    for kind in [Attack, *kinds]:
        signature = inspect.signature(kind.apply)
        assert list(signature.parameters) == ["self", "victim", "attacker_data", "trainer", "generator"], kind
        assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()), kind
        hints = typing.get_type_hints(kind.apply)
        assert hints["victim"] is Suspect
        assert hints["attacker_data"] is Images
        assert Key not in hints.values()
        assert kind is Attack or Key not in typing.get_type_hints(kind).values()  # nor as a setting


OVERWRITES = [
    OverwriteAttack({"_target_": f"hallmark.schemes.{scheme}"}, varied="bits", amount=8)
    for scheme in ("uchida.Uchida", "riga.RIGA", "deepsigns.DeepSigns")
]


@pytest.mark.parametrize(
    "attack",
    [
        FineTuneAttack(1),
        FineTuneAttack(0),
        Prune(0.5),
        Quantize(24),
        WeightNoise(0.1),
        WeightShift(1.0),
        *OVERWRITES,
        Preprocess("jpeg", 50),
        Postprocess("rounding", 0.5),
        PruneFilters(0.5),
        Chain([identify(Prune(0.5)), identify(Quantize(24))], 2),
    ],
)
def test_an_attack_needs_the_access_it_declares(attack: Attack, trainer: LightningTrainer) -> None:
    suspect = Suspect(victim(HostKind.CLASSIFIER), HostKind.CLASSIFIER, Access.LABELS)
    with pytest.raises(AccessError, match="weights access"):
        attack.apply(suspect, data(), trainer=trainer, generator=generator(0))


@pytest.mark.parametrize(
    ("attack", "knows"),
    [
        (FineTuneAttack(1), set()),
        (Prune(0.5), set()),
        (Prune(0.5, layers=("layer2.conv2",)), {"layer"}),
        (Invert(1), {"scheme"}),
        (OVERWRITES[0], {"scheme"}),
        (Chain([identify(Prune(0.5, layers=("layer2.conv2",))), identify(OVERWRITES[0])], 2), {"scheme", "layer"}),
    ],
)
def test_an_attacker_knows_what_it_declares(attack: Attack, knows: set[str]) -> None:
    assert attack.knows == knows <= set(KNOWLEDGE)


def test_every_attack_ships_its_configuration() -> None:
    shipped = {OmegaConf.load(path)["_target_"] for path in (Path(CONF) / "attack").glob("*.yaml")}
    assert {locate(target) for target in shipped} == {kind for kind in attacks() if not inspect.isabstract(kind)}


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("adversarial_training", "adversarial_training"),
        ("chain", "chain"),
        ("fine_prune", "prune"),
        ("finetune_pairs", "finetune"),
        ("finetune_refit", "finetune"),
        ("neural_cleanse", "neural_cleanse"),
        ("prune_filters", "prune"),
        ("regularise", "regularise"),
    ],
)
def test_shipped_settings_are_an_attack_at_every_strength(name: str, verb: str) -> None:
    group = compose(["experiment=demo", "scale=smoke", f"+attack@attacks.tried={name}"])["attacks"]["tried"]
    for strength in strengths(group):
        attack = instantiate(attack_settings(group, strength), f"attacks.{name}", Attack)
        assert (attack.name, attack.strength) == (verb, strength)
