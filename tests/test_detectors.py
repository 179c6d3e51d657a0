"""Object detectors as hosts: models on disk, training, mean average precision, and locks in their backbones."""

from functools import cache, partial
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, get_model_weights

from hallmark.cli import run
from hallmark.composition import compose
from hallmark.core import Access, HostKind, Marking, Suspect, generator
from hallmark.data.catalogue import load
from hallmark.data.images import ImageSet
from hallmark.data.objects import in_each
from hallmark.data.scenes import draw_scenes
from hallmark.detection import mirror, train_detector
from hallmark.errors import AccessError, ConfigError, DataError, KeyFileError
from hallmark.models import files
from hallmark.models.detectors import ObjectDetector, fresh, pretrained
from hallmark.models.excite import append
from hallmark.models.kinds import kind_of
from hallmark.optimisation import Training
from hallmark.pretrain.hosts import make_host
from hallmark.pretrain.recipe import HostRecipe, build_recipe
from hallmark.report.rows import read
from hallmark.report.surveys import locked_use
from hallmark.schemes.stain_lock import Lock, LockedUse, Search, Stain
from hallmark.schemes.stain_lock.locking import unlock
from hallmark.stages.plan import plan
from hallmark.tasks.detection import Detection, detect, mean_average_precision
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

SIZE = 64
QUICK = Search(steps=30, restarts=1, backgrounds=2)
RECIPE = {"method": "detection", "epochs": 2, "batch": 4}


@cache
def owner() -> ImageSet:
    return load("scenes", "train", size=SIZE, limit=24)


@cache
def host() -> ObjectDetector:
    """An untrained detector with settled statistics, never changed by any test."""
    detector = fresh("ssdlite_small", 5, SIZE, 8, seed=0)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        detector.train().losses(owner().images.float() / 255, owner().objects)
    return detector.eval()


def trainer(folder) -> LightningTrainer:
    return LightningTrainer(TrainerSettings(progress=False), folder)


def same(found: list, other: list) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(found, other, strict=True) for name in a)


# Models


def test_a_detector_answers_with_boxes_of_its_classes():
    found = detect(host(), owner().images[:3], batch=2)
    assert len(found) == 3
    for each in found:
        assert each["boxes"].shape == (len(each["labels"]), 4)
        assert bool(((each["boxes"] >= 0) & (each["boxes"] <= SIZE)).all())
        assert set(each["labels"].tolist()) <= set(range(5))
        assert each["scores"].tolist() == sorted(each["scores"].tolist(), reverse=True)


def test_the_resize_inside_does_nothing_at_the_detectors_size():
    images = owner().images[:2].float() / 255
    inside, _ = host().network.transform(list(images))
    assert torch.equal(inside.tensors, (images - 0.5) / 0.5)


def test_maps_are_what_boxes_are_read_from():
    seen = []
    with host().network.head.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        host()(owner().images[:2].float() / 255)
        maps = host().maps(owner().images[:2].float() / 255)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], maps.values(), strict=True))
    assert [tuple(level.shape[2:]) for level in maps.values()] == [(8, 8), (4, 4), (2, 2)]


def test_a_stored_detector_is_the_same_with_what_was_appended(tmp_path):
    detector = fresh("ssdlite_small", 5, SIZE, 8, seed=1).eval()
    append(detector, "network.backbone.layer2", 16)
    files.save(detector, tmp_path)
    read = files.load(tmp_path)
    assert read.spec == detector.spec
    assert read.spec["added"] == {"backbone.layer2": {"kind": "excite", "channels": 16}}
    assert same(detect(read, owner().images[:2]), detect(detector, owner().images[:2]))


def test_equal_seeds_give_equal_detectors():
    state = [fresh("ssdlite_small", 5, SIZE, 4, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(state[0][name], state[1][name]) for name in state[0])
    assert any(not torch.equal(state[0][name], state[2][name]) for name in state[0])


def test_a_detector_is_a_host_of_its_kind_that_shows_its_weights_alone():
    assert kind_of(host()) is HostKind.DETECTOR
    assert isinstance(Suspect(host(), HostKind.DETECTOR, Access.WEIGHTS).weights_module(), ObjectDetector)
    with pytest.raises(AccessError, match="detector hosts have no logits access; allowed: weights"):
        Suspect(host(), HostKind.DETECTOR, Access.LOGITS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yolo", 5, 64), "unknown detector .yolo.; allowed: .*ssdlite_small"),
        (("ssdlite_small", 5, 60), "multiple of 32"),
        (("ssdlite320_mobilenet_v3_large", 90, 300), "data.size=320"),
        (("ssdlite320_mobilenet_v3_large", 90, 320, 16), "host.width=null"),
        (("fasterrcnn_resnet50_fpn", 90, 320, 16), "host.width=null"),
        (("ssdlite_small", 5, 64, 8, {"backbone.stage": {"kind": "excite", "channels": 8}}), "the model lacks"),
    ],
)
def test_detectors_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        ObjectDetector(*arguments)


