import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest

from hallmark.components import NEUTRAL, identify
from hallmark.composition import compose
from hallmark.core import Access, HostKind, Scheme
from hallmark.errors import ConfigError
from hallmark.schemes.wpe import WPE
from hallmark.stages.graph import Stage, in_order
from hallmark.stages.inputs import host_data
from hallmark.stages.plan import plan
from smoke import TINY


def prints(name: str) -> str:
    return f"print of {name}"


@pytest.fixture(scope="module")
def config():
    return compose(["experiment=wpe/main", "scale=smoke"])


def keys(config, fingerprint=prints) -> set[str]:
    return {stage.key for stage in plan(config, fingerprint).stages}


def changed(config, path: str, value: object):
    copied = copy.deepcopy(config)
    *outer, last = path.split(".")
    place = copied
    for name in outer:
        place = place[name]
    assert place[last] != value
    place[last] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("store", "elsewhere"),
        ("results", "elsewhere"),
        ("logger.kind", "csv"),
        ("budget", "1m"),
        ("trainer.progress", True),
        ("trainer.checkpoint_every_s", 1.0),
        ("fpr_alpha", 0.05),
        ("tolerance", 0.5),
    ],
)
def test_what_cannot_change_a_result_changes_no_key(config, path, value):
    assert keys(changed(config, path, value)) == keys(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("trainer.precision", "16-mixed"),
        ("trainer.devices", 2),
        ("host.width", 8),
        ("data.limit", 500),
    ],
)
def test_what_reaches_pretraining_changes_every_key(config, path, value):
    assert not keys(changed(config, path, value)) & keys(config)


def test_a_changed_file_in_the_host_data_changes_every_key(config):
    assert not keys(config, lambda name: f"other {name}") & keys(config)


def test_a_change_downstream_leaves_what_is_upstream(config):
    before, after = plan(config, prints).stages, plan(changed(config, "scheme.embedding.mark", 2.0), prints).stages
    kept = {s.key for s in before} & {s.key for s in after}
    assert {s.kind for s in before if s.key in kept} == {"pretrain", "transfer", "attack"}
    assert all(s.key in kept for s in before if s.kind == "pretrain")
    assert not any(s.key in kept for s in before if s.kind in ("embed", "verify"))


def test_one_pretraining_serves_every_scheme_attack_and_task(config):
    count = Counter(stage.kind for stage in plan(config, prints).stages)
    assert count["pretrain"] == count["embed"] == 3
    assert count["attack"] == 3 * sum(len(a["strengths"]) + 1 for a in config["attacks"].values())


def test_every_input_stands_before_its_stage(config):
    seen = set()
    for stage in plan(config, prints).stages:
        assert all(upstream.key in seen for upstream in stage.inputs.values())
        assert stage.key not in seen
        seen.add(stage.key)


def test_shared_inputs_are_listed_once():
    root = Stage("pretrain", {"n": 1})
    left, right = Stage("embed", {"n": 2}, {"host": root}), Stage("embed", {"n": 3}, {"host": root})
    top = Stage("verify", {}, {"subject": left, "mark": right})
    assert [s.key for s in in_order([top, left])] == [s.key for s in (root, left, right, top)]


def test_every_kind_of_control_is_planned(config):
    subjects = plan(config, prints).subjects
    kinds = Counter((s.suspect, s.attack != "none") for s in subjects)
    assert kinds[("marked", False)] == kinds[("original", False)] == 3
    assert kinds[("innocent", False)] == 3 * 2  # the other two algorithms; other seeds only at larger scales
    assert kinds[("attacked_innocent", True)] == 3 * len(config["attacks"])
    assert {s.suspect for s in subjects if s.attack != "none"} == {"marked", "attacked_innocent"}


def test_whoever_builds_on_the_host_data_uses_the_attackers_part(config):
    parts = [s.config["train"] for s in plan(config, prints).stages if s.kind == "transfer"]
    same = [p for p in parts if p["name"] == "standin-cifar10"]
    assert same
    assert all(p == host_data(config, "attacker") for p in same)
    assert host_data(config, "owner")["part"] == "owner"


def test_smoke_scale_replaces_every_downloaded_set(config):
    names = {name for stage in plan(config, prints).stages for name in stage.data}
    assert names == {"standin-cifar10", "standin-gtsrb", "standin-mnist"}


