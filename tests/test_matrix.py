"""The matrix: every scheme meets every attack on the same terms, or a cell says why not."""

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from hallmark.attacks.perturb import WeightNoise
from hallmark.components import locate
from hallmark.composition import compose, compose_parts
from hallmark.core import Access
from hallmark.errors import ConfigError
from hallmark.report.rows import Row
from hallmark.stages.experiment import Experiment
from hallmark.stages.graph import Stage
from hallmark.stages.plan import plan
from hallmark.stages.results import rows

SCHEMES = {
    "matrix/encoders": {"wpe", "awencoder", "sslguard", "sslwm", "rotation", "dataset_inference", "uchida"},
    "matrix/classifiers": {"uchida", "riga", "deepsigns", "stain", "lock"},
    "matrix/images": {"deep_watermark"},
}
Parts = Mapping[str, Experiment]


def prints(name: str) -> str:
    return f"print of {name}"


def planned(*overrides: str) -> dict[str, Experiment]:
    configs = compose_parts(["experiment=matrix", *overrides])
    return {config["name"]: plan(config, prints) for config in configs}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return planned("scale=cpu")


def made(experiment: Experiment) -> dict[str, set[str]]:
    """Verbs of the attacks on each scheme."""
    found: dict[str, set[str]] = {name: set() for name in SCHEMES[experiment.config["name"]]}
    for subject in experiment.subjects:
        if subject.suspect == "marked" and subject.attack != "none":
            found[subject.mark.scheme.name].add(subject.attack)
    return found


def test_the_parts_hold_every_scheme_on_equal_terms(parts: Parts) -> None:
    assert {name: {s.mark.scheme.name for s in part.subjects} for name, part in parts.items()} == SCHEMES
    assert {s.mark.variant for part in parts.values() for s in part.subjects} == {""}
    for name in ("alpha", "fpr_alpha", "tolerance", "paper", "unfit"):
        assert len({part.config[name] for part in parts.values()}) == 1, name
    assert {part.config["alpha"] for part in parts.values()} == {part.config["fpr_alpha"] for part in parts.values()}
    assert {part.config["calibration"]["decoys"] for part in parts.values()} == {99}


def test_there_are_ten_schemes_and_twenty_attacks_at_a_strength(parts: Parts) -> None:
    assert len(set.union(*SCHEMES.values())) >= 10
    for part in parts.values():
        attacks = Counter()
        for subject in part.subjects:
            if subject.suspect == "marked" and subject.attack != "none":
                attacks[subject.mark.scheme.name] += 1
        assert min(attacks.values()) >= 20


def test_every_scheme_meets_every_verb_or_says_why_not(parts: Parts) -> None:
    listed = {locate(group["_target_"]).name for part in parts.values() for group in part.config["attacks"].values()}
    for name, part in parts.items():
        for scheme, verbs in made(part).items():
            noted = {cell.attack for cell in part.unfit if cell.mark.scheme.name == scheme}
            assert verbs | noted == listed, (name, scheme)
            assert all(cell.reason for cell in part.unfit)


def test_the_cells_that_are_not_applicable(parts: Parts) -> None:
    pure = {
        name: Counter(
            (cell.attack, cell.reason) for cell in part.unfit if cell.attack not in made(part)[cell.mark.name]
        )
        for name, part in parts.items()
    }
    second = "puts a second mark of the same kind over the first by training, and this one is not trained in"
    encoder, classifier, network = (
        f", but the host is {one}" for one in ("an encoder", "a classifier", "a network from images to images")
    )
    encoders, classifiers, networks = (
        f"works on {many}" for many in ("encoders", "classifiers", "networks from images to images")
    )
    assert pure["matrix/encoders"] == {
        **{(verb, networks + encoder): 7 for verb in ("surrogate", "erase")},
        **{(verb, classifiers + encoder): 7 for verb in ("refit", "invert")},
        ("overwrite", second): 1,  # dataset_inference
    }
    assert pure["matrix/classifiers"] == {
        ("extract", encoders + classifier): 5,
        **{(verb, networks + classifier): 5 for verb in ("surrogate", "erase")},
        ("overwrite", second): 1,  # lock; stain is overwritten by four neurons of the attacker's own
    }
    expected = {
        **dict.fromkeys(("extract",), encoders + network),
        **dict.fromkeys(("refit", "invert"), classifiers + network),
        **dict.fromkeys(
            (
                *("finetune", "permute", "rescale", "insert_neurons", "remove_neurons", "reestimate", "distill"),
                *("adversarial_training", "chain", "neural_cleanse", "regularise"),
            ),
            f"{classifiers} and encoders{network}",
        ),
    }
    assert pure["matrix/images"] == dict.fromkeys(expected.items(), 1)


def test_of_a_verb_that_is_made_the_attacks_that_are_not_are_named(parts: Parts) -> None:
    partly = {
        name: {(c.attack, c.reason.split(": ")[0]) for c in part.unfit if c.attack in made(part)[c.mark.name]}
        for name, part in parts.items()
    }
    answers = {("postprocess", "jpeg_answers"), ("postprocess", "resized_answers")}
    assert partly == {
        "matrix/encoders": answers,
        "matrix/classifiers": answers,
        "matrix/images": {
            *{("perturb", "shift"), ("postprocess", "fewer_answers")},
            *{("prune", "fine_prune"), ("prune", "prune_filters")},
        },
    }


