"""Detectors of marks on weights whose law is known, their curve against rank sums, and the population they need."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from hallmark import roc
from hallmark.attacks.detect import InferenceDetector, SpreadDetector, excess, sorted_weights, spreads, weights
from hallmark.cli import run
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Detector, HostKind, Suspect, generator
from hallmark.errors import AccessError, ConfigError
from hallmark.report.cli import main as report
from hallmark.report.rows import read
from hallmark.stages.beside import SMALLEST, groups
from hallmark.stages.histogram import Bins, histograms, rounded
from hallmark.stages.plan import plan

DETECTORS = {
    "spread": SpreadDetector("second"),
    "spread anywhere": SpreadDetector(),
    "inference": InferenceDetector("second"),
    "inference anywhere": InferenceDetector(),
}


class Net(nn.Module):
    """Two layers of independent normal weights; the second may be wider."""

    def __init__(self, seed: int, spread: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, bias=False), nn.Linear(32, 16, bias=False)
        rng = generator(seed, "net")
        for layer, scale in ((self.first, 1.0), (self.second, spread)):
            layer.weight.data = torch.randn(layer.weight.shape, generator=rng) * scale


def suspect(net: nn.Module, access: Access = Access.WEIGHTS) -> Suspect:
    return Suspect(net, HostKind.CLASSIFIER, access)


def crowd(start: int, count: int, spread: float = 1.0) -> list[Suspect]:
    return [suspect(Net(seed, spread)) for seed in range(start, start + count)]


def separation(detector: Detector, spread: float, each: int = 24) -> float:
    """Area under the curve of a detector where marked layers are wider by the factor ``spread``."""
    marked, unmarked = crowd(3000, each, spread), crowd(4000, each)
    scores = detector.scores(crowd(1000, each), crowd(2000, each, spread), [*marked, *unmarked])
    assert len(scores) == 2 * each
    assert np.isfinite(scores).all()
    return roc.area(scores[:each], scores[each:]).value


# Detectors


@pytest.mark.parametrize("name", DETECTORS)
def test_a_wider_layer_is_told_apart(name: str) -> None:
    assert separation(DETECTORS[name], 1.5) == 1.0


@pytest.mark.parametrize("name", DETECTORS)
def test_equal_laws_are_not_told_apart(name: str) -> None:
    area = separation(DETECTORS[name], 1.0)
    assert abs(area - 0.5) < 0.29  # 3.5 standard errors of the area of 24 against 24: 3.5 · √(49 / (12 · 24 · 24))


def test_the_area_is_that_of_the_spreads_own_law() -> None:
    """The deviation of n normal weights is normal about σ with σ²/(2n); two such differ by a known number of sigmas."""
    spread, n = 1.04, 16 * 32
    expected = scipy_stats.norm.cdf((spread - 1) / np.sqrt((1 + spread**2) / (2 * n)))
    found = separation(SpreadDetector("second"), spread, each=100)
    assert 0.7 < expected < 0.9
    assert abs(found - expected) < 0.11  # 3.5 standard errors of an area of 0.8 of 100 against 100, about 0.031 each


def test_a_narrower_layer_is_no_mark_to_the_spread_detector_but_is_learnt_by_inference() -> None:
    assert separation(SpreadDetector("second"), 0.6) == 0.0
    assert separation(InferenceDetector(), 0.6) == 1.0


def test_a_mark_elsewhere_is_missed_where_the_layer_is_given() -> None:
    unmarked, marked = crowd(0, 24), crowd(100, 24, 1.5)
    scores = SpreadDetector("first").scores(crowd(500, 24), [], [*marked, *unmarked])
    assert abs(roc.area(scores[:24], scores[24:]).value - 0.5) < 0.29


def test_the_spread_detector_ignores_marked_networks_and_the_order_of_suspects() -> None:
    known, suspects = crowd(0, 8), crowd(50, 6, 1.2)
    scores = SpreadDetector().scores(known, [], suspects)
    assert SpreadDetector().scores(known, crowd(80, 3), suspects[::-1]) == scores[::-1]


def test_features_by_numpy() -> None:
    net = Net(0)
    flat = net.second.weight.detach().numpy().astype(np.float64).ravel()
    assert spreads([suspect(net)], "second")[0, 0] == pytest.approx(np.std(flat, ddof=1))
    thinned = sorted_weights([suspect(net)], "second", 5)[0]
    assert thinned[[0, 2, 4]] == pytest.approx([flat.min(), np.median(flat), flat.max()])
    assert sorted_weights([suspect(net)] * 3, "", 5).shape == (3, 2 * 5)
    assert list(weights(suspect(net))) == ["first", "second"]


def test_layers_that_never_differ_keep_scores_finite() -> None:
    still, other = np.ones((4, 1)), np.array([[1.0], [1.5], [0.5]])
    found = excess(still, other)[:, 0]
    assert np.isfinite(found).all()
    assert found[0] == 0
    assert found[2] < 0 < found[1]


def test_detectors_need_weights() -> None:
    with pytest.raises(AccessError):
        SpreadDetector().scores([suspect(Net(0), Access.LABELS)] * 2, [], [])


@pytest.mark.parametrize(
    ("fields", "line"), [({"quantiles": 2}, "at least 3 quantiles"), ({"penalty": 0.0}, "above 0")]
)
def test_impossible_settings_are_refused(fields: dict[str, float], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        InferenceDetector(**fields)


@pytest.mark.parametrize("detector", DETECTORS.values())
def test_a_detector_is_built_again_from_what_identifies_it(detector: Detector) -> None:
    assert instantiate(identify(detector), "detectors.x", Detector) == detector


# The curve


def test_the_area_is_mann_whitneys() -> None:
    rng = np.random.default_rng(0)
    marked, unmarked = rng.normal(0.7, 1, 40).round(1).tolist(), rng.normal(0, 1, 25).round(1).tolist()  # with ties
    u = scipy_stats.mannwhitneyu(marked, unmarked).statistic
    found = roc.area(marked, unmarked)
    assert found.value == pytest.approx(u / (40 * 25))
    assert found.low < found.value < found.high
    fpr, tpr = roc.curve(marked, unmarked)
    assert np.trapezoid(tpr, fpr) == pytest.approx(found.value)
    mirrored = roc.area(unmarked, marked)
    swapped = roc.area([-x for x in unmarked], [-x for x in marked])
    assert mirrored.value == pytest.approx(1 - found.value)
    assert (swapped.low, swapped.high) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize("effect", [0.0, 0.9, 2.5])
def test_the_interval_covers_the_area(effect: float) -> None:
    """95 % of 400 draws, to within 3.5 standard errors of a binomial; Newcombe's interval errs on the safe side."""
    rng = np.random.default_rng(1)
    true = scipy_stats.norm.cdf(effect / np.sqrt(2))
    draws = [roc.area(rng.normal(effect, 1, 20).tolist(), rng.normal(0, 1, 20).tolist()) for _ in range(400)]
    covered = np.mean([draw.low <= true <= draw.high for draw in draws])
    assert covered > 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 400)


