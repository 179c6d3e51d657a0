"""Overwriting: a second key of the attacker's own, in the layer that is known or one that is drawn, by any scheme."""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hallmark.attacks.overwrite import OverwriteAttack
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Attack, Evidence, HostKind, Key, Scheme, Suspect, generator
from hallmark.errors import AccessError, ConfigError
from hallmark.models import Encoder
from hallmark.models.layers import find_layer, weight_layers
from hallmark.stages.graph import Stage
from hallmark.stages.plan import plan
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings
from smoke import TINY
from stolen import attacked, data, differing, snapshot, unchanged, victim

KINDS = [HostKind.ENCODER, HostKind.CLASSIFIER]
HOST_LAYER = "layer3.conv1"
SEEN: list[Key] = []
"""Keys with which a mark was embedded, for tests to look at what attackers forget."""


@dataclass(frozen=True)
class Law:
    """Nested settings of a toy mark."""

    margin: float = 0.5
    scratch: bool = False


@dataclass(frozen=True)
class Bits(Scheme):
    """Signs of secret projections of one layer's weights, set in closed form."""

    bits: int = 16
    layer: str = HOST_LAYER
    law: Law = field(default_factory=Law)

    name: ClassVar[str] = "bits"
    version: ClassVar[int] = 3
    hosts: ClassVar[frozenset[HostKind]] = frozenset(KINDS)
    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    trains: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def keygen(self, host: nn.Module, owner_data: Any, *, generator: torch.Generator) -> Key:
        size = find_layer(host, self.layer).weight.numel()
        if self.bits > size:
            raise ConfigError(f"{self.bits} bits do not fit into {size} weights")
        projection = torch.randn(self.bits, size, generator=generator)
        message = torch.randint(0, 2, (self.bits,), generator=generator, dtype=torch.uint8)
        return Key(self.name, {"projection": projection, "message": message}, {"layer": self.layer})

    def embed(
        self, host: nn.Module, key: Key, owner_data: Any, *, trainer: Any, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        SEEN.append(key)
        marked, projection = deepcopy(host), key.tensors["projection"]
        if self.law.scratch:
            for parameter in marked.parameters():
                nn.init.zeros_(parameter)
        with torch.no_grad():
            weight = find_layer(marked, self.layer).weight
            wanted = (2 * key.tensors["message"].float() - 1) * self.law.margin
            lacking = wanted - projection @ weight.flatten()
            weight += (projection.T @ torch.linalg.solve(projection @ projection.T, lacking)).view(weight.shape)
        return marked, key

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        weight = find_layer(suspect.weights_module(), key.meta["layer"]).weight.detach().flatten()
        right = (key.tensors["projection"] @ weight > 0) == key.tensors["message"].bool()
        return Evidence(Access.WEIGHTS, matches=int(right.sum()), trials=len(right))


TARGET = {"_target_": f"{__name__}.Bits"}


@pytest.fixture
def trainer(tmp_path: Path) -> LightningTrainer:
    SEEN.clear()
    return LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path)


def overwrite(bits: float, **settings: Any) -> OverwriteAttack:
    return OverwriteAttack(
        **{"scheme": dict(TARGET), "varied": "bits", "amount": bits, "layer_field": "layer"} | settings
    )


def marked(kind: HostKind) -> tuple[nn.Module, Key]:
    model = victim(kind)
    key = Bits().keygen(model, None, generator=generator(7, "owner"))
    return Bits().embed(model, key, None, trainer=None, generator=generator(0))


def matches(model: nn.Module, key: Key, kind: HostKind) -> Tensor:
    return Bits().extract(Suspect(model, kind, Access.WEIGHTS), key).matches


# The second mark


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 200])
def test_the_attackers_own_mark_is_in_and_the_rest_stays(kind: HostKind, bits: int, trainer: LightningTrainer) -> None:
    stolen, owners = marked(kind)
    before = snapshot(stolen)
    result = attacked(overwrite(bits), stolen, kind, trainer)
    second = SEEN[-1]
    assert second.commitment() != owners.commitment()
    assert len(second.tensors["message"]) == bits
    assert matches(result, second, kind) == bits
    (changed,) = differing(stolen, result)  # one layer, from the stolen weights on
    assert changed.endswith(f"{HOST_LAYER}.weight")
    assert unchanged(stolen, before)
    assert not result.training


