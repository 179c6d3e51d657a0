"""Image sets, splits, fingerprints and drawn images."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hallmark.data.fingerprint import fingerprint
from hallmark.data.images import ImageSet, resize
from hallmark.data.procedural import procedural_images
from hallmark.data.sources import GENERATOR_VERSION, NAMES
from hallmark.data.splits import check_disjoint, split_indices
from hallmark.errors import ConfigError, DataError


def image_set(n: int = 6, **changes: object) -> ImageSet:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4)
    fields = {"name": "toy", "images": images, "labels": torch.arange(n) % 3, "classes": 3, "groups": torch.arange(n)}
    return ImageSet(**(fields | changes))


# Image sets


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": torch.zeros(6, 3, 4, 4)}, "torch.float32"),
        ({"images": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)}, r"\(6, 1, 4, 4\)"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)}, "0, 3"),
        ({"labels": torch.arange(6, dtype=torch.int32)}, "torch.int32"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"\(5,\)"),
        ({"labels": torch.full((6,), 3)}, "3 to 3; they must be -1 to 2"),
        ({"labels": torch.full((6,), -2)}, "-2 to -2"),
        ({"groups": torch.zeros(7, dtype=torch.int64)}, r"groups .* \(7,\)"),
    ],
)
def test_image_set_refuses(changes, says):
    with pytest.raises(DataError, match=says):
        image_set(**changes)


def test_subset_keeps_each_sample_together():
    part = image_set().subset([4, 1], name="part")
    assert (part.name, len(part), part.classes) == ("part", 2, 3)
    assert part.images[:, 0, 0, 0].tolist() == part.groups.tolist() == [4, 1]
    assert part.labels.tolist() == [1, 1]
    assert image_set(groups=None).subset(torch.tensor([0])).groups is None


@pytest.mark.parametrize("indices", [[], [6], [-1], [0.5], torch.ones(6, dtype=torch.bool), [[0]]])
def test_subset_refuses(indices):
    with pytest.raises(DataError, match="in 0 to 5"):
        image_set().subset(indices)


def test_unlabelled_hides_every_label_and_nothing_else():
    whole = image_set()
    hidden = whole.unlabelled()
    assert hidden.labels.tolist() == [-1] * 6
    assert hidden.images is whole.images
    assert whole.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("height", "width", "size"), [(28, 28, 32), (50, 41, 32), (64, 64, 7)])
def test_resize_is_pillows_antialiased_bilinear(height, width, size):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    got = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).numpy()
    assert abs(got - expected).max() <= 1  # Pillow rounds between its two passes


# Splits


@pytest.mark.parametrize("fractions", [{"owner": 2 / 3, "attacker": 1 / 3}, {f"part{i}": 0.1 for i in range(10)}])
def test_parts_are_disjoint_cover_everything_and_have_their_size(fractions):
    parts = split_indices(301, fractions, seed=0)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(301))
    for name, fraction in fractions.items():
        assert abs(len(parts[name]) - 301 * fraction) < 1
        assert parts[name].dtype == torch.int64
        assert parts[name].tolist() == sorted(parts[name].tolist())


def test_split_may_leave_samples_out():
    parts = split_indices(1000, {"owner": 0.5, "attacker": 0.2}, seed=0)
    assert [len(part) for part in parts.values()] == [500, 200]
    check_disjoint(parts)


def test_split_depends_on_the_seed_alone():
    draw = [split_indices(100, {"a": 0.5, "b": 0.5}, seed=seed)["a"].tolist() for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


def test_split_is_not_in_order():
    assert split_indices(100, {"a": 0.5, "b": 0.5}, seed=0)["a"].tolist() != list(range(50))


def test_groups_stay_whole_and_sizes_near():
    groups = torch.from_numpy(np.random.default_rng(0).integers(0, 200, 3000)) * 7 - 100
    parts = split_indices(3000, {"owner": 0.6, "attacker": 0.4}, seed=3, groups=groups)
    owner, attacker = (set(groups[part].tolist()) for part in parts.values())
    assert not owner & attacker
    assert len(parts["owner"]) + len(parts["attacker"]) == 3000
    assert abs(len(parts["owner"]) - 1800) <= groups.unique(return_counts=True)[1].max() / 2
    check_disjoint(parts, groups)


@pytest.mark.parametrize(
    ("n", "fractions", "groups", "says"),
    [
        (10, {}, None, "sum to at most 1"),
        (10, {"a": 0.7, "b": 0.4}, None, "sum to at most 1"),
        (10, {"a": 1.1, "b": -0.1}, None, "positive"),
        (3, {"a": 0.99, "b": 0.01}, None, "part 'b' of 3 samples in 3 groups is empty"),
        (4, {"a": 0.5, "b": 0.5}, torch.zeros(4, dtype=torch.int64), "in 1 groups is empty"),
        (4, {"a": 1.0}, torch.zeros(3, dtype=torch.int64), r"shape \(3,\)"),
    ],
)
def test_split_refuses(n, fractions, groups, says):
    with pytest.raises(DataError, match=says):
        split_indices(n, fractions, seed=0, groups=groups)


def test_shared_samples_and_shared_groups_are_found():
    parts = {"owner": torch.tensor([0, 1, 2]), "test": torch.tensor([7]), "attacker": torch.tensor([2, 3, 1])}
    with pytest.raises(DataError, match="'owner' and 'attacker' share 2 samples"):
        check_disjoint(parts)
    apart = {"owner": torch.tensor([0, 1]), "attacker": torch.tensor([2, 3])}
    check_disjoint(apart)
    with pytest.raises(DataError, match="share 1 groups"):
        check_disjoint(apart, torch.tensor([5, 6, 6, 7]))


def mnist_files(root: Path, byte: int = 0) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(bytes([1, 2, 3, byte]))
    return root


def test_fingerprint_is_that_of_the_content_wherever_it_lies(tmp_path):
    digits, again, fashion = (mnist_files(tmp_path / name, byte) for name, byte in (("a", 0), ("b", 0), ("c", 9)))
    assert fingerprint("mnist", root=digits) == fingerprint("mnist", root=again)
    assert fingerprint("mnist", root=digits) != fingerprint("mnist", root=fashion)
    (again / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").touch()  # an archive that is never read
    assert fingerprint("mnist", root=digits) == fingerprint("mnist", root=again)


@pytest.mark.parametrize("keep_time", [False, True])
def test_one_changed_byte_changes_the_fingerprint(tmp_path, keep_time):
    root, cache = mnist_files(tmp_path / "data"), tmp_path / "new" / "cache.json"
    file = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    before = fingerprint("mnist", root=root, cache=cache)
    times = file.stat()
    time.sleep(0.02)  # longer than a tick of the file system's clock
    file.write_bytes(bytes([1, 2, 4, 0]))
    if keep_time:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = fingerprint("mnist", root=root, cache=cache)
    assert after != before
    assert after == fingerprint("mnist", root=root)


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    root, cache = mnist_files(tmp_path / "data"), tmp_path / "cache.json"
    first = fingerprint("mnist", root=root, cache=cache)
    monkeypatch.delattr(hashlib, "file_digest")
    assert fingerprint("mnist", root=root, cache=cache) == first
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["cache.json"]


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_cache_is_made_anew(tmp_path, content):
    root, cache = mnist_files(tmp_path / "data"), tmp_path / "cache.json"
    cache.write_text(content)
    assert fingerprint("mnist", root=root, cache=cache) == fingerprint("mnist", root=root)
    assert len(cache.read_text()) > 64


def test_entries_of_other_sets_stay(tmp_path):
    cache = tmp_path / "cache.json"
    roots = [mnist_files(tmp_path / name, byte) for byte, name in enumerate("ab")]
    digests = [fingerprint("mnist", root=root, cache=cache) for root in roots]
    assert all(digest in cache.read_text() for digest in digests)


def test_generated_sets_have_fingerprints_of_their_own():
    names = [name for name in NAMES if name in ("digits", "procedural", "scenes") or name.startswith("standin-")]
    digests = {fingerprint(name) for name in names}
    assert len(digests) == len(names) == 10
    assert all(len(digest) == 64 for digest in digests)


def test_missing_files_are_named_in_one_line(tmp_path):
    root = mnist_files(tmp_path)
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        fingerprint("mnist", root=root)
    assert str(caught.value) == (
        f"data set 'mnist' not found under '{root}'; "
        "set HALLMARK_DATA or data_root to its folder, or pass download=true"
    )
    with pytest.raises(DataError, match="'gtsrb' needs a data folder"):
        fingerprint("gtsrb")


def test_fingerprinting_imports_neither_torch_nor_numpy():
    code = "import hallmark.data.fingerprint, sys; sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


# Drawn images


def test_image_depends_on_its_index_alone():
    many, labels = procedural_images(600, size=9, classes=7)
    indices = torch.tensor([599, 3, 256, 255])
    few, few_labels = procedural_images(indices, size=9, classes=7)
    assert torch.equal(few, many[indices])
    assert torch.equal(few_labels, labels[indices])


def test_streams_and_seeds_draw_other_images():
    draws = [procedural_images(50, split=split, seed=seed)[0] for split in ("train", "test") for seed in (0, 1)]
    images = torch.cat(draws).flatten(1)
    assert len(images.unique(dim=0)) == 200


def test_classes_take_turns():
    labels = procedural_images(86, classes=43, size=4)[1]
    assert labels.bincount().tolist() == [2] * 43


def test_all_classes_can_be_drawn():
    images, labels = procedural_images(330, classes=330, size=8)
    assert images.shape == (330, 3, 8, 8)
    assert labels.tolist() == list(range(330))


@pytest.mark.parametrize("changes", [{"classes": 331}, {"classes": 0}, {"size": 0}, {"seed": -1}, {"indices": [-1]}])
def test_procedural_refuses(changes):
    with pytest.raises(DataError):
        procedural_images(**({"indices": 1} | changes))
    with pytest.raises(ConfigError, match="unknown split 'val'"):
        procedural_images(1, split="val")


def ridge_accuracy(size: int = 16, n: int = 3000) -> float:
    """Test accuracy of ridge regression from raw pixels to classes."""

    def design(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = procedural_images(n, size=size, split=split)
        pixels = images.flatten(1).double() / 255 - 0.5
        return torch.cat([pixels, torch.ones(n, 1)], dim=1), labels

    x, labels = design("train")
    y = torch.nn.functional.one_hot(labels).double()
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1]), x.T @ y)
    x, labels = design("test")
    return float(((x @ weights).argmax(1) == labels).double().mean())


def test_pixels_alone_tell_the_classes_in_part():
    assert 0.25 < ridge_accuracy() < 0.65


def test_version_moves_with_the_images():
    """If this fails, the drawing changed: raise GENERATOR_VERSION and set the new means here."""
    means = procedural_images(4, size=32, seed=5)[0].double().mean(dim=(2, 3)).tolist()
    expected = [[105.07, 151.23, 101.36], [124.14, 65.33, 124.15], [167.78, 162.4, 111.53], [144.46, 155.8, 132.05]]
    assert GENERATOR_VERSION == 1
    assert torch.allclose(torch.tensor(means), torch.tensor(expected), atol=0.05)
