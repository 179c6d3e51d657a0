"""How each data set is opened: labels at once, images on demand.

torchvision knows the file formats; a reader here is the few lines that bring one of its data sets to a common form.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import find_classes
from torchvision.datasets.mnist import read_image_file, read_label_file

from hallmark.core.random import derive_seed
from hallmark.data.coco import open_coco
from hallmark.data.images import decode, resize
from hallmark.data.opened import Opened
from hallmark.data.procedural import procedural_images, procedural_labels
from hallmark.data.scenes import draw_scenes, scene_labels
from hallmark.data.sources import IMAGE_FOLDER, STANDIN, Source, require_root
from hallmark.errors import DataError

_EVALUATED = 224 / 256
"""Share of the short side that torchvision shows networks of ImageNet: 224 of 256 pixels."""
_DRAWN = {"train": 20_000, "test": 4_000}
_SAMPLES = {"train": 96, "test": 24}
_PHOTOGRAPHS = {"train": "china.jpg", "test": "flower.jpg"}
_SCENES = 5
"""Classes of the shapes in the scenes among the samples."""


def open_split(source: Source, split: str, root: Path | None, download: bool) -> Opened:
    """Open one split of a source.

    Args:
        source: What to open.
        split: ``"train"`` or ``"test"``.
        root: Data folder; None only for generated sets.
        download: Let torchvision download what is missing.
    """
    if source.name.startswith(STANDIN):
        return _drawn(source.classes, derive_seed(0, source.name), split)  # another name is another task
    if source.name == "procedural":
        return _drawn(source.classes, 0, split)
    if source.name == "scenes":
        return _scenes(source.classes, split)
    if source.name == "digits":
        return _digits(split)
    if source.name == "samples":
        return _samples(split)
    folder = require_root(source.name, root)
    if source.name.startswith(IMAGE_FOLDER):
        return _image_folder(folder / source.name.removeprefix(IMAGE_FOLDER), split)
    return _READERS[source.name](folder, split, download)


def _drawn(classes: int, seed: int, split: str) -> Opened:
    def read(indices: Tensor, size: int) -> Tensor:
        return procedural_images(indices, classes=classes, size=size, seed=seed, split=split)[0]

    return Opened(procedural_labels(torch.arange(_DRAWN[split]), classes), read)


def _scenes(classes: int, split: str) -> Opened:
    def draw(indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return draw_scenes(indices, classes=classes, size=size, split=split)

    labels = scene_labels(torch.arange(_DRAWN[split]), classes)
    return Opened(labels, lambda at, size: draw(at, size)[0], objects=lambda at, size: draw(at, size)[1])


def _digits(split: str) -> Opened:
    # Imported here: scikit-learn takes a second to import and only this set needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()  # values are 0 to 16
    parts = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = np.sort(parts[split == "test"])
    images = (digits.images[chosen, None] * (255 / 16)).round().astype(np.uint8)
    return _from_array(images, digits.target[chosen])


def _samples(split: str) -> Opened:
    """Squares of one photograph first, then scenes, all without labels."""
    # Imported here: scikit-learn takes a second to import and only two sets need it.
    from sklearn.datasets import load_sample_image

    photograph = torch.from_numpy(np.array(load_sample_image(_PHOTOGRAPHS[split]))).permute(2, 0, 1)
    side = photograph.shape[1] // 2
    rows = photograph.unfold(1, side, side).unfold(2, side, side)  # (3, down, across, side, side)
    squares = rows.flatten(1, 2).transpose(0, 1).contiguous()

    def read(indices: Tensor, size: int) -> Tensor:
        images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        cut = indices < len(squares)
        images[cut] = resize(squares[indices[cut]], size)
        images[~cut] = draw_scenes(indices[~cut] - len(squares), classes=_SCENES, size=size, split=split)[0]
        return images

    return Opened(torch.full((_SAMPLES[split],), -1), read)


def _cifar(dataset: type[datasets.CIFAR10], root: Path, split: str, download: bool) -> Opened:
    data = dataset(root, train=split == "train", download=download)
    return _from_array(data.data.transpose(0, 3, 1, 2), data.targets)


def _cifar100_test8k(root: Path, split: str, download: bool) -> Opened:
    with np.load(root / "cifar100_test.npz") as data:
        images, labels = data["x"], data["y"]
    if images.shape != (10_000, 32, 32, 3):
        raise DataError(f"cifar100_test.npz holds images of shape {images.shape}, not (10000, 32, 32, 3)")
    # Classes take turns in the file, so both parts are balanced.
    part = slice(8_000) if split == "train" else slice(8_000, None)
    return _from_array(images[part].transpose(0, 3, 1, 2), labels[part])


def _mnist(root: Path, split: str, download: bool) -> Opened:
    if download:
        datasets.MNIST(root, download=True)
    # Not through the class, which prefers files of its older versions that may hold something else.
    files = str(root / "MNIST" / "raw" / ("train" if split == "train" else "t10k"))
    images, labels = read_image_file(f"{files}-images-idx3-ubyte"), read_label_file(f"{files}-labels-idx1-ubyte")
    return _from_array(images.unsqueeze(1), labels)


def _stl10(root: Path, split: str, download: bool) -> Opened:
    data = datasets.STL10(root, split=split, download=download)
    return _from_array(data.data, data.labels)


def _svhn(root: Path, split: str, download: bool) -> Opened:
    data = datasets.SVHN(root, split=split, download=download)
    return _from_array(data.data, data.labels)


def _gtsrb(root: Path, split: str, download: bool) -> Opened:
    samples = sorted(datasets.GTSRB(root, split=split, download=download)._samples)
    paths = [Path(path) for path, _ in samples]
    if split == "test":  # its tracks are not published
        return _from_files(paths, [label for _, label in samples])
    # By folder name, not by its rank as torchvision does, which goes wrong where a class is missing.
    labels = [int(path.parent.name) for path in paths]
    tracks = [f"{path.parent.name}/{path.name.split('_')[0]}" for path in paths]
    return _from_files(paths, labels, groups=torch.from_numpy(np.unique(tracks, return_inverse=True)[1]))


def _imagenet(root: Path, split: str, download: bool) -> Opened:
    data = datasets.ImageNet(root / "imagenet", split="train" if split == "train" else "val")
    return _from_files([Path(path) for path, _ in data.samples], data.targets, crop=_EVALUATED)


def _photographs(root: Path, split: str, download: bool) -> Opened:
    folder = root / "images" / ("CBSD68" if split == "train" else "Kodak24")
    return _unlabelled(sorted(folder.glob("*.png")))


def _voc(root: Path, split: str, download: bool) -> Opened:
    year, part = ("2012", "trainval") if split == "train" else ("2007", "test")
    data = datasets.VOCDetection(root, year=year, image_set=part, download=download)
    return _unlabelled(sorted(map(Path, data.images)))


def _unlabelled(paths: list[Path]) -> Opened:
    return _from_files(paths, [-1] * len(paths), crop=1.0)


def _image_folder(folder: Path, split: str) -> Opened:
    data = datasets.ImageFolder(folder / ("train" if split == "train" else "val"))
    if data.classes != find_classes(folder / "train")[0]:
        raise DataError(f"train and val of image folder {str(folder)!r} have different classes")
    return _from_files([Path(path) for path, _ in data.samples], data.targets, crop=1.0)


_READERS: dict[str, Callable[[Path, str, bool], Opened]] = {
    "cifar10": partial(_cifar, datasets.CIFAR10),
    "cifar100": partial(_cifar, datasets.CIFAR100),
    "cifar100_test8k": _cifar100_test8k,
    "coco": partial(open_coco, padded=False),
    "coco_padded": partial(open_coco, padded=True),
    "gtsrb": _gtsrb,
    "imagenet": _imagenet,
    "mnist": _mnist,
    "photographs": _photographs,
    "stl10": _stl10,
    "svhn": _svhn,
    "voc": _voc,
}


def _from_array(images: np.ndarray | Tensor, labels: np.ndarray | Tensor | Sequence[int]) -> Opened:
    """Open images, uint8 ``(N, C, H, W)``, that are in memory."""
    stored = torch.as_tensor(images)
    return Opened(torch.as_tensor(labels, dtype=torch.int64), lambda indices, size: resize(stored[indices], size))


def _from_files(paths: list[Path], labels: list[int], *, groups: Tensor | None = None, crop: float = 0.0) -> Opened:
    """Open one image per file; ``crop`` cuts to the central square of that share of the short side before resizing."""
    return Opened(torch.tensor(labels), ImageFiles(tuple(map(str, paths)), crop), groups, files=True)


@dataclass(frozen=True)
class ImageFiles:
    """Reads one image per file.

    Args:
        paths: The files.
        crop: Share of the short side to whose central square an image is cut before it is resized; 0: none.
    """

    paths: tuple[str, ...]
    crop: float

    def __call__(self, indices: Tensor, size: int) -> Tensor:
        """The images at ``indices``, uint8 ``(n, 3, size, size)``.

        Raises:
            DataError: One of them cannot be read.
        """
        images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)

        def fill(slot: int) -> None:
            images[slot] = resize(decode(self.paths[int(indices[slot])], self.crop).unsqueeze(0), size)[0]

        with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
            list(pool.map(fill, range(len(indices))))
        return images
