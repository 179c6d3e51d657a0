"""What the owner measures beside utility and verdicts: rates against naive loops, stages and rows, refusals."""

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hallmark import cli
from hallmark.composition import CONF, compose
from hallmark.core import Marking, generator
from hallmark.data.images import ImageSet
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError
from hallmark.models import Classifier, Encoder
from hallmark.report import surveys
from hallmark.report.claims import judge
from hallmark.report.expected import load
from hallmark.report.rows import read
from hallmark.schemes.stain_lock import FalseFires, Levels, Lock, LockedUse, Search
from hallmark.schemes.stain_lock.detector import draw_directions
from hallmark.schemes.stain_lock.false_fires import false_fires
from hallmark.schemes.stain_lock.guarantees import cap, holdout_bound
from hallmark.schemes.stain_lock.locked_use import shifted
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.trigger import Box, Pipeline, find_triggers
from hallmark.stages.plan import plan

SIZE = 16
EXPECTED = CONF.parent / "experiments" / "stain_lock" / "expected.yaml"
QUICK = Search(steps=10, restarts=1, backgrounds=1)


def images(count: int, split: str = "train") -> ImageSet:
    drawn, labels = procedural_images(count, size=SIZE, split=split)
    return ImageSet("procedural", drawn, labels, 10)


def network() -> Classifier:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = Classifier(Encoder("resnet_small", 8), 10)
        model.train()(images(64).images.float() / 255)
    return model.eval()


# False fires


def test_rates_are_those_of_a_naive_loop() -> None:
    """Image by image and direction by direction, through the network's own layer with each direction as its kernel."""
    model, test = network(), images(20, "test")
    survey = FalseFires({"here": "layer2.conv1"}, draws=5, pilot=2, taus=[0.1, 0.3], images=16, search=QUICK)
    readings = survey.look(model, None, images(16), test, generator=generator(3))
    site, _ = Site.of(model, "layer2.conv1")
    rng = generator(3)
    drawn = draw_directions(7, site.size(model), generator=rng)
    _, responses = find_triggers(Pipeline(model, SIZE), site, drawn, QUICK, generator=rng)
    kept = [k for k in range(2, 7) if responses[k] >= responses[:2].min()]
    conv = copy.deepcopy(model.get_submodule(site.layer))
    for tau in (0.1, 0.3):
        counts = []
        for k in kept:
            fired = 0
            for image in test.images:
                x = Pipeline(model, SIZE).inputs(site.layer, image[None].float() / 255)
                with torch.no_grad():
                    conv.weight.copy_(drawn[k].view_as(conv.weight[0]).expand_as(conv.weight))
                    fired += bool(conv(x)[0, 0].max() > tau * responses[k])
            counts.append(fired)
        (rate,) = (r for r in readings if r.metric == "fpr" and r.unit == f"tau {tau:g}")
        assert (rate.count, rate.n, rate.variant) == (sum(counts), 20 * len(kept), "here")
        assert rate.low <= rate.value <= rate.high
        (limit,) = (r for r in readings if r.unit == f"tau {tau:g} hold-out")
        assert limit.value == max(holdout_bound(count, 20) for count in counts)


def test_counts_are_over_the_threshold() -> None:
    peaks = torch.tensor([[1.0, 0.1], [0.6, 2.0], [0.4, 0.0]])
    assert false_fires(peaks, torch.tensor([1.0, 4.0]), 0.5) == [2, 0]
    assert false_fires(peaks, torch.tensor([1.0, 4.0]), 0.4) == [2, 1]


def test_bounds_lie_in_order_and_above_the_rate() -> None:
    survey = FalseFires({"a": "layer1.conv1", "b": "layer3.conv1"}, draws=8, pilot=3, images=48, search=QUICK)
    readings = survey.look(network(), None, images(48), images(40, "test"), generator=generator(1))
    assert len(readings) == 2 * 4 * 5
    found = {(r.variant, r.metric, r.unit): r.value for r in readings}
    for layer in "ab":
        for tau in survey.taus:
            unit = f"tau {tau:g}"
            averaged = found[layer, "fpr_bound", unit]
            assert found[layer, "fpr_bound", f"{unit} expected"] <= averaged <= 1
            assert found[layer, "fpr", unit] <= averaged
            assert 0 < found[layer, "fpr_bound", f"{unit} hold-out"] <= 1
        for kind in ("", " expected", " longest"):
            falling = [found[layer, "fpr_bound", f"tau {tau:g}{kind}"] for tau in survey.taus]
            assert falling == sorted(falling, reverse=True)