def test_perfect_separation_leaves_doubt() -> None:
    few, many = roc.area([2.0, 3.0], [0.0, 1.0]), roc.area([2.0] * 50, [1.0] * 50)
    assert few.value == many.value == few.high == many.high == 1.0
    assert 0 < few.low < 0.5 < 0.9 < many.low < 1.0
    assert roc.area([0.0], [1.0]).value == roc.area([0.0], [1.0]).low == 0.0
    for area in (few, many):  # where the interval ends, the area found is as far as the normal quantile allows
        m = 2 if area is few else 50
        more = (m - 1) * ((1 - area.low) / (2 - area.low) + area.low / (1 + area.low))
        error = np.sqrt(area.low * (1 - area.low) * (1 + more) / m**2)
        assert (1 - area.low) / error == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize(("level", "found"), [(0.0, 1), (0.24, 1), (0.25, 3), (0.5, 3), (0.99, 4)])
def test_true_positives_at_a_level(level: float, found: int) -> None:
    marked, unmarked = [5.0, 3.5, 3.5, 0.5], [4.0, 3.0, 2.0, 0.0]
    rate = roc.true_positives(marked, unmarked, level)
    assert (rate.count, rate.n) == (found, 4)
    assert rate.low <= rate.rate <= rate.high


# Histograms


def test_histograms_share_their_bins() -> None:
    rng = np.random.default_rng(2)
    samples = {"marked": torch.tensor(rng.normal(0, 2, 500)), "original": torch.tensor(rng.normal(0, 1, 400))}
    found = histograms(samples, Bins(20))
    widest = max(abs(numbers).max() for numbers in samples.values())
    for whose, numbers in samples.items():
        counts, edges = np.histogram(numbers, 20, (-float(widest), float(widest)))
        x, y = np.array(found[whose]).T
        assert x == pytest.approx((edges[1:] + edges[:-1]) / 2, rel=1e-5)
        assert y == pytest.approx(counts / len(numbers), rel=1e-5)
    fixed = histograms({"one": torch.tensor([0.1, 0.9, 5.0])}, Bins(2, 0, 1))
    assert fixed == {"one": [[0.25, rounded(1 / 3)], [0.75, rounded(1 / 3)]]}


@pytest.mark.parametrize("wrong", [{"bins": 1}, {"bins": 4, "low": 0.0}, {"bins": 4, "low": 1.0, "high": 1.0}])
def test_impossible_bins_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a histogram"):
        Bins(**wrong)


# In the stage graph


@pytest.fixture(scope="module")
def config():
    words = ["experiment=uchida/detection", "scale=smoke", "trainer.progress=false", "calibration.decoys=999"]
    composed = compose(words)
    kept = {label: composed["variants"][label] for label in ("random", "no mark")}
    return composed | {"variants": kept, "histograms": {"weights": {"bins": 20}}}


def prints(name: str) -> str:
    return f"print of {name}"