@dataclass(frozen=True)
class ImagesOnly(Scheme):
    """A scheme for image-to-image hosts, to be refused on an encoder."""

    name: ClassVar[str] = "images_only"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    access: ClassVar[frozenset[Access]] = frozenset({Access.IMAGES})

    def keygen(self, host, owner_data, *, generator): ...

    def embed(self, host, key, owner_data, *, trainer, generator): ...

    def extract(self, suspect, key): ...


def test_a_pair_that_makes_no_sense_is_refused_when_it_is_composed(config):
    impossible = copy.deepcopy(config) | {"scheme": {"_target_": f"{__name__}.ImagesOnly"}}
    with pytest.raises(
        ConfigError, match=r"'images_only' marks networks from images to images, but the host is an encoder"
    ):
        plan(impossible, prints)


def test_tiny_experiment_of_the_tests_plans_in_full():
    experiment = plan(compose([*TINY]), prints)
    assert {s.kind for s in experiment.stages} == {"pretrain", "embed", "attack", "transfer", "verify"}


def test_a_components_version_is_part_of_its_stages(config, monkeypatch):
    before = keys(config)
    monkeypatch.setattr(WPE, "version", 2)
    kept = {stage.kind for stage in plan(config, prints).stages if stage.key in before}
    assert kept == {"pretrain", "transfer", "attack"}  # of originals, which no scheme has touched


def test_defaults_are_spelled_out(config):
    spelled = copy.deepcopy(config)
    spelled["scheme"]["trigger"]["density"] = WPE().trigger.density
    del config["scheme"]["trigger"]["density"]
    assert keys(config) == keys(spelled)


def test_attacks_that_rows_could_not_tell_apart_are_refused(config):
    twins = copy.deepcopy(config)
    twins["attacks"]["again"] = {**twins["attacks"]["finetune"], "weight_decay": 0.1}
    with pytest.raises(ConfigError, match="different names"):
        plan(twins, prints)


def test_a_neutral_field_is_left_out_at_its_default_alone():
    @dataclass(frozen=True)
    class Inner:
        new: int = field(default=1, metadata=NEUTRAL)
        old: tuple[int, ...] = (2,)

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=Inner)
        new: str = field(default="", metadata=NEUTRAL)

    assert identify(Outer())["inner"] == {"old": [2]}
    assert "new" not in identify(Outer())
    assert identify(Outer(Inner(new=3), "x")).items() >= {"inner": {"new": 3, "old": [2]}, "new": "x"}.items()


@pytest.fixture(scope="module")
def bits():
    """A weight mark in classifiers, in three variants."""
    return compose(["experiment=uchida/table5", "scale=smoke", "scheme.layer=group2.conv2"])


def test_classifiers_are_measured_on_their_own_data_and_judged_by_their_weights(bits):
    experiment = plan(bits, prints)
    assert {(s.pretrain, *s.transfers) for s in experiment.subjects} == {("supervised", ("", "classification"))}
    assert {s.mark.variant for s in experiment.subjects} == {"direct", "diff", "random"}
    assert Counter(stage.kind for stage in experiment.stages)["pretrain"] == 1
    (own,) = {str(s.transfers["", "classification"].config["train"]) for s in experiment.subjects}
    assert "'part': 'owner'" in own


def test_a_binomial_mark_needs_no_decoys(bits):
    decoys = {s.mark.variant: s.verify.config["decoys"] for s in plan(bits, prints).subjects}
    assert decoys == {"direct": 999, "diff": 999, "random": 0}


def test_variants_change_nested_fields_alone(bits):
    varied = bits | {"variants": {"weak": {"embedding.mark": 0.001}, "usual": {}}}
    weak, usual = (s.mark.scheme for s in plan(varied, prints).subjects if s.suspect == "marked")
    assert (weak.embedding.mark, usual.embedding.mark) == (0.001, 0.01)
    assert replace(weak, embedding=usual.embedding) == usual


def test_a_variant_can_be_another_scheme(bits):
    other = bits | {"variants": {"uchida": {}, "none": {"_target_": "hallmark.schemes.wpe.WPE"}}}
    with pytest.raises(ConfigError, match="'wpe' marks encoders, but the host is a classifier"):
        plan(other, prints)