def test_a_thousand_keys_are_tried_on_innocents_of_every_mark(parts: Parts) -> None:
    """Not counted where weights have another shape, so that no key can be tried on them."""
    for part in parts.values():
        trials = Counter()
        for subject in part.subjects:
            reshaped = subject.attack == "insert_neurons" or "vgg" in subject.unit
            if subject.suspect != "marked" and not (reshaped and Access.WEIGHTS in subject.mark.scheme.access):
                trials[subject.mark.name] += subject.verify.config["trials"]
        assert min(trials.values()) >= 1000, trials


@pytest.mark.parametrize(
    ("part", "other", "kinds"),
    [
        (
            "matrix/encoders",
            "encoders/peers",
            {"pretrain": 1, "embed": 7, "attack": 100, "transfer": 100, "verify": 70},
        ),
        ("matrix/images", "deep_watermark/later_attacks", {"pretrain": 1, "embed": 1, "attack": 10, "transfer": 10}),
    ],
)
def test_stages_are_shared_with_the_papers_experiments(
    parts: Parts, part: str, other: str, kinds: dict[str, int]
) -> None:
    theirs = {stage.key for stage in plan(compose([f"experiment={other}", "scale=cpu"]), prints).stages}
    shared = Counter(stage.kind for stage in parts[part].stages if stage.key in theirs)
    assert all(shared[kind] >= number for kind, number in kinds.items()), shared


def test_one_host_of_each_kind_serves_all_and_one_original_is_attacked_for_all(parts: Parts) -> None:
    for part in parts.values():
        count = Counter(stage.kind for stage in part.stages)
        assert count["pretrain"] == 2  # and an innocent of another seed
        assert count["embed"] == len(SCHEMES[part.config["name"]])
        attacks = {(s.stage.key, s.suspect) for s in part.subjects if s.attack != "none"}
        assert count["attack"] == len(attacks)


def test_another_attack_adds_its_column_and_nothing_else(parts: Parts) -> None:
    """What is stored stays, but a sheet, whose pictures show every attack; what is new stands on the new attack."""
    added = "+attacks.more={_target_: hallmark.attacks.perturb.WeightNoise, strength: sigma, strengths: [0.7]}"
    for name, part in planned("scale=cpu", added).items():
        known = {stage.key for stage in parts[name].stages if stage.kind != "sheet"}
        assert known < {stage.key for stage in part.stages}
        assert sum(stage.kind == "sheet" for stage in part.stages) == (name == "matrix/images")
        new = [stage for stage in part.stages if stage.key not in known and stage.kind != "sheet"]
        schemes = len(SCHEMES[name])
        # on each marked model and on the original; judged by each key: the marked one's, and all of the original's
        assert Counter(stage.kind for stage in new) == {
            "attack": schemes + 1, "transfer": schemes + 1, "verify": 2 * schemes
        }  # fmt: skip
        attacks = {stage.key for stage in new if stage.kind == "attack"}
        assert {stage.config["attack"]["sigma"] for stage in new if stage.kind == "attack"} == {0.7}
        role = {"transfer": "host", "verify": "subject"}
        assert all(stage.inputs[role[stage.kind]].key in attacks for stage in new if stage.kind in role)


def left(stage: Stage) -> dict[str, Any]:
    """What a finished stage says where nothing was measured."""
    nothing: dict[str, Any] = {"seconds": 1.0, "device": "d", "commit": "c"}
    return nothing | {"transfer": {"measurements": []}, "verify": {"judgements": []}, "survey": {"readings": []}}.get(
        stage.kind, {}
    )


def test_rows_say_what_is_not_applicable(parts: Parts) -> None:
    part = parts["matrix/images"]
    found = [row for row in rows(part, left) if row.metric == "not_applicable"]
    assert len(found) == len(part.unfit)
    assert Row(
        experiment="matrix/images", paper="matrix", scheme="deep_watermark", host="unet", dataset="photographs",
        attack="finetune", suspect="marked",
        unit="works on classifiers and encoders, but the host is a network from images to images",
        scale="cpu", metric="not_applicable", value=1,
    ) in found  # fmt: skip
    assert {(row.strength, row.value, row.count) for row in found} == {(0, 1, None)}


# Noting and refusing


@pytest.fixture(scope="module")
def bits() -> dict[str, Any]:
    """One mark in classifiers, and no attack."""
    config = compose(["experiment=uchida/invariance", "scale=smoke"])
    return config | {"attacks": {}}


EXTRACT = {"_target_": "hallmark.attacks.extract.Extract", "strength": "queries", "backbone": "no such network"}
PRUNE = {"_target_": "hallmark.attacks.prune.Prune", "strength": "fraction", "layers": ["group9"]}
ENCODERS = {"_target_": "hallmark.schemes.wpe.WPE"}