def test_attacker_and_suspects_share_nothing(config) -> None:
    experiment = plan(config, prints)
    assert len(experiment.detections) == 2 * len(config["detectors"])
    inputs = experiment.detections[0].stage.inputs
    roles = groups(inputs)
    assert {group: len(found) for group, found in roles.items()} == dict.fromkeys(
        ("known unmarked", "known marked", "suspect unmarked", "suspect marked"), config["population"] // 2
    )
    for group, members in roles.items():
        parts = {inputs[role].config["data"]["part"] for role in members}
        assert parts == {"attacker" if group.startswith("known") else "owner"}
    assert len({stage.key for stage in inputs.values()}) == 2 * config["population"]
    assert len({stage.config["seed"] for stage in inputs.values()}) == config["population"]
    owners = {subject.stage.key for subject in experiment.subjects}
    assert not owners & {stage.key for stage in inputs.values()}


def test_unmarked_networks_serve_every_mark_and_detector(config) -> None:
    experiment = plan(config, prints)
    pretrained = [stage for stage in experiment.stages if stage.kind == "pretrain"]
    embedded = [stage for stage in experiment.stages if stage.kind == "embed"]
    assert len(pretrained) == config["population"] + 1
    assert len(embedded) == 2 * (config["population"] + 1)


def test_without_detectors_and_histograms_nothing_is_added(config) -> None:
    bare = plan(config | {"detectors": {}, "histograms": {}, "population": 0}, prints)
    assert {stage.kind for stage in bare.stages} == {"pretrain", "embed", "transfer", "verify"}
    assert {s.key for s in bare.stages} < {s.key for s in plan(config, prints).stages}


FAMILY = "hallmark.attacks"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"population": SMALLEST - 2}, "population=2 is too small or odd; .* an even number of at least 4"),
        ({"population": SMALLEST + 1}, "population=5 is too small or odd"),
        ({"detectors": {"x": {"_target_": f"{FAMILY}.detect.Nothing"}}}, "detect.Nothing' names no class"),
        ({"detectors": {"x": {"_target_": f"{FAMILY}.perturb.WeightNoise", "sigma": 0.5}}}, "which is no Detector"),
        ({"detectors": {"x": {"_target_": f"{FAMILY}.detect.SpreadDetector", "layer": "conv9"}}}, "unknown layer"),
        ({"embedding_data": {"name": "mnist", "train": 64, "test": 10}}, "would share images"),
        ({"histograms": {"depths": {"bins": 3}}}, "unknown histogram of scheme 'uchida' 'depths'; allowed: responses"),
        ({"histograms": {"weights": {"bins": 1}}}, "at least 2 bins"),
    ],
)
def test_what_makes_no_sense_is_refused_while_planning(config, change, line) -> None:
    with pytest.raises(ConfigError, match=line):
        plan(config | change, prints)


def test_two_detectors_of_one_name_are_refused(config) -> None:
    twins = deepcopy(config)
    twins["detectors"]["again"] = {**twins["detectors"]["inference_anywhere"], "quantiles": 9}
    with pytest.raises(ConfigError, match="two detectors are called 'inference of all layers'"):
        plan(twins, prints)


@pytest.mark.slow
def test_the_experiment_end_to_end(config, tmp_path, capsys) -> None:
    """Rows, points and figures; what the mark does to weights shows even in networks of seconds."""
    strong = deepcopy(config) | {"store": str(tmp_path / "store"), "results": str(tmp_path / "results")}
    strong["variants"]["random"] = {"embedding.mark": 1.0}
    run(strong)
    rows = read(tmp_path / "results" / "runs.csv")
    units = {"spread of group2.conv2", "spread of all layers", "inference of all layers"}
    for metric, n in (("auc", 4), ("tpr", 2)):
        found = rows[rows["metric"] == metric]
        assert set(found["unit"]) == units
        assert set(found["variant"]) == {"random", "no mark"}
        assert set(found["attack"]) == {"none"}
        assert set(found["n"]) == {n}
        assert ((found["ci_low"] <= found["value"]) & (found["value"] <= found["ci_high"])).all()
        assert set(
            found.loc[(found["variant"] == "random") & (found["unit"] == "spread of group2.conv2"), "value"]
        ) == {1}
    results = tmp_path / "results"
    written = (results / "features.csv").read_bytes()
    assert written.count(b",score,") == 2 * 3 * 4
    assert written.count(b",weights,") == 2 * 2 * 20
    run(strong)
    assert (results / "features.csv").read_bytes() == written
    assert "0 of them new or changed" in capsys.readouterr().out
    assert report(["--results", str(results)]) == 0
    figures = {path.name for path in (results / "figures").glob("*.svg")}
    assert figures >= {"uchida_smoke_roc_detection.svg", "uchida_smoke_histograms_detection.svg"}
    table = (results / "tables" / "uchida_smoke_detection.md").read_text()
    assert "1.000" in table
    assert report(["--results", str(results), "--check"]) == 0
