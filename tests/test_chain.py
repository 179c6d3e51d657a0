"""Chains: one step is that attack, later steps see what earlier ones made, and what a chain needs is what they need."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from hallmark.attacks.chain import Chain
from hallmark.attacks.distill import Distill
from hallmark.attacks.finetune import FineTuneAttack
from hallmark.attacks.overwrite import OverwriteAttack
from hallmark.attacks.perturb import WeightNoise
from hallmark.attacks.prune import Prune
from hallmark.attacks.quantize import Quantize
from hallmark.attacks.refit import Refit
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Attack, HostKind, Suspect, generator
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.stages.plan import plan
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from smoke import TINY
from stolen import attacked, data, differing, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def chain(*attacks: Attack, length: int | None = None) -> Chain:
    return Chain([identify(attack) for attack in attacks], len(attacks) if length is None else length)


THIEF = Distill("resnet_small", 1, 4, batch=32)
MARK = OverwriteAttack({"_target_": "hallmark.schemes.uchida.Uchida"}, varied="bits", amount=8, layer_field="layer")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "attack", [WeightNoise(0.1), Prune(0.5, order="random"), FineTuneAttack(1, batch=32), THIEF], ids=lambda a: a.name
)
def test_a_chain_of_one_is_that_attack(attack: Attack, kind: HostKind, trainer: LightningTrainer) -> None:
    model = victim(kind)
    alone = chain(attack)
    result = attacked(alone, model, kind, trainer)
    assert not differing(result, attacked(attack, model, kind, trainer))
    longer = chain(attack, WeightNoise(0.5), length=1)
    assert not differing(result, attacked(longer, model, kind, trainer))
    for made in (alone, longer):
        assert (made.hosts, made.access, made.knows) == (attack.hosts, attack.access, attack.knows)
        assert made.access_for(kind) is attack.access_for(kind)
        assert made.needs_labels == attack.needs_labels


def test_each_step_sees_what_the_one_before_it_made(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    before = snapshot(model)
    result = attacked(chain(Quantize(28), Prune(0.5)), model, HostKind.CLASSIFIER, trainer)
    by_hand = attacked(
        Prune(0.5), attacked(Quantize(28), model, HostKind.CLASSIFIER, trainer), HostKind.CLASSIFIER, trainer
    )
    assert not differing(result, by_hand)
    assert unchanged(model, before)
    noisy = attacked(chain(WeightNoise(0.1), WeightNoise(0.1)), model, HostKind.CLASSIFIER, trainer)
    weight, once = (
        dict(m.named_parameters())["encoder.backbone.layer4.conv2.weight"]
        for m in (model, attacked(WeightNoise(0.1), model, HostKind.CLASSIFIER, trainer))
    )
    twice = noisy.encoder.backbone.layer4.conv2.weight
    first, second = (once - weight).flatten(), (twice - once).flatten()
    # each step draws noise of its own: 9,216 pairs correlate by chance up to 4 / √9216
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.042


@pytest.mark.parametrize("kind", KINDS)
def test_who_prunes_a_copy_has_seen_answers_alone(kind: HostKind, trainer: LightningTrainer) -> None:
    attack = chain(THIEF, Prune(0.5), FineTuneAttack(1, batch=32))
    suspect = Suspect(victim(kind), kind, attack.access_for(kind))
    assert suspect.access is (Access.FEATURES if kind is HostKind.ENCODER else Access.LOGITS)
    result = attack.apply(suspect, data(), trainer=trainer, generator=generator(0))
    assert suspect.queries == len(data())  # of the stolen model itself; the copy answers no one
    assert isinstance(result, Encoder if kind is HostKind.ENCODER else Classifier)


class Curious(Attack):
    """Notes the labels that it is shown."""

    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind)
    access: ClassVar[Access] = Access.WEIGHTS
    name: ClassVar[str] = "curious"
    strength: ClassVar[float] = 1.0
    unit: ClassVar[str] = "look"
    seen: ClassVar[list[list[int]]] = []

    def apply(self, victim: Suspect, attacker_data: Any, *, trainer: Any, generator: torch.Generator) -> nn.Module:
        self.seen.append(attacker_data.labels.unique().tolist())
        return victim.weights_module()


def test_labels_are_withheld_from_steps_without_need(
    trainer: LightningTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chain(Prune(0.1), FineTuneAttack(1, batch=32))
    assert made.needs_labels
    monkeypatch.setitem(vars(made), "_listed", [Curious(), FineTuneAttack(0)])
    attacked(made, victim(HostKind.ENCODER), HostKind.ENCODER, trainer)
    assert Curious.seen == [[-1]]


def test_a_chain_needs_and_knows_what_its_steps_do() -> None:
    made = chain(MARK, Prune(0.5, layers=("conv1",)), Refit(10))
    assert made.hosts == {HostKind.CLASSIFIER}  # those of refitting
    assert made.knows == {"scheme", "layer"}
    assert made.needs_labels
    assert (made.name, made.strength) == ("chain", 3.0)
    short = chain(Prune(0.5), Quantize(24), Refit(10), length=2)
    assert short.hosts == frozenset(HostKind)
    assert not short.needs_labels
    listed = "prune 0.5 fraction global, quantize 24 bits removed per_tensor, refit 10 labelled images bias"
    assert short.unit == f"steps of {listed}"  # whatever the strength, so that one curve goes through all
    assert instantiate(identify(made), "attack", Attack) == made


def test_settings_are_spelled_out() -> None:
    plain = Chain([{"_target_": "hallmark.attacks.prune.Prune", "fraction": 0.5}], 1)
    assert plain == chain(Prune(0.5))
    assert plain.steps[0]["scope"] == "global"


def test_hosts_are_checked_up_to_the_first_copy() -> None:
    with torch.device("meta"):
        host = Encoder("resnet_small", 4)
    elsewhere = Prune(0.5, layers=("nowhere",))
    with pytest.raises(ConfigError, match="unknown layer 'nowhere'"):
        chain(WeightNoise(0.1), elsewhere).check_host(host)
    chain(THIEF, elsewhere).check_host(host)  # the copy may have it


@pytest.mark.parametrize(
    ("steps", "length", "match"),
    [
        ([], 1, "1 … 0 steps, got 1"),
        ([identify(Prune(0.5))], 0, "1 … 1 steps, got 0"),
        ([identify(Prune(0.5))], 2, "1 … 1 steps, got 2"),
        ([{"fraction": 0.5}], 1, r"chain\.steps\[0\] needs a _target_"),
        ([{"_target_": "hallmark.schemes.uchida.Uchida"}], 1, "which is no Attack"),
        ([{"_target_": "hallmark.attacks.prune.Prune", "share": 1}], 1, r"chain\.steps\[0\].*Prune takes: fraction"),
    ],
)
def test_impossible_chains_are_refused(steps: list[dict[str, Any]], length: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Chain(steps, length)


def test_a_chain_is_planned_and_its_work_is_that_of_its_steps() -> None:
    experiment = plan(compose([*TINY, "+attack@attacks.chain=chain"]), lambda name: name)
    chains = {(s.suspect, s.strength): s for s in experiment.subjects if s.attack == "chain"}
    assert set(chains) == {("marked", 2.0), ("marked", 3.0), ("attacked_innocent", 3.0)}
    assert len({subject.unit for subject in chains.values()}) == 1
    assert len({subject.stage.key for subject in chains.values()}) == 3
    tuned = next(s for s in experiment.subjects if s.attack == "finetune" and s.suspect == "marked")
    # no image goes through the network for pruning and quantising
    assert chains["marked", 3.0].stage.work == chains["marked", 2.0].stage.work == tuned.stage.work > 0