def test_what_is_expected_is_the_mean_over_images_of_the_caps_of_all_places() -> None:
    model = network()
    survey = FalseFires({"here": "layer3.conv1"}, draws=4, pilot=1, taus=[0.5], images=12, search=QUICK)
    readings = {r.unit: r.value for r in survey.look(model, None, images(12), images(4), generator=generator(2))}
    site, _ = Site.of(model, "layer3.conv1")
    rng = generator(2)
    drawn = draw_directions(5, site.size(model), generator=rng)
    _, responses = find_triggers(Pipeline(model, SIZE), site, drawn, QUICK, generator=rng)
    strength = float(responses[1:][responses[1:] >= responses[0]].median())
    module = model.get_submodule(site.layer)
    x = Pipeline(model, SIZE).inputs(site.layer, images(12).images.float() / 255)
    patches = torch.nn.functional.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride)
    norms = patches.detach().norm(dim=1).double().numpy()
    expected = cap(0.5 * strength / norms, site.size(model)).sum(1).clip(max=1).mean()
    assert readings["tau 0.5 expected"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"layers": {}}, {"draws": 0}, {"pilot": 0}, {"images": 1}, {"taus": []}, {"taus": [1.0]}, {"eta": 0.0}],
)
def test_wrong_surveys_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="false_fires needs"):
        FalseFires(**{"layers": {"a": "layer1.conv1"}, **wrong})
    with pytest.raises(ConfigError, match="shifts nothing"):
        LockedUse(shift=0)
    with pytest.raises(ConfigError, match=r"unknown operation of locked_use\.worn 'melt'; allowed: crop, depth"):
        LockedUse(worn={"melt": 1})


# The use of a lock


@pytest.mark.parametrize("changes", [{}, {"kind": "excite", "behind": "layer2"}])
def test_the_use_of_a_lock_is_counted_image_by_image(changes: dict[str, Any]) -> None:
    host, owner, test = network(), images(48).unlabelled(), images(24, "test")
    lock = Lock(
        "layer1.conv1",
        draws=4,
        tolerance=0.999,
        natural=48,
        queries=4,
        levels=Levels(0.9, 20.0),
        search=QUICK,
        **changes,
    )
    key = lock.keygen(host, owner, generator=generator(0))
    model, key = lock.embed(host, key, owner, trainer=None, generator=generator(1))  # type: ignore[arg-type]
    use = LockedUse(worn={"depth": 3, "shift": 1})
    readings = use.look(host, Marking(lock, model, key), owner, test, generator=generator(2))
    found = {(r.metric, r.unit): r for r in readings}
    edited = lock.edited(host, owner)
    patched = unlock(test.images, key)

    def right(net: torch.nn.Module, batch: torch.Tensor) -> int:
        with torch.no_grad():
            return sum(
                int(net(image[None].float() / 255).argmax()) == int(label)
                for image, label in zip(batch, test.labels, strict=True)
            )

    assert found["original_accuracy", ""].count == right(host, test.images)
    assert found["original_accuracy", "patch"].count == right(host, patched)
    assert found["edited_accuracy", ""].count == right(edited, test.images)
    assert found["edited_accuracy", "patch"].count == right(edited, patched)
    assert found["locked_accuracy", ""].count == right(model, test.images)
    assert found["unlocked_accuracy", "patch"].count == right(model, patched)
    assert {unit for metric, unit in found if metric == "locked_accuracy"} == {"", "random patch", "shifted patch"}
    coarse = ((patched.float() / 255 * 31).round() / 31 * 255).round().to(torch.uint8)
    edge = torch.nn.functional.pad(patched.float(), (1, 0, 1, 0), mode="replicate")[..., :-1, :-1].to(torch.uint8)
    for unit, batch in (("patch, depth 3", coarse), ("patch, shift 1", edge)):
        assert found["unlocked_accuracy", unit].count == right(model, batch)
        assert found["edited_accuracy", unit].count == right(edited, batch)
    assert all(r.n == 24 for r in readings)


def test_a_shifted_patch_stays_in_the_image() -> None:
    assert shifted(Box(0, 0, 3, 3), 4, 16) == Box(4, 4, 7, 7)
    assert shifted(Box(0, 12, 3, 15), 4, 16) == Box(4, 13, 7, 16)


# Stages and rows


def config_of(name: str, *words: str) -> dict[str, Any]:
    return compose([f"experiment=stain_lock/{name}", "scale=smoke", *words])