def test_attacks_can_be_made_on_some_variants_alone(bits):
    noise = {"_target_": "hallmark.attacks.perturb.WeightNoise", "strength": "sigma", "strengths": [0.1]}
    attacked = bits | {"attacks": {"noise": {**noise, "variants": ["diff"]}}}
    assert {s.mark.variant for s in plan(attacked, prints).subjects if s.attack == "perturb"} == {"diff"}
    with pytest.raises(ConfigError, match=r"unknown attacks\.noise\.variants entry 'none'"):
        plan(bits | {"attacks": {"noise": {**noise, "variants": ["none"]}}}, prints)


def test_each_scheme_can_be_overwritten_by_its_own_kind():
    experiment = plan(compose(["experiment=uchida/baselines", "scale=smoke"]), prints)
    attacked = [s for s in experiment.subjects if s.attack == "overwrite" and s.suspect == "marked"]
    assert {s.mark.name: s.mark.variant for s in attacked} == {"uchida": "", "riga": "", "deepsigns": ""}
    assert len(attacked) == 3
    for subject in attacked:
        second = subject.stage.config["attack"]["scheme"]
        assert second == identify(subject.mark.scheme)  # the owner's settings; the key is drawn anew
        assert subject.unit.startswith(f"{subject.mark.name} bits")
    prunings = {(s.mark.name, s.unit) for s in experiment.subjects if s.attack == "prune"}
    assert {name: unit.split()[-1] for name, unit in prunings} == {
        "uchida": "group2.conv2",
        "riga": "group2.conv2",
        "deepsigns": "group4.conv2",
    }


def test_the_mark_can_be_embedded_with_other_images(bits):
    other = bits | {"embedding_data": {"name": "mnist", "train": 100, "test": 10}}
    before = {s.embed.key for s in plan(bits, prints).subjects}
    embeds = [s.embed for s in plan(other, prints).subjects]
    assert {e.config["data"]["name"] for e in embeds} == {"standin-mnist"}
    assert not before & {e.key for e in embeds}
    assert {s.verify.config["data"]["part"] for s in plan(other, prints).subjects} == {"owner"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer", "group5.conv1", "unknown layer 'group5.conv1'; allowed: .*group2.conv2"),
        ("bits", 5000, "5000 is too many for a direct carrier"),
    ],
)
def test_what_does_not_fit_the_host_is_refused_before_it_is_trained(bits, field, value, message):
    with pytest.raises(ConfigError, match=message):
        plan(bits | {"scheme": bits["scheme"] | {field: value}}, prints)


def test_hosts_of_one_experiment_are_of_one_kind(config, bits):
    mixed = bits | {"pretrains": config["pretrains"] | bits["pretrains"]}
    with pytest.raises(ConfigError, match="different kinds"):
        plan(mixed, prints)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"_target_": "hallmark.attacks.prune.Prune", "strength": "fraction", "layers": ["group9"]}, "unknown layer"),
        ({"_target_": "hallmark.attacks.distill.Distill", "strength": "epochs", "backbone": "net"}, "unknown backbone"),
        ({"_target_": "hallmark.attacks.finetune.FineTuneAttack", "strength": "epochs", "batch": 0}, "batch must be"),
    ],
)
def test_an_attack_that_does_not_fit_is_refused_before_anything_is_trained(bits, attack, message):
    with pytest.raises(ConfigError, match=message):
        plan(bits | {"attacks": {"one": {**attack, "strengths": [1]}}}, prints)


@pytest.mark.parametrize("number", [-1, 1.5])
@pytest.mark.parametrize("who", ["extra_seeds", "outsiders"])
def test_a_number_of_innocents_that_cannot_be_is_refused(bits, number, who):
    seeds = bits["calibration"] | {who: {"supervised": number}}
    with pytest.raises(ConfigError, match=rf"{who}\.supervised must be a whole number"):
        plan(bits | {"calibration": seeds}, prints)


def test_outsiders_are_innocents_of_other_images(bits):
    planned = plan(bits | {"calibration": bits["calibration"] | {"outsiders": {"supervised": 2}}}, prints)
    outsiders = [s for s in planned.subjects if s.host.endswith("other images")]
    assert len({s.stage.key for s in outsiders}) == 2
    assert {(s.suspect, s.stage.config["data"]["part"]) for s in outsiders} == {("innocent", "attacker")}
    others = {
        s.stage.config["data"]["part"] for s in planned.subjects if s.stage.kind == "pretrain" and s not in outsiders
    }
    assert others == {"owner"}
