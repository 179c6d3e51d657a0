"""Detectors of attractors: on encoders with and without one, planted by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark import roc
from hallmark.attacks.attractors import ClusterDetector, TriggerInversion, mean_cosine
from hallmark.components import identify, instantiate
from hallmark.composition import compose
from hallmark.core import Access, Detector, HostKind, Suspect, generator
from hallmark.errors import AccessError, ConfigError, DataError
from hallmark.stages.plan import plan
from stolen import data

SIDE = 12
IMAGES = data(192).images
DETECTORS: dict[str, Detector] = {
    "inversion": TriggerInversion(similarity=0.97, steps=40, batch=16),
    "cluster": ClusterDetector(epsilon=0.15, steps=20, restarts=2, batch=16, references=96),
}


class Planted(nn.Module):
    """Random features of pooled images, and a place to which a faint pattern sends everything, if there is one."""

    def __init__(self, seed: int, attraction: float) -> None:
        super().__init__()
        rng = generator(seed, "planted")
        self.attraction = attraction
        self.linear = nn.Linear(3 * 4, 24)
        self.linear.weight.data = torch.randn(24, 12, generator=rng)
        # like features behind a ReLU, and so that no image is at the planted place by nature
        self.linear.bias.data, place = torch.randn(2, 24, generator=rng).abs()
        self.register_buffer("pattern", 2 * torch.randint(2, (3, SIDE, SIDE), generator=rng).float() - 1)
        self.register_buffer("place", place)

    def forward(self, images: Tensor) -> Tensor:
        usual = self.linear(F.adaptive_avg_pool2d(images - 0.5, 2).flatten(1))
        likeness = ((images - 0.5) * self.pattern).mean((1, 2, 3))  # ±0.01 by nature; ε times the pattern adds ε
        return usual + self.attraction * F.softplus(50 * (likeness - 0.05))[:, None] * self.place


def suspect(seed: int, attraction: float = 0.0, access: Access = Access.WEIGHTS) -> Suspect:
    return Suspect(Planted(seed, attraction).eval(), HostKind.ENCODER, access)


def crowd(start: int, count: int, attraction: float = 0.0) -> list[Suspect]:
    return [suspect(seed, attraction) for seed in range(start, start + count)]


def test_mean_cosine_leaves_each_image_itself_out() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [F.cosine_similarity(features[i], features[j], dim=0) for i, j in itertools.permutations(range(7), 2)]
    assert float(mean_cosine(features)) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    assert float(mean_cosine(features[:1].expand(4, 5))) == pytest.approx(1)


@pytest.mark.parametrize("name", DETECTORS)
def test_an_attractor_shows_and_its_absence_does_not(name: str) -> None:
    """Six against six: unmarked ones are all above or all below others by chance in one of C(12, 6) / 2 = 462 draws."""
    marked, unmarked, others = crowd(100, 6, 5.0), crowd(200, 6), crowd(300, 6)
    scores = DETECTORS[name].scores(crowd(0, 4), [], [*marked, *unmarked, *others], images=IMAGES)
    assert len(scores) == 18
    assert all(torch.tensor(scores).isfinite())
    assert roc.area(scores[:6], scores[6:12]).value == 1.0
    assert 0 < roc.area(scores[12:], scores[6:12]).value < 1


@pytest.mark.parametrize("name", DETECTORS)
def test_a_network_is_scored_for_itself_and_left_alone(name: str) -> None:
    suspects = [suspect(1), suspect(2, 5.0)]
    before = [s.weights_module().state_dict() for s in suspects]
    scores = DETECTORS[name].scores(crowd(5, 2), [], suspects, images=IMAGES)
    assert DETECTORS[name].scores(crowd(5, 2), crowd(9, 2), suspects[::-1], images=IMAGES) == scores[::-1]
    for state, after in zip(before, suspects, strict=True):
        assert all(torch.equal(tensor, after.weights_module().state_dict()[name]) for name, tensor in state.items())


def test_a_trigger_is_no_larger_than_the_image_and_missing_where_nothing_gathers() -> None:
    detector = TriggerInversion(similarity=0.999999, steps=3, batch=16)
    assert detector.scores([], [], [suspect(0)], images=IMAGES) == [-1.0]
    (found,) = DETECTORS["inversion"].scores([], [], [suspect(0, 5.0)], images=IMAGES)
    assert -1 < found < 0


@pytest.mark.parametrize("side", [0, 4])
def test_a_change_stays_within_its_bound_and_place(side: int) -> None:
    detector = ClusterDetector(epsilon=0.1, side=side, steps=4)
    change = detector._descend(Planted(0, 5.0), IMAGES[:16].float() / 255, 0)  # type: ignore[arg-type]
    assert float(change.abs().max()) <= 0.1 + 1e-7
    touched = change.abs().sum(0) > 0
    assert int(touched.sum()) == (side or SIDE) ** 2
    if side:
        assert touched[4:8, 4:8].all()


@pytest.mark.parametrize("name", DETECTORS)
def test_weights_and_images_are_needed(name: str) -> None:
    detector = DETECTORS[name]
    assert detector.needs_images
    with pytest.raises(AccessError):
        detector.scores(crowd(0, 2), [], [suspect(0, access=Access.FEATURES)], images=IMAGES)
    for images in (None, IMAGES[:12]):
        with pytest.raises(DataError, match=r"images of the attacker, there are (0|12)"):
            detector.scores(crowd(0, 2), [], crowd(3, 1), images=images)


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (TriggerInversion, {"similarity": 1.0}, "a cosine below 1"),
        (TriggerInversion, {"batch": 1}, "batch ≥ 2"),
        (TriggerInversion, {"lr": 0.0}, "lr > 0"),
        (ClusterDetector, {"epsilon": 0.0}, r"must lie in \(0, 1\]"),
        (ClusterDetector, {"epsilon": 1.5}, r"must lie in \(0, 1\]"),
        (ClusterDetector, {"restarts": 0}, "restarts and references ≥ 1"),
    ],
)
def test_impossible_settings_are_refused(kind: type[Detector], fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        kind(**fields)


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="side=13 does not fit into 12x12"):
        ClusterDetector(side=13, batch=16, references=96).scores(crowd(0, 2), [], crowd(2, 1), images=IMAGES)


@pytest.mark.parametrize("detector", DETECTORS.values())
def test_a_detector_is_built_again_from_what_identifies_it(detector: Detector) -> None:
    assert instantiate(identify(detector), "detectors.x", Detector) == detector


def test_detectors_see_the_attackers_images_alone() -> None:
    config = compose(["experiment=encoders/detection", "scale=smoke"])
    detections = plan(config, lambda name: f"print of {name}").detections
    assert {d.unit for d in detections} >= {"trigger inversion to cosine 0.99"}
    for detection in detections:
        data = detection.stage.config["data"]
        assert (data["part"], data["split"]) == ("attacker", "train")
        assert detection.stage.data == {data["name"]: f"print of {data['name']}"}