def test_torchvisions_detectors_have_the_parameters_of_their_weights():
    for name in ("ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn"):
        with torch.device("meta"):
            detector = ObjectDetector(name, 90, 320)
        counted = sum(p.numel() for p in detector.parameters())
        assert counted == get_model_weights(name).COCO_V1.meta["num_params"]
        assert all(m.eps == 0 for m in detector.modules() if type(m).__name__ == "FrozenBatchNorm2d")


def test_weights_that_cannot_be_had_are_told(monkeypatch):
    name = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(ConfigError, match="no weights 'COCO_V9'"):
        pretrained(name, "COCO_V9", 90, 320)
    with pytest.raises(ConfigError, match="knows 90 classes and the data have 5"):
        pretrained(name, "COCO_V1", 5, 320)
    with pytest.raises(ConfigError, match="no weights 'COCO_V1' for 'ssdlite_small'"):
        pretrained("ssdlite_small", "COCO_V1", 5, 64)

    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(type(ResNet50_Weights.IMAGENET1K_V1).__mro__[1], "get_state_dict", offline)
    with pytest.raises(DataError, match=r"cannot be downloaded .*no network.*put the file into .*checkpoints"):
        pretrained(name, "COCO_V1", 90, 320)


# Training


def test_mirrored_boxes_stay_on_what_they_show():
    images, objects = draw_scenes(4, size=SIZE)
    which = torch.tensor([True, False, True, False])
    turned, moved = mirror(images, objects, which)
    assert torch.equal(turned[0], images[0].flip(2))
    assert torch.equal(turned[1], images[1])
    assert torch.equal(moved[1], objects[1])
    left, top, right, bottom = (int(side) for side in objects[0, 0, 1:5])
    left_now, top_now, right_now, bottom_now = (int(side) for side in moved[0, 0, 1:5])
    shown, before = turned[0, :, top_now:bottom_now, left_now:right_now], images[0, :, top:bottom, left:right]
    assert torch.equal(shown, before.flip(2))
    again, back = mirror(turned, moved, which)
    assert torch.equal(again, images)
    assert torch.equal(back[..., 1:], torch.where(objects[..., :1] < 0, back[..., 1:], objects[..., 1:]))


def test_crowds_are_nothing_to_learn_from():
    detector = fresh("ssdlite_small", 5, SIZE, 4, seed=0).train()
    images, objects = owner().images[:4].float() / 255, owner().objects[:4].clone()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    crowd = torch.tensor([[[0.0, 0, 0, SIZE, SIZE, 1]]]).repeat(4, 1, 1)
    plain, crowded = (detector.losses(images, rows) for rows in (objects, torch.cat([objects, crowd], dim=1)))
    assert all(torch.equal(plain[name], crowded[name]) for name in plain)


def test_a_recipe_trains_a_detector_and_equal_seeds_train_equal_ones(tmp_path):
    recipe = build_recipe({**RECIPE, "training": {"lr": 1e-3}}, "pretrain")
    make = partial(make_host, HostRecipe("ssdlite_small", 4), recipe, owner())
    (one, figures), (other, _) = (make(trainer=trainer(tmp_path / name), seed=0) for name in "ab")
    start = fresh("ssdlite_small", 5, SIZE, 4, seed=0)
    assert figures == {}
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(one.parameters(), start.parameters(), strict=True))