@pytest.mark.parametrize("kind", KINDS)
def test_longer_second_marks_hurt_the_first_more(kind: HostKind, trainer: LightningTrainer) -> None:
    stolen, owners = marked(kind)
    assert matches(stolen, owners, kind) == 16
    results = [attacked(overwrite(bits, changes={"law.margin": 20.0}), stolen, kind, trainer) for bits in (1, 500)]
    few, many = (matches(result, owners, kind) for result in results)
    assert many < few
    other = attacked(overwrite(500, changes={"layer": "layer2.conv2"}), stolen, kind, trainer)
    assert matches(other, owners, kind) == 16  # another layer is no threat


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer_known", [True, False])
def test_no_bits_change_nothing(kind: HostKind, layer_known: bool, trainer: LightningTrainer) -> None:
    attack = overwrite(0, layer_known=layer_known)
    assert attack.strength == 0
    stolen, _ = marked(kind)
    SEEN.clear()
    assert not differing(stolen, attacked(attack, stolen, kind, trainer))
    assert not SEEN


def test_equal_generators_draw_equal_keys(trainer: LightningTrainer) -> None:
    stolen, _ = marked(HostKind.ENCODER)
    SEEN.clear()
    for seed in (0, 0, 1):
        attacked(overwrite(8), stolen, HostKind.ENCODER, trainer, seed=seed)
    one, same, other = (key.commitment() for key in SEEN)
    assert one == same != other


def test_changes_reach_nested_settings(trainer: LightningTrainer) -> None:
    stolen, _ = marked(HostKind.ENCODER)
    scratch = {**TARGET, "law": {"scratch": True}}
    replaced = attacked(overwrite(8, scheme=scratch), stolen, HostKind.ENCODER, trainer)
    kept = attacked(overwrite(8, scheme=scratch, changes={"law.scratch": False}), stolen, HostKind.ENCODER, trainer)
    assert len(differing(stolen, kept)) == 1 < len(differing(stolen, replaced))


# A layer that is not known


def test_an_unknown_layer_is_drawn_among_those_with_room(trainer: LightningTrainer) -> None:
    model = victim(HostKind.CLASSIFIER)
    sizes = {name: layer.weight.numel() for name, layer in weight_layers(model).items()}
    room = {name for name, size in sizes.items() if size > 250}
    assert 5 <= len(room) < len(sizes)
    for seed in range(30):
        result = attacked(overwrite(250, layer_known=False), model, HostKind.CLASSIFIER, trainer, seed=seed)
        assert differing(model, result) == {f"{SEEN[-1].meta['layer']}.weight"}
    assert {key.meta["layer"] for key in SEEN} == room  # a fixed seed
    again = attacked(overwrite(250, layer_known=False), model, HostKind.CLASSIFIER, trainer, seed=29)
    assert not differing(result, again)


def test_a_mark_that_fits_nowhere_is_refused(trainer: LightningTrainer) -> None:
    for layer_known in (True, False):
        with pytest.raises(
            ConfigError, match=r"does not fit the stolen model: 100000 bits do not fit into \d+ weights"
        ):
            attacked(overwrite(1e5, layer_known=layer_known), victim(HostKind.ENCODER), HostKind.ENCODER, trainer)


# What the attack says about itself


def test_the_scheme_decides_what_is_needed() -> None:
    attack = overwrite(8)
    assert attack.hosts == Bits.hosts
    assert attack.needs_labels
    assert attack.knows == {"scheme", "layer"}
    assert overwrite(8, layer_known=False).knows == overwrite(8, layer_field="").knows == {"scheme"}
    wpe = OverwriteAttack({"_target_": "hallmark.schemes.wpe.WPE"}, "embedding.epochs", 2)
    assert wpe.hosts == {HostKind.ENCODER}
    assert not wpe.needs_labels
    assert wpe.knows == {"scheme"}
    assert (wpe.strength, wpe.unit) == (2.0, "wpe embedding.epochs")
    assert (attack.strength, attack.unit) == (8.0, "bits bits in layer3.conv1")
    assert overwrite(8, layer_known=False).unit == "bits bits layer unknown"


