"""Images with boxes: drawn scenes, and COCO's from files."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from hallmark.data import scenes
from hallmark.data.catalogue import load
from hallmark.data.described import DataFolder
from hallmark.data.images import ImageSet
from hallmark.data.objects import in_each
from hallmark.data.scenes import draw_scenes
from hallmark.data.splits import check_disjoint
from hallmark.errors import ConfigError, DataError

PARTS = {"owner": 2 / 3, "attacker": 1 / 3}


# Drawn scenes


def test_a_scene_depends_on_its_index_alone():
    images, objects = draw_scenes([7, 3, 7], size=48)
    alone, there = draw_scenes([3], size=48)
    assert torch.equal(images[1:2], alone)
    assert torch.equal(objects[1:2], there)
    assert torch.equal(images[0], images[2])
    assert torch.equal(draw_scenes(8, size=48)[0][7], images[0])


def test_seeds_and_splits_draw_other_scenes():
    drawn = [draw_scenes(6, size=32, **which)[0] for which in ({}, {"seed": 1}, {"split": "test"})]
    assert len(torch.cat(drawn).flatten(1).unique(dim=0)) == 18


def test_boxes_are_inside_and_classes_known():
    images, objects = draw_scenes(60, size=64, classes=3)
    there = objects[objects[..., 0] >= 0]
    assert images.shape == (60, 3, 64, 64)
    assert set(there[:, 0].tolist()) == {0, 1, 2}
    assert bool((there[:, 3:5] - there[:, 1:3] >= 5).all())
    assert bool(((there[:, 1:5] >= 0) & (there[:, 1:5] <= 64)).all())
    assert {len(each["labels"]) for each in in_each(objects)} == {1, 2, 3, 4}
    assert objects[:, 0, 0].tolist() == [index % 3 for index in range(60)]


def test_what_an_object_changes_fills_its_box():
    """A scene with an object differs from the same scene without it inside the box alone, and up to its sides."""
    size, at = 64, torch.arange(12)
    uniforms, noise = scenes._chance(at, size, 0, 0)
    things = list(scenes._things(uniforms, scenes.scene_labels(at, 5), 5, size))
    whole, objects = draw_scenes(12, size=size)
    for slot, thing in enumerate(things):
        less = [*things[:slot], replace(thing, there=torch.zeros(12, dtype=torch.bool)), *things[slot + 1 :]]
        changed = (scenes._paint(uniforms, less, noise) != whole).any(1)
        for mask, there, row in zip(changed, thing.there, objects[:, slot], strict=True):
            if not there:
                assert not mask.any()
                continue
            down, right = mask.nonzero().unbind(1)
            found = torch.stack([right.min(), down.min(), right.max() + 1, down.max() + 1])
            assert int((found - row[1:5]).abs().max()) <= 2  # half-covered pixels around, some like the background


def test_parts_of_a_loaded_set_share_no_scene():
    description = {"name": "scenes", "split": "train", "size": 32, "limit": 30, "seed": 0, "parts": PARTS}
    folder = DataFolder(None)
    owner, attacker = (folder.get({**description, "part": part}) for part in PARTS)
    check_disjoint({part: folder.indices({**description, "part": part}) for part in PARTS})
    test = load("scenes", "test", size=32, limit=10)
    assert (len(owner), len(attacker), owner.classes) == (20, 10, 5)
    assert len(torch.cat([owner.images, attacker.images, test.images]).flatten(1).unique(dim=0)) == 40
    assert torch.equal(owner.objects[:, 0, 0].long(), owner.labels)
    assert torch.equal(owner.objects, draw_scenes(owner.indices, size=32)[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "val"}, ConfigError, "allowed: test, train"),
        ({"classes": 12}, DataError, "1 to 11"),
        ({"size": 16}, DataError, "size >= 32"),
        ({"seed": -1}, DataError, "seed >= 0"),
    ],
)
def test_scenes_outside_their_range_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        draw_scenes(2, **{"size": 32, **changes})


# Objects beside images


def some(objects: torch.Tensor) -> ImageSet:
    return ImageSet("set", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), 2, objects=objects)


def test_objects_go_with_their_images_and_with_the_labels():
    rows = torch.tensor([[[1.0, 0, 0, 4, 4, 0]], [[-1, 0, 0, 0, 0, 0]]])
    first = some(rows).subset([1, 0]).subset([1])
    assert torch.equal(first.objects, rows[:1])
    assert first.unlabelled().objects is None
    assert [len(each["labels"]) for each in in_each(rows)] == [1, 0]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (torch.zeros(2, 1, 5), "must be float32"),
        (torch.zeros(1, 1, 6), "must be float32"),
        (torch.tensor([2.0, 0, 0, 4, 4, 0]).repeat(2, 1, 1), "class 2"),
        (torch.tensor([0.0, 4, 0, 4, 4, 0]).repeat(2, 1, 1), "empty or leave"),
        (torch.tensor([0.0, 0, 0, 9, 4, 0]).repeat(2, 1, 1), "empty or leave"),
    ],
)
def test_objects_that_do_not_fit_are_refused(objects, message):
    with pytest.raises(DataError, match=message):
        some(objects)


# COCO


def coco(root, part: str, sizes: list[tuple[int, int]], annotations: list[dict]) -> None:
    folder = root / "coco"
    (folder / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    files = [
        {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i, (width, height) in enumerate(sizes)
    ]
    for file in files:
        Image.new("RGB", (file["width"], file["height"]), (200, 0, 0)).save(folder / part / file["file_name"])
    content = {
        "images": files,
        "annotations": [{"id": i, "area": 1, "iscrowd": 0, **a} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


ANNOTATIONS = [
    {"image_id": 0, "category_id": 1, "bbox": [10, 0, 30, 20]},
    {"image_id": 0, "category_id": 90, "bbox": [0, 0, 40, 20], "iscrowd": 1},
    {"image_id": 0, "category_id": 1, "bbox": [0, 0, 0, 20]},
]


def test_coco_is_stretched_with_its_boxes(tmp_path, capsys):
    coco(tmp_path, "val2017", [(40, 20), (20, 40)], ANNOTATIONS)
    coco(tmp_path, "train2017", [(8, 8)], [])
    found = load("coco", "test", root=tmp_path, size=80)
    assert found.images.shape == (2, 3, 80, 80)
    assert (found.classes, found.labels.tolist()) == (90, [89, -1])
    assert found.objects[0].tolist() == [[0, 20, 0, 80, 80, 0], [89, 0, 0, 80, 80, 1]]
    assert [len(each["labels"]) for each in in_each(found.objects)] == [2, 0]
    assert len(load("coco", "test", root=tmp_path, size=8, limit=1)) == 1
    assert capsys.readouterr().out == ""


def test_coco_is_padded_below_and_to_the_right(tmp_path):
    coco(tmp_path, "val2017", [(40, 20), (20, 40)], ANNOTATIONS)
    coco(tmp_path, "train2017", [(8, 8)], [])
    found = load("coco_padded", "test", root=tmp_path, size=80)
    assert found.objects[0].tolist() == [[0, 20, 0, 80, 40, 0], [89, 0, 0, 80, 40, 1]]
    red = found.images[:, 0] > 180
    assert red[0].sum() == red[0, :40].sum() == 80 * 40
    assert red[1].sum() == red[1, :, :40].sum() == 80 * 40
    assert found.images[0, :, 60, 5].tolist() == [124, 116, 104]


def test_coco_without_its_files_says_so(tmp_path):
    with pytest.raises(DataError, match=r"'coco' not found under .* set HALLMARK_DATA or data_root"):
        load("coco", "test", root=tmp_path)
