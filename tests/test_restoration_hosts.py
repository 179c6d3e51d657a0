"""Hosts that map images to images, in the pipeline: recipes, unlabelled photographs, and what planning refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hallmark.composition import compose
from hallmark.core import HostKind
from hallmark.data.catalogue import load
from hallmark.data.images import ImageSet
from hallmark.data.pairs import PairLaw
from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError, DataError
from hallmark.models.image_to_image import Architecture, fresh
from hallmark.models.kinds import kind_of
from hallmark.pretrain.hosts import make_host
from hallmark.pretrain.recipe import HostRecipe, RestorationRecipe, build_recipe
from hallmark.restoration_settings import Fit
from hallmark.stages.plan import plan
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

RECIPE = RestorationRecipe(PairLaw("grey", side=16), Fit(epochs=1, batch=4, lr=1e-3), depth=2)
HOST = HostRecipe("unet", 4)
EXPERIMENTS = ("main", "marks", "structures", "losses", "self_watermarked", "family", "later_attacks")


def planned(*overrides: str, experiment: str = "main", scale: str = "smoke"):
    return plan(compose([f"experiment=deep_watermark/{experiment}", f"scale={scale}", *overrides]), lambda name: name)


def test_a_host_is_trained_without_labels_and_equal_seeds_make_equal_hosts(tmp_path: Path) -> None:
    images, _ = procedural_images(8, size=20)
    owner = ImageSet("drawn", images, torch.full((8,), -1), 0)
    hosts = []
    for folder in "ab":
        trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), tmp_path / folder)
        hosts.append(make_host(HOST, RECIPE, owner, trainer=trainer, seed=3)[0])
    one, other = (host.state_dict() for host in hosts)
    assert kind_of(hosts[0]) is HostKind.IMAGE_TO_IMAGE
    assert all(torch.equal(one[name], other[name]) for name in one)
    untrained = fresh(Architecture("unet", 4, 2), 3).state_dict()
    assert any(not torch.equal(one[name], untrained[name]) for name in one)


@pytest.mark.parametrize(
    ("host", "size", "message"),
    [
        (HostRecipe("unet", None), 32, "set host.width"),
        (HostRecipe("resnet18", 4), 32, "unknown image-to-image network 'resnet18'"),
        (HOST, 12, "pairs.side=16 does not fit into 12x12 images"),
    ],
)
def test_what_fits_no_network_is_refused(host: HostRecipe, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RECIPE.architecture(host, size)


def test_a_recipe_is_built_by_its_method_and_says_what_it_costs() -> None:
    recipe = build_recipe({"method": "restoration", "fit": {"epochs": 5, "batch": 8, "patches": 3}}, "pretrain")
    assert isinstance(recipe, RestorationRecipe)
    assert (recipe.epochs, recipe.batch, recipe.passes) == (5, 8, 9)
    with pytest.raises(ConfigError, match="unknown pretraining method 'simclr'"):
        RestorationRecipe(method="simclr")


@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_planned_with_its_controls(experiment: str, scale: str) -> None:
    found = planned(experiment=experiment, scale=scale)
    assert {"marked", "original", "attacked_innocent"} <= {s.suspect for s in found.subjects}
    for subject in found.subjects:  # what is done to a marked model is done to the original
        if subject.suspect == "marked" and subject.attack != "none":
            done = {(s.attack, s.unit) for s in found.subjects if s.suspect == "attacked_innocent"}
            assert (subject.attack, subject.unit) in done
    marks = {s.embed.key for s in found.subjects}
    assert len(found.sheets) == len(marks)


def test_the_structures_and_losses_are_the_papers() -> None:
    units = {s.unit for e in ("structures", "losses") for s in planned(experiment=e).subjects if s.attack != "none"}
    losses = ("l1", "l2", "l1_adv", "l2_adv", "perceptual_adv[random]")
    expected = {f"fraction {name} l2" for name in ("cnet", "res9", "res16")}
    assert units == expected | {f"fraction unet {loss}" for loss in losses}


def test_a_family_bounds_the_smallest_p() -> None:
    with pytest.raises(ConfigError, match=r"the 3 decoys that deep_watermark has .* below 0.25"):
        planned("scheme.family=4", "alpha=0.2")
    found = planned("scheme.family=4", "alpha=0.25")
    assert {s.verify.config["trials"] for s in found.subjects} == {0}  # no fresh keys beside the family
    with pytest.raises(ConfigError, match=r"calibration.decoys=2 .* raise the decoys"):
        planned("scheme.family=4", "alpha=0.25", "calibration.decoys=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scale.imaging.side=48", "each side must be a multiple"),
        ("scheme=uchida", "the host is a network from images to images"),
        ("scale.imaging.size=16", "does not fit into 16x16 images"),
        ("pretrains.restoration.fit.batch=1000", "exceeds the owner's"),
        ("trainer.devices=2", "set trainer.devices=1"),
    ],
)
def test_what_cannot_work_is_refused_while_planning(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(override, "scale.imaging.depth=5" if "side" in override else "seed=0")


def test_samples_are_two_photographs_in_squares_and_scenes() -> None:
    train, test = (load("samples", split, size=40) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (96, 24, 0)
    assert set(train.labels.tolist()) == {-1}
    assert not any(torch.equal(a, b) for a in train.images for b in test.images)
    small = load("samples", "train", size=32, limit=5)
    assert torch.equal(small.images, load("samples", "train", size=32).images[small.indices])


def write(path: Path, height: int, width: int, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), level, dtype=np.uint8)
    pixels[:, : (width - height) // 2] = pixels[:, width - (width - height) // 2 :] = 255  # outside the square
    Image.fromarray(pixels).save(path)


def test_photographs_are_central_squares_without_labels(tmp_path: Path) -> None:
    for number in (2, 1):
        write(tmp_path / "images" / "CBSD68" / f"{number}.png", 20, 30, 10 * number)
    with pytest.raises(DataError, match="'photographs' not found"):
        load("photographs", "train", root=tmp_path)
    write(tmp_path / "images" / "Kodak24" / "a.png", 20, 20, 70)
    train = load("photographs", "train", root=tmp_path, size=20)
    assert train.images.flatten(1).unique(dim=1).flatten().tolist() == [10, 20]
    assert load("photographs", "test", root=tmp_path, size=10).images.unique().tolist() == [70]


def test_voc_is_read_by_torchvisions_lists(tmp_path: Path) -> None:
    for year, part, names in (("2012", "trainval", ["b", "a"]), ("2007", "test", ["c"])):
        base = tmp_path / "VOCdevkit" / f"VOC{year}"
        (base / "ImageSets" / "Main").mkdir(parents=True)
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in [*names, "unlisted"]:
            write(base / "JPEGImages" / f"{name}.jpg", 16, 16, {"a": 16, "b": 32}.get(name, 64))
    train = load("voc", "train", root=tmp_path, size=16)
    assert [round(float(image.float().mean()) / 16) for image in train.images] == [1, 2]
    assert len(load("voc", "test", root=tmp_path, size=16)) == 1