@pytest.mark.parametrize(
    ("attack", "verb", "reason"),
    [
        (EXTRACT | {"strengths": [64]}, "extract", "works on encoders, but the host is a classifier"),
        (PRUNE | {"strengths": [0.5]}, "prune", "unknown layer 'group9'"),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused_unless_it_is_to_be_noted(
    bits: dict[str, Any], attack: dict[str, Any], verb: str, reason: str
) -> None:
    config = bits | {"attacks": {"one": attack}}
    with pytest.raises(ConfigError, match=reason):
        plan(config, prints)
    experiment = plan(config | {"unfit": "note"}, prints)
    (cell,) = experiment.unfit
    assert (cell.mark.name, cell.attack) == ("uchida", verb)
    assert cell.reason.startswith(reason)
    assert {subject.attack for subject in experiment.subjects} == {"none"}


def test_what_an_attack_needs_to_see_must_be_there(bits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightNoise, "access", Access.IMAGES)
    noise = {"_target_": "hallmark.attacks.perturb.WeightNoise", "strength": "sigma", "strengths": [0.1]}
    with pytest.raises(ConfigError, match="attack 'perturb' needs images, which a classifier does not offer"):
        plan(bits | {"attacks": {"noise": noise}}, prints)
    (cell,) = plan(bits | {"attacks": {"noise": noise}, "unfit": "note"}, prints).unfit
    assert cell.reason == "needs images, which a classifier does not offer"


def test_a_mistake_is_refused_however_lenient_the_experiment(bits: dict[str, Any]) -> None:
    wrong = {"one": PRUNE | {"layers": [], "strengths": [1.5]}}
    with pytest.raises(ConfigError, match=r"1\.5"):
        plan(bits | {"attacks": wrong, "unfit": "note"}, prints)
    with pytest.raises(ConfigError, match="_target_"):
        plan(bits | {"attacks": {"one": {"strength": "a", "strengths": [1]}}, "unfit": "note"}, prints)


def test_a_scheme_that_cannot_mark_the_hosts_is_a_cell_without_an_attack(bits: dict[str, Any]) -> None:
    both = bits | {"variants": {"uchida": {}, "wpe": ENCODERS}}
    with pytest.raises(ConfigError, match="scheme 'wpe' marks encoders, but the host is a classifier"):
        plan(both, prints)
    experiment = plan(both | {"unfit": "note"}, prints)
    (cell,) = experiment.unfit
    assert (cell.mark.name, cell.attack, cell.reason) == ("wpe", "none", "marks encoders, but the host is a classifier")
    assert {subject.mark.name for subject in experiment.subjects} == {"uchida"}


def test_an_experiment_whose_hosts_bear_none_of_its_marks_is_refused(bits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="scheme 'wpe' marks encoders"):
        plan(bits | {"variants": {"wpe": ENCODERS}, "unfit": "note"}, prints)


def test_an_attack_on_some_marks_is_a_cell_of_the_others_unless_they_meet_its_like(bits: dict[str, Any]) -> None:
    noise = {"_target_": "hallmark.attacks.perturb.WeightNoise", "strength": "sigma", "strengths": [0.1]}
    config = bits | {"variants": {"one": {}, "two": {"bits": 32}}, "unfit": "note"}
    attacks = {"noise": noise | {"variants": ["one"]}}
    (cell,) = plan(config | {"attacks": attacks}, prints).unfit
    assert (cell.mark.variant, cell.attack, cell.reason) == ("two", "perturb", "is made on one alone")
    attacks["less"] = noise | {"variants": ["two"]}
    assert plan(config | {"attacks": attacks}, prints).unfit == ()


def test_what_is_noted_changes_no_stage(bits: dict[str, Any]) -> None:
    lenient = copy.deepcopy(bits) | {"unfit": "note", "attacks": {"one": EXTRACT | {"strengths": [64]}}}
    assert [s.key for s in plan(lenient, prints).stages] == [s.key for s in plan(bits, prints).stages]


def test_an_unknown_way_with_misfits_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown unfit 'ignore'; allowed: note, refuse"):
        compose(["experiment=demo", "unfit=ignore"])


# Composites


def test_a_whole_is_planned_by_its_parts() -> None:
    with pytest.raises(ConfigError, match="matrix is made of parts; plan each: matrix/encoders"):
        plan(compose(["experiment=matrix", "scale=smoke"]), prints)


def test_an_ordinary_experiment_is_its_only_part() -> None:
    words = ["experiment=demo", "seed=3"]
    assert compose_parts(words) == [compose(words)]


def test_overrides_reach_every_part() -> None:
    words = ["experiment=matrix", "scale=smoke", "seed=2", "attacks.prune.strengths=[0.25]", "name=mine"]
    configs = compose_parts(words)
    assert [config["name"] for config in configs] == ["mine/encoders", "mine/classifiers", "mine/images"]
    assert {config["seed"] for config in configs} == {2}
    assert [config["attacks"]["prune"]["strengths"] for config in configs] == [[0.25]] * 3