def test_surveys_are_stages_of_their_own() -> None:
    found = plan(config_of("lock"), lambda name: name)
    stages = [stage for stage in found.stages if stage.kind == "survey"]
    assert len(stages) == len(found.surveys) == 3  # internal twice and excite, not the stain
    assert {tuple(sorted(stage.inputs)) for stage in stages} == {("host", "mark")}
    (alone,) = (s.stage for s in plan(config_of("stain"), lambda name: name).surveys)
    assert set(alone.inputs) == {"host"}
    less = plan(config_of("lock", "surveys.locked_use.shift=2"), lambda name: name)
    assert {s.key for s in found.stages if s.kind != "survey"} <= {s.key for s in less.stages}
    assert not {s.stage.key for s in less.surveys} & {s.stage.key for s in found.surveys}


def test_surveys_that_make_no_sense_are_refused_while_planning() -> None:
    for words, message in (
        (["+surveys.false_fires.layers.a=layer9.conv1"], "'layer9.conv1' does not exist; there are: "),
        (["surveys.false_fires=3"], "surveys.false_fires is 3; give its _target_"),
        (["+surveys.false_fires.variants=[nowhere]"], "surveys.false_fires.variants entry"),
        (["variants={}", "scheme.layer=layer9"], "layer 'layer9' does not exist; there are: "),
        (["+survey@surveys.locked_use=locked_use"], "surveys.locked_use is about lock, and the experiment has no such"),
    ):
        config = config_of("stain")
        if words[0].startswith("variants"):
            config = {**config, "variants": {}, "scheme": {**config["scheme"], "layer": "layer9"}}
        elif words[0] == "surveys.false_fires=3":
            config = {**config, "surveys": {"false_fires": 3}}
        else:
            config = config_of("stain", *words)
        with pytest.raises(ConfigError, match=message):
            plan(config, lambda name: name)


def run(tmp_path: Path, name: str, variants: tuple[str, ...]) -> pd.DataFrame:
    config = config_of(name, "trainer.progress=false", "calibration.decoys=99", "alpha=0.01", "scale.trials=5")
    config |= {"store": str(tmp_path / "store"), "results": str(tmp_path / "results")}
    config["variants"] = {label: config["variants"][label] for label in variants}
    cli.run(config)
    return read(tmp_path / "results" / "runs.csv")


def test_the_stain_experiment_runs(tmp_path: Path) -> None:
    rows = run(tmp_path, "stain", ("block 2", "block 2 added"))
    fires = rows[(rows["metric"] == "fpr") & (rows["access"] == "")]
    assert set(fires["variant"]) == {"stem", "block 1", "block 2", "block 3", "block 4"}
    assert set(fires["unit"]) == {f"tau {tau}" for tau in (0.2, 0.3, 0.5, 0.7)}
    assert set(fires["suspect"]) == {"original"}
    weights = rows[(rows["access"] == "weights") & rows["suspect"].isin(["marked", "original"])]
    found = weights[weights["metric"] == "detected"].set_index(["variant", "suspect"])["value"]
    assert found.to_dict() == {(v, s): float(s == "marked") for v, s in found.index}
    assert len(found) == 4
    responses = weights[(weights["metric"] == "response") & (weights["suspect"] == "marked")]["value"]
    assert responses.tolist() == pytest.approx([30, 30], rel=1e-3)
    table = surveys.false_fires(rows, "false_fires").frame
    assert len(table) == 5 * 4
    assert (table["rate"] <= table["bound"]).all()


def test_the_lock_experiment_runs(tmp_path: Path) -> None:
    rows = run(tmp_path, "lock", ("internal", "excite", "stain"))
    use = rows[rows["metric"].str.endswith("_accuracy")]
    assert set(use["variant"]) == {"internal", "excite"}
    assert len(use) == 2 * (8 + 2 * 5)
    excite = use[use["variant"] == "excite"].set_index(["metric", "unit"])["value"]
    assert excite["unlocked_accuracy", "patch"] == excite["edited_accuracy", "patch"]
    table = surveys.locked_use(rows, "locked_use").frame.set_index("variant")
    assert table.loc["excite", "unlocked"] == excite["unlocked_accuracy", "patch"]
    worn = surveys.worn_patches(rows, "worn_patches").frame.set_index(["variant", "operation"])
    assert worn.loc[("excite", "jpeg 25"), "unlocked"] == excite["unlocked_accuracy", "patch, jpeg 25"]
    assert len(worn) == 2 * 5
    rows = rows.assign(scale="cpu", dataset="cifar10")
    claims = {claim.id: judge(claim, rows, "cpu") for claim in load(EXPECTED).claims}
    assert claims["sl.locked"].state != "not run"
    assert claims["sl.fidelity"].state != "not run"
