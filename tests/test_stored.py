"""A folder of pictures that memory does not hold trains as if it did: same pixels, same batches, same weights."""

import logging
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hallmark.data.catalogue import load
from hallmark.data.described import DataFolder
from hallmark.data.images import ImageSet
from hallmark.data.resident import Batch, ResidentBatches
from hallmark.data.stored import StoredImages
from hallmark.errors import BudgetExhausted, ConfigError, DataError
from hallmark.pretrain.recipe import HostRecipe, Recipe
from hallmark.pretrain.train import pretrain
from hallmark.training import LightningTrainer
from hallmark.training_settings import Deadline, TrainerSettings

COUNT = 24
NAME = "imagefolder:pictures"
DESCRIPTION = {"name": NAME, "split": "train", "size": 12, "limit": None, "seed": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many shapes in two classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(COUNT):
        height, width = rng.integers(8, 40, 2)
        for split in ("train", "val"):
            path = folder / "pictures" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


def loaded(root: Path, **options: Any) -> ImageSet:
    return load(NAME, "train", root=root, size=12, **options)


@pytest.fixture(scope="module")
def resident(root: Path) -> ImageSet:
    return loaded(root)


@pytest.fixture(scope="module")
def stored(root: Path) -> ImageSet:
    return loaded(root, resident_bytes=COUNT * 3 * 12 * 12 - 1, workers=2)


def batches(data: ImageSet, **options: Any) -> list[Batch]:
    """Two epochs."""
    made = ResidentBatches(data.images, labels=data.labels, batch=8, seed=1, **options)
    found: list[Batch] = []
    for epoch in range(2):
        made.set_epoch(epoch)
        found += made
    return found


def test_only_what_does_not_fit_stays_in_its_files_and_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    needed = COUNT * 3 * 12 * 12
    with caplog.at_level(logging.WARNING):
        assert isinstance(loaded(root, resident_bytes=needed).images, torch.Tensor)
        assert not caplog.records
        assert isinstance(loaded(root, resident_bytes=needed - 1, workers=3).images, StoredImages)
    assert f"{COUNT} images of data set {NAME!r} at size 12 need {needed} bytes" in caplog.text
    assert "read by 3 workers" in caplog.text
    with pytest.raises(DataError, match=r"raise trainer\.resident_gib"):  # drawn images have no files to stay in
        load("procedural", "train", size=8, limit=20, resident_bytes=100)


def test_rows_read_are_the_resident_ones(resident: ImageSet, stored: ImageSet) -> None:
    assert len(stored) == COUNT
    assert stored.images.shape == resident.images.shape
    assert torch.equal(stored.labels, resident.labels)
    rows = torch.tensor([5, 0, 17])
    assert torch.equal(stored.images[rows], resident.images[rows])
    assert torch.equal(stored.images[3:9], resident.images[3:9])
    parts = torch.split(stored.images, 10)
    assert torch.equal(torch.cat(list(parts)), resident.images)
    part = stored.unlabelled().subset(rows)
    assert isinstance(part.images, StoredImages)
    assert torch.equal(part.images[:], resident.images[rows])
    assert part.labels.tolist() == [-1] * 3


def test_parts_of_a_described_set_stay_unread(root: Path) -> None:
    description = DESCRIPTION | {"parts": {"owner": 0.5, "attacker": 0.5}, "part": "attacker"}
    part = DataFolder(root, resident_bytes=0, workers=1).get(description)
    assert isinstance(part.images, StoredImages)
    assert part.images.workers == 1
    assert torch.equal(part.images[:], DataFolder(root).get(description).images)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_reach_the_step(workers: int, root: Path, resident: ImageSet) -> None:
    state = torch.get_rng_state()
    read = batches(loaded(root, resident_bytes=0, workers=workers), drop_last=False)
    assert torch.equal(torch.get_rng_state(), state), "an epoch draws nothing from the global generator"
    for one, other in zip(read, batches(resident, drop_last=False), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert one[3:] == other[3:]


def test_ranks_read_their_shares_of_a_batch(resident: ImageSet, stored: ImageSet) -> None:
    """Each rank has a pickled copy of its own, as spawned processes get it."""
    copies = [ForkingPickler.loads(ForkingPickler.dumps(stored)) for _ in range(2)]
    ranks = [batches(copy, rank=rank, world=2) for rank, copy in enumerate(copies)]
    for whole, *shares in zip(batches(resident), *ranks, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
        assert {share.step for share in shares} == {whole.step}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_ends_training_in_one_line(workers: int, root: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(root / "pictures")
    stored = loaded(root, resident_bytes=0, workers=workers).images
    broken = tmp_path / "3.png"
    broken.write_bytes(b"no picture")
    paths = (*stored.read.paths[:3], str(broken), *stored.read.paths[4:])
    damaged = StoredImages(type(stored.read)(paths, crop=True), stored.rows, stored.size, workers)
    with pytest.raises(DataError, match=r"3\.png' cannot be read") as raised:
        list(ResidentBatches(damaged, batch=8, seed=1))
    assert "\n" not in str(raised.value)


class After(Deadline):
    """A budget that is spent at the end of the first epoch."""

    def check(self, needed: float = 0.0) -> None:
        raise BudgetExhausted("spent")


def test_a_resumed_run_on_files_gives_the_weights_of_an_uninterrupted_resident_one(
    resident: ImageSet, stored: ImageSet, tmp_path: Path
) -> None:
    options = {"temperature": 0.5, "hidden": 8, "projection": 4}

    def run(data: ImageSet, folder: Path, deadline: Deadline | None = None) -> dict[str, torch.Tensor]:
        trainer = LightningTrainer(TrainerSettings(precision="32-true", progress=False), folder, deadline=deadline)
        host, recipe = HostRecipe("resnet_small", 2), Recipe("simclr", 2, 8, options)
        return pretrain(host, recipe, data.images, trainer=trainer, seed=0).state_dict()

    expected = run(resident, tmp_path / "resident")
    with pytest.raises(BudgetExhausted):
        run(stored, tmp_path / "stored", After())
    resumed = run(stored, tmp_path / "stored")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.parametrize("wrong", [{"resident_gib": -1.0}, {"resident_gib": float("nan")}, {"workers": -1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"resident_gib and trainer\.workers"):
        TrainerSettings(**wrong)


def test_where_images_lie_is_no_part_of_a_stages_identity() -> None:
    assert TrainerSettings(resident_gib=0, workers=5).semantic() == TrainerSettings().semantic()