def test_defaults_and_version_of_the_scheme_identify_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = overwrite(8)
    spelled = overwrite(8, scheme={**TARGET, "layer": HOST_LAYER, "law": {"margin": 0.5}})
    assert identify(attack) == identify(spelled)
    assert instantiate(identify(attack), "attack", Attack) == attack
    assert identify(overwrite(9)) != identify(attack)
    monkeypatch.setattr(Bits, "version", 4)
    assert identify(overwrite(8)) != identify(attack)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amount": -1}, "amount must be a finite number of at least 0, got -1"),
        ({"amount": float("inf")}, "got inf"),
        ({"amount": 8.5}, "overwrite.scheme.bits"),
        ({"varied": ""}, "needs varied"),
        ({"varied": "bitz"}, r"bitz.*Bits takes: bits, layer, law"),
        ({"changes": {"law.depth": 1}}, "depth"),
        ({"layer_field": "", "layer_known": False}, "unknown layer needs layer_field"),
        ({"scheme": {}}, "needs a _target_"),
        ({"scheme": {"_target_": "hallmark.attacks.prune.Prune"}, "amount": 1, "varied": "fraction"}, "no Scheme"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overwrite(**{"bits": wrong.pop("amount", 8)} | wrong)


# A scheme that trains


def wpe(epochs: float) -> OverwriteAttack:
    embedding = {"epochs": 1, "batch": 32, "batch_norm": "train"}
    scheme = {"_target_": "hallmark.schemes.wpe.WPE", "queries": 8, "trigger": {"size": 3}, "embedding": embedding}
    return OverwriteAttack(scheme, "embedding.epochs", epochs)


def test_a_scheme_that_trains_goes_on_from_the_stolen_model(trainer: LightningTrainer) -> None:
    model = victim(HostKind.ENCODER)
    before = snapshot(model)
    assert not differing(model, attacked(wpe(0), model, HostKind.ENCODER, trainer))
    one, same, longer = (attacked(wpe(epochs), model, HostKind.ENCODER, trainer) for epochs in (1, 1, 3))
    assert isinstance(one, Encoder)
    assert not one.training
    assert not differing(one, same)
    assert differing(one, longer)
    assert unchanged(model, before)
    with torch.no_grad():  # trained on, not replaced: the features still resemble the stolen model's
        images = data().images.float() / 255
        similarity = nn.functional.cosine_similarity(one(images), model(images)).mean()
    assert similarity > 0.9


def test_answers_alone_do_not_suffice(trainer: LightningTrainer) -> None:
    suspect = Suspect(victim(HostKind.ENCODER), HostKind.ENCODER, Access.FEATURES)
    with pytest.raises(AccessError, match="weights access"):
        wpe(1).apply(suspect, data(), trainer=trainer, generator=generator(0))


def test_too_few_images_for_the_second_key_are_refused(trainer: LightningTrainer) -> None:
    attack = OverwriteAttack({"_target_": "hallmark.schemes.wpe.WPE", "queries": 500}, "embedding.epochs", 1)
    with pytest.raises(ConfigError, match=r"does not fit.*queries=500 exceeds"):
        attacked(attack, victim(HostKind.ENCODER), HostKind.ENCODER, trainer)


# In an experiment


def imitating(*more: str) -> list[Stage]:
    """Stages of an attack that imitates each mark of two, one of which is not trained in."""
    marks = ["+scheme@variants.wpe=wpe", "+scheme@variants.uchida=uchida", "variants.uchida.layer=layer3.conv2"]
    second = ["+attack@attacks.second=overwrite", "attacks.second.scheme=null", "attacks.second.strengths=[1]"]
    config = compose([*TINY, "scale.bits=16", *marks, *second, *more])
    stages = plan(config, lambda name: name).stages
    return [s for s in stages if s.kind == "attack" and "overwrite" in s.label]


def test_each_mark_is_overwritten_by_its_own_kind() -> None:
    stages = imitating("variants.uchida.embedding.situation=distill")
    found = {(s.config["attack"]["scheme"]["_target_"].rsplit(".", 1)[1], s.label.split(" on ")[1]) for s in stages}
    assert found == {
        ("WPE", "wpe in simclr seed 0"), ("WPE", "simclr seed 0"),
        ("Uchida", "uchida in simclr seed 0"), ("Uchida", "simclr seed 0"),
    }  # fmt: skip


def test_marks_that_are_not_trained_in_meet_no_second_of_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hallmark.schemes.uchida.scheme.Uchida.trains", False)
    stages = imitating("variants.uchida.embedding.situation=distill")
    assert {s.label.split(" on ")[1] for s in stages} == {"wpe in simclr seed 0", "simclr seed 0"}
