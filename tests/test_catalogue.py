"""Loading data sets by name, from tiny files laid out as torchvision expects them."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from hallmark.data import catalogue, readers
from hallmark.data.catalogue import load
from hallmark.data.fingerprint import fingerprint
from hallmark.data.sources import NAMES, find_source
from hallmark.data.splits import split_indices
from hallmark.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, data.ndim]) + np.array(data.shape, dtype=">i4").tobytes() + data.tobytes())


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for part in ("train", "t10k"):
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# Each format


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_is_grey_made_rgb(tmp_path, split):
    images, labels = pixels(6, 28, 28), np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
    write_mnist(tmp_path, images, labels)
    small = load("mnist", split, root=tmp_path, size=28)
    assert (small.name, small.classes, small.groups) == ("mnist", 10, None)
    assert small.labels.tolist() == labels.tolist()
    assert all(np.array_equal(small.images[:, channel].numpy(), images) for channel in range(3))
    assert small.images.is_contiguous()
    assert load("mnist", split, root=tmp_path).images.shape == (6, 3, 32, 32)


def test_cifar_keeps_rows_columns_and_channels_apart(monkeypatch):
    images = pixels(5, 32, 32, 3)

    class Stub:
        def __init__(self, root, train, download):
            self.data, self.targets = images, [4, 3, 2, 1, train]

    opened = readers._cifar(Stub, Path(), "train", False)
    assert opened.labels.tolist() == [4, 3, 2, 1, 1]
    assert np.array_equal(opened.read(torch.tensor([3]), 32)[0].permute(1, 2, 0).numpy(), images[3])
    assert readers._cifar(Stub, Path(), "test", False).labels.tolist() == [4, 3, 2, 1, 0]


def test_svhn_digit_ten_is_zero(tmp_path, monkeypatch):
    images = pixels(32, 32, 3, 4)
    for split in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[10], [1], [2], [9]])})
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    loaded = load("svhn", "test", root=tmp_path)
    assert loaded.labels.tolist() == [0, 1, 2, 9]
    assert np.array_equal(loaded.images.permute(2, 3, 1, 0).numpy(), images)


def test_stl10_labels_start_at_zero(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = pixels(3, 3, 96, 96)
    for split in ("train", "test"):
        images.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")  # stored column by column
        np.array([1, 10, 2], dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    loaded = load("stl10", "train", root=tmp_path, size=96)
    assert loaded.labels.tolist() == [0, 9, 1]
    assert np.array_equal(loaded.images.numpy(), images)


@pytest.fixture
def signs(tmp_path) -> Path:
    """Two of the 43 classes with two tracks each, and a test set out of order."""
    base = tmp_path / "gtsrb"
    for label in (7, 2):
        for track in (1, 0):
            for frame in (1, 0):
                image = np.full((20, 22, 3), 10 * label + 2 * track + frame, dtype=np.uint8)
                write_image(base / "GTSRB" / "Training" / f"{label:05}" / f"{track:05}_{frame:05}.ppm", image)
    for i in range(3):
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"{i:05}.ppm", np.full((9, 9, 3), i, dtype=np.uint8))
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00002.ppm;42\n00000.ppm;0\n00001.ppm;7\n")
    return tmp_path


def test_gtsrb_labels_are_folder_names_and_groups_are_tracks(signs):
    train = load("gtsrb", "train", root=signs)
    assert train.labels.tolist() == [2] * 4 + [7] * 4
    assert train.images[:, 0, 0, 0].tolist() == [20, 21, 22, 23, 70, 71, 72, 73]
    assert train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    parts = split_indices(len(train), {"owner": 0.5, "attacker": 0.5}, seed=0, groups=train.groups)
    assert all(part.tolist()[::2] == (part[1::2] - 1).tolist() for part in parts.values())


def test_gtsrb_test_images_are_sorted_and_have_no_tracks(signs):
    test = load("gtsrb", "test", root=signs)
    assert (test.labels.tolist(), test.images[:, 0, 0, 0].tolist(), test.groups) == ([0, 7, 42], [0, 1, 2], None)


def test_groups_follow_a_limit(signs):
    some = load("gtsrb", "train", root=signs, limit=3, seed=1)
    frames = some.images[:, 0, 0, 0]
    assert len(some) == 3
    assert torch.equal(some.groups, frames.long().remainder(10) // 2 + 2 * (some.labels == 7))


@pytest.fixture
def cifar100_test(tmp_path) -> Path:
    """The file of test images, each of which holds its own number in two pixels."""
    images = np.zeros((10_000, 32, 32, 3), dtype=np.uint8)
    number = np.arange(10_000)
    images[:, 0, 0, 0], images[:, 0, 1, 1] = number // 100, number % 100
    np.savez(tmp_path / "cifar100_test.npz", x=images, y=number % 100, classes=np.array(["apple"] * 100))
    return tmp_path


def test_the_test_images_of_cifar100_are_split(cifar100_test):
    parts = {split: load("cifar100_test8k", split, root=cifar100_test) for split in ("train", "test")}
    numbers = [100 * part.images[:, 0, 0, 0].int() + part.images[:, 1, 0, 1] for part in parts.values()]
    assert torch.equal(numbers[0], torch.arange(8000))
    assert torch.equal(numbers[1], torch.arange(8000, 10_000))
    assert parts["train"].labels.bincount().tolist() == [80] * 100


def test_the_test_images_never_stand_for_the_whole_of_cifar100(cifar100_test):
    with pytest.raises(DataError, match=r"'cifar100' not found.*'cifar100_test8k' is there"):
        load("cifar100", "train", root=cifar100_test)


def test_cifar100_test_file_of_another_length_is_refused(tmp_path):
    np.savez(tmp_path / "cifar100_test.npz", x=pixels(50, 32, 32, 3), y=np.zeros(50))
    with pytest.raises(DataError, match=r"\(50, 32, 32, 3\), not \(10000, 32, 32, 3\)"):
        load("cifar100_test8k", "train", root=tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images of cats and dogs, wide and tall, whose central square is white and whose margin is black."""
    for part in ("train", "val"):
        for i, (kind, shape) in enumerate([("dog", (8, 24, 3)), ("cat", (24, 8, 3)), ("cat", (8, 8, 3))]):
            image = np.zeros(shape, dtype=np.uint8)
            image[shape[0] // 2 - 4 :, shape[1] // 2 - 4 :][:8, :8] = 255
            write_image(tmp_path / "pets" / part / kind / f"{i}.png", image)
    return tmp_path


def test_image_folder_is_cut_to_the_central_square(folder):
    for split in ("train", "test"):
        loaded = load("imagefolder:pets", split, root=folder, size=16)
        assert (loaded.name, loaded.classes, loaded.labels.tolist()) == ("imagefolder:pets", 2, [0, 0, 1])
        assert loaded.images.shape == (3, 3, 16, 16)
        assert int(loaded.images.min()) == 255


def test_image_folder_needs_the_same_classes_in_train_and_val(folder):
    (folder / "pets" / "val" / "dog").rename(folder / "pets" / "val" / "wolf")
    with pytest.raises(DataError, match="different classes"):
        load("imagefolder:pets", "test", root=folder)


def test_image_folder_fingerprint_follows_links(folder):
    before = fingerprint("imagefolder:pets", root=folder)
    (folder / "pets" / "train" / "dog").rename(folder / "elsewhere")
    (folder / "pets" / "train" / "dog").symlink_to(folder / "elsewhere")
    assert fingerprint("imagefolder:pets", root=folder) == before
    (folder / "elsewhere" / "0.png").write_bytes(b"")
    assert fingerprint("imagefolder:pets", root=folder) != before


def test_only_the_images_of_a_limit_are_read(folder):
    (folder / "pets" / "train" / "cat" / "2.png").write_bytes(b"not an image")
    kept = {seed: catalogue._balanced(torch.tensor([0, 0, 1]), 2, seed).tolist() for seed in range(20)}
    good = next(seed for seed, indices in kept.items() if 1 not in indices)
    bad = next(seed for seed, indices in kept.items() if 1 in indices)
    assert len(load("imagefolder:pets", "train", root=folder, limit=2, seed=good)) == 2
    with pytest.raises(DataError, match=r"cat/2\.png' cannot be read"):
        load("imagefolder:pets", "train", root=folder, limit=2, seed=bad)


def test_digits_are_split_four_to_one_with_every_class_in_both():
    train, test = (load("digits", split, size=8) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    share = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert ((share - 0.2).abs() < 0.01).all()
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    from sklearn.datasets import load_digits

    ours = torch.cat([train.images, test.images])[:, 0].flatten(1).numpy()
    theirs = np.round(load_digits().data * 255 / 16)
    assert np.array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("gtsrb", 43), ("cifar100", 100)])