def test_training_lowers_the_loss(tmp_path):
    detector = fresh("ssdlite_small", 5, SIZE, 8, seed=0)
    images = owner().images.float() / 255

    def loss() -> float:
        with torch.no_grad():
            return float(sum(detector.train().losses(images, owner().objects).values()))

    before = loss()
    train_detector(detector, owner(), epochs=10, batch=8, training=Training(lr=3e-3), trainer=trainer(tmp_path), seed=0)
    assert loss() < 0.7 * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "either epochs ≥ 1 or weights"),
        ({"weights": "COCO_V1"}, "either epochs ≥ 1 or weights"),
        ({"batch": 0}, "batch ≥ 1"),
        ({"view": {}}, "DetectionRecipe takes"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_recipe({**RECIPE, **changes}, "pretrains.detection")


def test_images_without_boxes_train_and_measure_nothing(tmp_path):
    bare = owner().unlabelled()
    with pytest.raises(DataError, match="no boxes to learn from"):
        train_detector(host(), bare, epochs=1, batch=4, training=Training(), trainer=trainer(tmp_path), seed=0)
    with pytest.raises(DataError, match="images with boxes"):
        Detection().measure(host(), None, owner(), bare)
    with pytest.raises(ConfigError, match="batch=0"):
        Detection(batch=0)


# Mean average precision, against values computed by hand


def there(*boxes: list[float], crowd: int = 0) -> Any:
    rows = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return {"boxes": rows, "labels": torch.zeros(len(rows)).long(), "iscrowd": torch.full((len(rows),), crowd)}


def found(*boxes: list[float], scores: list[float] | None = None) -> Any:
    rows = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    given = torch.tensor(scores or [0.9] * len(rows))
    return {"boxes": rows, "labels": torch.zeros(len(rows)).long(), "scores": given}


BOX = [0.0, 0.0, 100.0, 100.0]


def test_perfect_and_empty_answers():
    truth = in_each(owner().objects)
    perfect = [{**each, "scores": torch.ones(len(each["labels"]))} for each in truth]
    assert mean_average_precision(perfect, truth) == pytest.approx(1)
    assert mean_average_precision([found() for _ in truth], truth) == 0


@pytest.mark.parametrize(
    ("answers", "truth", "expected"),
    [
        ([found(BOX), found()], [there(BOX), there(BOX)], 51 / 101),  # recall 0.5: 51 of COCO's 101 recalls
        ([found([0, 0, 100, 77])], [there(BOX)], 0.6),  # IoU 0.77 passes 0.50, …, 0.75: 6 of 10 thresholds
        ([found(BOX, [0, 200, 50, 250], scores=[0.5, 0.9])], [there(BOX)], 0.5),  # precision at full recall
        ([found(BOX, [0, 200, 50, 250], scores=[0.9, 0.5])], [there(BOX)], 1.0),  # a later mistake costs nothing
    ],
)
def test_average_precision_by_hand(answers, truth, expected):
    assert mean_average_precision(answers, truth) == pytest.approx(expected, abs=1e-6)


def test_what_is_found_in_a_crowd_is_no_mistake():
    crowd = there([0, 200, 100, 300], crowd=1)
    both = {name: torch.cat([there(BOX)[name], crowd[name]]) for name in crowd}
    answer = found([0, 200, 50, 250], BOX, scores=[0.9, 0.5])
    assert mean_average_precision([answer], [both]) == pytest.approx(1)
    assert mean_average_precision([answer], [there(BOX)]) == pytest.approx(0.5)
    with pytest.raises(DataError, match="at least one object"):
        mean_average_precision([answer], [there()])


def test_the_task_measures_what_the_detector_finds():
    class Oracle(nn.Module):
        """Finds what is there in the images it has seen."""

        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> list:
            keys = [image.mul(255).round().to(torch.uint8) for image in images]
            places = [next(i for i, seen in enumerate(owner().images) if torch.equal(seen, key)) for key in keys]
            truth = in_each(owner().objects[places])
            return [{**each, "scores": torch.ones(len(each["labels"]))} for each in truth]

    (figure,) = Detection(batch=5).measure(Oracle(), None, owner(), owner())
    assert (figure.metric, figure.n) == ("map", 24)
    assert figure.value == pytest.approx(1)


# Locks


def locks(**changes: Any) -> Lock:
    base = {"layer": "layer2.conv1", "kind": "excite", "behind": "layer2", "draws": 8, "search": QUICK}
    return Lock(**{**base, "natural": 24, "tolerance": 0.5, **changes})


@cache
def locked() -> tuple[Lock, ObjectDetector, ObjectDetector, Any]:
    """The scheme, the locked detector, the edited one, and the key."""
    scheme = locks()
    key = scheme.keygen(host(), owner(), generator=generator(0, "key"))
    model, key = scheme.embed(host(), key, owner(), trainer=None, generator=generator(0, "embed"))
    return scheme, model, scheme.edited(host(), owner()), key


def test_with_its_patch_a_locked_detector_is_the_edited_one():
    _, model, edited, key = locked()
    patched = unlock(owner().images, key)
    assert same(detect(model, patched), detect(edited, patched))


def test_without_its_patch_every_level_of_features_is_another():
    _, model, edited, key = locked()
    box = key.meta["boxes"][0]
    noise = torch.randint(0, 256, (24, 3, box[2], box[3]), generator=generator(0, "noise")).to(torch.uint8)
    wrong = owner().images.clone()
    wrong[..., : box[2], : box[3]] = noise
    for images in (owner().images, wrong):
        with torch.no_grad():
            levels = [m.maps(images.float() / 255) for m in (model, edited)]
        for level in levels[1]:
            shut = [(a - b).abs().max() > 1e-3 for a, b in zip(levels[0][level], levels[1][level], strict=True)]
            assert sum(shut) >= 12  # the others are false fires, of which the settings allow half


def test_a_lock_in_a_detector_is_stored_and_found_in_its_weights(tmp_path):
    scheme, model, edited, key = locked()
    files.save(model, tmp_path)
    read = files.load(tmp_path)
    assert same(detect(read, owner().images[:4]), detect(model, owner().images[:4]))
    marked, innocent, bare = (Suspect(m, HostKind.DETECTOR, Access.WEIGHTS) for m in (read, edited, host()))
    assert float(scheme.extract(marked, key).scores[0, 0]) > 50
    assert float(scheme.extract(innocent, key).scores[0, 0]) < 10
    with pytest.raises(KeyFileError, match=r"layer2\.block\.conv1', which this one lacks"):  # it shows no mark
        scheme.extract(bare, key)
    strange = scheme.decoys(host(), key, owner(), 8, seed=0)
    assert max(float(e.scores[0, 0]) for e in scheme.extract_many(marked, strange)) < 10


def test_the_survey_reads_the_precision_of_each_network() -> None:
    scheme, model, edited, key = locked()
    test = load("scenes", "test", size=SIZE, limit=8)
    marking = Marking(scheme, model, key)
    found = LockedUse().look(host(), marking, owner().unlabelled(), test, generator=generator(0))
    figures = {(reading.variant, reading.unit): reading.value for reading in found}
    assert {reading.metric for reading in found} == {"map"}
    assert set(figures) == {
        *((role, unit) for role in ("original", "edited") for unit in ("", "patch")),
        *(("locked", unit) for unit in ("", "random patch", "shifted patch")),
        ("unlocked", "patch"),
    }
    assert figures["unlocked", "patch"] == figures["edited", "patch"]
    own = Detection().measure(edited, None, owner(), test)[0].value
    assert figures["edited", ""] == pytest.approx(own)


def test_the_experiment_marks_detectors_and_measures_them() -> None:
    experiment = plan(compose(["experiment=stain_lock/detector", "scale=smoke"]), lambda name: name)
    assert {(s.mark.label, s.suspect, *s.transfers) for s in experiment.subjects} == {
        (mark, suspect, ("", "detection")) for mark in ("lock", "stain") for suspect in ("marked", "original")
    }
    assert [(survey.scheme, survey.variant) for survey in experiment.surveys] == [("lock", "")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scheme.kind=internal", "marks classifiers, but the host is an object detector"),
        ("variants.stain.code=true", "marks classifiers and encoders, but the host is an object detector"),
        ("+task@tasks.classification=classification", "works on classifiers, but the host is an object detector"),
        ("scheme.layer=layer9.conv1", "does not exist; there are: .*network.backbone.stem.0"),
        ("data.size=60", "multiple of 32"),
        ("pretrains.detection.weights=COCO_V1", "either epochs ≥ 1 or weights"),
    ],
)
def test_experiments_that_do_not_fit_detectors_are_refused_before_they_run(change: str, message: str) -> None:
    changes = [change, "scheme.behind=''"] if "internal" in change else [change]
    with pytest.raises(ConfigError, match=message):
        plan(compose(["experiment=stain_lock/detector", "scale=smoke", *changes]), lambda name: name)


def test_published_weights_are_not_wanted_at_smoke_scale() -> None:
    experiment = plan(compose(["experiment=stain_lock/coco_ssdlite", "scale=smoke"]), lambda name: name)
    (made,) = (stage for stage in experiment.stages if stage.kind == "pretrain")
    assert (made.config["recipe"]["weights"], made.config["data"]["name"]) == ("untrained", "scenes")
    few = load("scenes", "train", size=SIZE, limit=2)
    recipe = build_recipe({**RECIPE, "epochs": 0, "weights": "untrained"}, "pretrain")
    model, _ = make_host(HostRecipe("ssdlite_small", 4), recipe, few, trainer=None, seed=0)
    start = fresh("ssdlite_small", 5, SIZE, 4, seed=0)
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_the_experiment_runs_and_its_rows_say_which_network(tmp_path) -> None:
    words = ["experiment=stain_lock/detector", "scale=smoke", "scale.trials=2", "trainer.progress=false"]
    run(compose([*words, f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}"]))
    rows = read(tmp_path / "r" / "runs.csv")
    precise = rows[rows["metric"] == "map"]
    surveyed = precise[precise["task"] == ""]
    assert set(surveyed["variant"]) == {"original", "edited", "locked", "unlocked"}
    assert set(precise[precise["task"] == "detection"]["suspect"]) == {"marked", "original"}
    (line,) = locked_use(rows, "use").frame.to_dict("records")
    assert (line["variant"], line["host"]) == ("", "ssdlite_small")
    assert {use: line[use] for use in ("original", "locked, random patch", "unlocked")} == {
        use: surveyed.set_index(["variant", "unit"])["value"][variant, unit]
        for use, variant, unit in (
            ("original", "original", ""),
            ("locked, random patch", "locked", "random patch"),
            ("unlocked", "unlocked", "patch"),
        )
    }
    verdicts = rows[rows["metric"] == "detected"].set_index(["scheme", "suspect"])["value"]
    assert verdicts["lock", "marked"] == verdicts["stain", "marked"] == 1
    assert verdicts["lock", "original"] == verdicts["stain", "original"] == 0


def test_a_stain_without_a_code_is_found_in_a_detectors_weights():
    scheme = Stain(layer="layer3.conv1", keys=2, code=False, search=QUICK)
    key = scheme.keygen(host(), owner(), generator=generator(0, "key"))
    model, key = scheme.embed(host(), key, owner(), trainer=None, generator=generator(0, "embed"))
    marked, innocent = (Suspect(m, HostKind.DETECTOR, Access.WEIGHTS) for m in (model, host()))
    assert scheme.extract(marked, key).scores[:, 0].min() > 50
    assert scheme.extract(innocent, key).scores[:, 0].max() < 10


def test_what_needs_an_answer_of_one_vector_does_not_mark_detectors():
    assert HostKind.DETECTOR in locks().hosts
    assert HostKind.DETECTOR not in Lock(layer="layer3.conv1").hosts
    assert HostKind.DETECTOR in Stain(layer="layer3.conv1", code=False).hosts
    assert HostKind.DETECTOR not in Stain(layer="layer3.conv1").hosts


@pytest.mark.parametrize(
    ("name", "size", "layer", "behind"),
    [
        ("ssdlite320_mobilenet_v3_large", 320, "backbone.features.0.3.block.0.0", "backbone.features.0.3"),
        ("fasterrcnn_resnet50_fpn", 128, "body.layer1.0.conv2", "body.layer1.0"),
    ],
)
def test_torchvisions_detectors_unlock_exactly(name, size, layer, behind):
    """Algebra on untrained weights: nothing is said about what a lock costs them."""
    detector = fresh(name, 90, size, None, seed=0).eval()
    images = ImageSet("scenes", draw_scenes(4, size=size)[0], torch.full((4,), -1), 90)
    scheme = locks(layer=layer, behind=behind, draws=4, tolerance=0.999, natural=4, queries=1)
    key = scheme.keygen(detector, images, generator=generator(0, "key"))
    model, key = scheme.embed(detector, key, images, trainer=None, generator=generator(0, "embed"))
    edited = scheme.edited(detector, images)
    patched, plain = (part.float() / 255 for part in (unlock(images.images[:2], key), images.images[:2]))
    with torch.no_grad():
        opened, reference, shut = (m.maps(x) for m, x in ((model, patched), (edited, patched), (model, plain)))
        unhurt = edited.maps(plain)
    assert all(torch.equal(opened[level], reference[level]) for level in opened)
    assert all(not torch.equal(shut[level], unhurt[level]) for level in shut)
    assert same(detect(model, unlock(images.images[:1], key)), detect(edited, unlock(images.images[:1], key)))