def test_standin_has_the_classes_of_the_real_one(name, classes):
    standin = load(f"standin-{name}", "train", limit=2 * classes, size=8)
    assert (standin.name, standin.classes) == (f"standin-{name}", classes)
    assert standin.labels.bincount().tolist() == [2] * classes


def test_standins_are_different_tasks_and_splits_share_nothing():
    names = ("procedural", "standin-cifar10", "standin-mnist")
    images = torch.cat([load(name, split, size=8, limit=200).images for name in names for split in ("train", "test")])
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_every_set_of_files_has_a_reader():
    assert set(readers._READERS) == {name for name in NAMES if find_source(name).files}


# Limits


def test_limit_is_balanced_sorted_and_nested():
    labels = torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0))
    small, large = (catalogue._balanced(labels, limit, 3) for limit in (52, 500))
    assert sorted(labels[small].bincount().tolist()) == [10, 10, 10, 11, 11]
    assert small.tolist() == sorted(small.tolist())
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(catalogue._balanced(labels, 2000, 3), torch.arange(1000))


def test_small_classes_give_all_they_have():
    labels = torch.tensor([0] * 50 + [2] * 3 + [3] * 50)  # and none of class 1
    assert labels[catalogue._balanced(labels, 43, 0)].bincount().tolist() == [20, 0, 3, 20]


def test_limit_depends_on_its_seed_alone():
    labels = torch.arange(100) % 4
    draws = [catalogue._balanced(labels, 20, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


# Errors


@pytest.mark.parametrize(
    ("name", "changes", "error", "says"),
    [
        ("mnst", {}, ConfigError, "unknown data set 'mnst'; allowed: cifar10, .*imagefolder:<folder>"),
        ("mnist", {"split": "val"}, ConfigError, "unknown split 'val'; allowed: test, train"),
        ("mnist", {"size": 0}, ConfigError, "at least 1, not 0 and None"),
        ("mnist", {"limit": 0}, ConfigError, "at least 1, not 32 and 0"),
        ("mnist", {"root": None}, DataError, "'mnist' needs a data folder; set HALLMARK_DATA or data_root to it"),
        ("gtsrb", {}, DataError, "'gtsrb' not found under .* HALLMARK_DATA or data_root .* or pass download=true"),
        ("imagefolder:none", {}, DataError, "not found under .* to its folder$"),
        ("imagefolder:none", {"download": True}, DataError, "not found under"),
        ("imagefolder:", {}, ConfigError, "a folder below the data root"),
        ("imagefolder:../x", {}, ConfigError, "a folder below the data root"),
        ("imagefolder:/x", {}, ConfigError, "a folder below the data root"),
        ("procedural", {"size": 3000}, DataError, "20000 images .* need 540000000000 bytes .* set limit=1272 or lower"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, name, changes, error, says):
    with pytest.raises(error, match=says) as caught:
        load(name, **({"split": "train", "root": tmp_path} | changes))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    write_mnist(tmp_path, pixels(2, 28, 28), np.zeros(2, dtype=np.uint8))
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (file.read_bytes()[:-1], b"\1\2\3\4\5\6\7\10", b""):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"'mnist' under .* is damaged: .+"):
            load("mnist", "train", root=tmp_path)


def test_files_of_the_wrong_content_are_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / file).touch()
    with pytest.raises(DataError, match=r"'cifar10' under .* is damaged: Dataset not found or corrupted"):
        load("cifar10", "train", root=tmp_path)


def test_imagenet_is_cropped_as_torchvision_evaluates(tmp_path):
    """Of 64 pixels of the short side 56 are seen, as 224 of 256."""
    folder = tmp_path / "imagenet"
    torch.save(({"n01": ("tench",), "n02": ("goldfish",)}, []), _made(folder) / "meta.bin")
    for split in ("train", "val"):
        for at, wnid in enumerate(("n01", "n02")):
            pixels = np.full((64, 80, 3), 255, dtype=np.uint8)
            pixels[4:60, 12:68] = 100 * at
            Image.fromarray(pixels).save(_made(folder / split / wnid) / "one.JPEG", format="PNG")
    found = load("imagenet", "test", root=tmp_path, size=56)
    assert found.labels.tolist() == [0, 1]
    assert found.classes == 1000
    assert [int(value) for value in found.images.flatten(1).float().mean(1)] == [0, 100]
    with pytest.raises(DataError, match="'imagenet' not found"):
        load("imagenet", "test", root=tmp_path / "elsewhere")


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if "HALLMARK_DATA" in os.environ:

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "mnist"])
    def test_real_data(name):
        root = Path(os.environ["HALLMARK_DATA"])
        try:
            train, test = (load(name, split, root=root, limit=2000) for split in ("train", "test"))
        except DataError as error:
            if "not found" not in str(error):
                raise
            pytest.skip(str(error))
        assert train.images.shape == test.images.shape == (2000, 3, 32, 32)
        assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(train.classes))
        assert 20 < train.images.double().std() < 100
