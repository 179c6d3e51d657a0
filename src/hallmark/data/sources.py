"""Which data sets there are and which files each consists of.

Planning fingerprints data sets without loading one, so nothing here imports torch.  :mod:`hallmark.data.catalogue`
loads what is named here, :mod:`hallmark.data.fingerprint` hashes it.
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hallmark.errors import ConfigError, DataError, allowed

SPLITS = ("train", "test")
STANDIN = "standin-"
IMAGE_FOLDER = "imagefolder:"

GENERATOR_VERSION = 1
"""Part of the fingerprint of whatever is generated: raise it when a generated image, label or split changes."""


@dataclass(frozen=True)
class Source:
    """A data set before it is loaded.

    Args:
        name: Name that results carry.
        classes: Number of classes; 0 where images have no labels.
        size: Native height and width in pixels; 0 where images differ in size or are drawn at any size.
        channels: Native channels; grey sets (1) are loaded as RGB.
        files: Glob patterns, relative to the data root, of every file that is read; empty for a generated set.
        grouped: Whether training images come in groups of near-duplicates.
        downloadable: Whether torchvision can download it.
        description: One line for people.
    """

    name: str
    classes: int
    size: int
    channels: int = 3
    files: tuple[str, ...] = ()
    grouped: bool = False
    downloadable: bool = False
    description: str = ""


_FROM_FILES = (
    Source(
        name="cifar10",
        classes=10,
        size=32,
        files=tuple(f"cifar-10-batches-py/{file}" for file in ("data_batch_[1-5]", "test_batch", "batches.meta")),
        downloadable=True,
        description="CIFAR-10: 50,000 training and 10,000 test photographs",
    ),
    Source(
        name="cifar100",
        classes=100,
        size=32,
        files=tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta")),
        downloadable=True,
        description="CIFAR-100: 50,000 training and 10,000 test photographs",
    ),
    Source(
        name="cifar100_test8k",
        classes=100,
        size=32,
        files=("cifar100_test.npz",),
        description="CIFAR-100's 10,000 test images only: the first 8,000 train, the last 2,000 test",
    ),
    *(
        Source(
            name=name,
            classes=90,
            size=0,
            files=tuple(
                f"coco/{part}"
                for split in ("train2017", "val2017")
                for part in (f"{split}/*.jpg", f"annotations/instances_{split}.json")
            ),
            description=f"COCO 2017 with boxes, {how}; the test images are val2017",
        )
        for name, how in (
            ("coco", "stretched to squares as SSDLite wants them"),
            ("coco_padded", "scaled as they are and padded below and to the right"),
        )
    ),
    Source(
        name="gtsrb",
        classes=43,
        size=0,
        files=("gtsrb/GTSRB/Training/**/*.ppm", "gtsrb/GTSRB/Final_Test/Images/*.ppm", "gtsrb/GT-final_test.csv"),
        grouped=True,
        downloadable=True,
        description="German traffic signs; the training images are tracks of one sign each",
    ),
    Source(
        name="imagenet",
        classes=1000,
        size=0,
        files=("imagenet/meta.bin", "imagenet/train/*/*.JPEG", "imagenet/val/*/*.JPEG"),
        description="ImageNet 2012: 1,281,167 training and 50,000 validation photographs, unpacked by torchvision",
    ),
    Source(
        name="mnist",
        classes=10,
        size=28,
        channels=1,
        files=tuple(
            f"MNIST/raw/{part}-{file}"
            for part in ("train", "t10k")
            for file in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ),
        downloadable=True,
        description="MNIST: 60,000 training and 10,000 test images of handwritten digits",
    ),
    Source(
        name="photographs",
        classes=0,
        size=0,
        files=("images/CBSD68/*.png", "images/Kodak24/*.png"),
        description="Natural images without labels: CBSD68 to train on, Kodak24 to test on; central squares",
    ),
    Source(
        name="stl10",
        classes=10,
        size=96,
        files=tuple(f"stl10_binary/{split}_{file}.bin" for split in SPLITS for file in "Xy"),
        downloadable=True,
        description="STL-10: 5,000 labelled training and 8,000 test photographs",
    ),
    Source(
        name="svhn",
        classes=10,
        size=32,
        files=tuple(f"{split}_32x32.mat" for split in SPLITS),
        downloadable=True,
        description="SVHN: 73,257 training and 26,032 test crops of house numbers",
    ),
    Source(
        name="voc",
        classes=0,
        size=0,
        files=tuple(
            f"VOCdevkit/VOC{year}/{part}"
            for year, part_of in (("2012", "trainval"), ("2007", "test"))
            for part in ("JPEGImages/*.jpg", f"ImageSets/Main/{part_of}.txt")
        ),
        downloadable=True,
        description="PASCAL VOC without labels: trainval 2012 to train on, test 2007 to test on; central squares",
    ),
)
_GENERATED = (
    Source("digits", 10, 8, channels=1, description="scikit-learn's 1,797 handwritten digits, split 80/20"),
    Source("procedural", 10, 0, description="Drawn shapes: 20,000 training and 4,000 test images"),
    Source("samples", 0, 0, description="scikit-learn's two photographs in squares, one to test on, and drawn scenes"),
    Source("scenes", 5, 0, description="Drawn scenes of one to four shapes, with boxes: as many images"),
)
_STANDINS = tuple(
    Source(f"{STANDIN}{real.name}", real.classes, 0, description=f"Drawn shapes in as many classes as {real.name}")
    for real in _FROM_FILES
    if real.classes and real.name != "cifar100_test8k" and not real.name.startswith("coco")  # others stand for these
)
_BY_NAME = {source.name: source for source in (*_FROM_FILES, *_GENERATED, *_STANDINS)}

NAMES = tuple(_BY_NAME)
"""Every name but ``imagefolder:<folder>``, which is open."""


def find_source(name: str, root: Path | None = None) -> Source:
    """Return the source that ``name`` stands for.

    ``imagefolder:<folder>`` is a folder below the root with ``train/<class>/`` and ``val/<class>/``.

    Args:
        name: One of :data:`NAMES` or ``imagefolder:<folder>``.
        root: Data folder.

    Raises:
        ConfigError: If there is no such name.
        DataError: If an image folder is asked for without a root.
    """
    if name.startswith(IMAGE_FOLDER):
        return _image_folder(name, root)
    if name not in _BY_NAME:
        raise ConfigError(allowed(name, (*NAMES, f"{IMAGE_FOLDER}<folder>"), "data set"))
    return _BY_NAME[name]


def find_files(source: Source, root: Path) -> list[str]:
    """Return the sorted file names, relative to ``root``, that ``source`` is read from.

    Links to folders are followed and hidden files are included, as torchvision does when it reads a folder.

    Raises:
        DataError: If one of the source's patterns matches no file.
    """
    found = []
    for pattern in source.files:
        names = glob.glob(pattern, root_dir=root, recursive=True, include_hidden=True)
        files = [name for name in names if os.path.isfile(os.path.join(root, name))]
        if not files:
            raise not_found(source, root)
        found += files
    return sorted(found)


def require_root(name: str, root: Path | None) -> Path:
    """Return ``root``.

    Raises:
        DataError: If it is None.
    """
    if root is None:
        raise DataError(f"data set {name!r} needs a data folder; set HALLMARK_DATA or data_root to it")
    return root


def not_found(source: Source, root: Path) -> DataError:
    """Return the error that says that ``source`` is not under ``root`` and what to do."""
    remedy = "set HALLMARK_DATA or data_root to its folder"
    if source.downloadable:
        remedy += ", or pass download=true"
    part = _BY_NAME.get(f"{source.name}_test8k")
    if part and all((root / file).is_file() for file in part.files):
        remedy += f"; {part.name!r} is there ({part.description})"
    return DataError(f"data set {source.name!r} not found under {str(root)!r}; {remedy}")


def _image_folder(name: str, root: Path | None) -> Source:
    folder = PurePosixPath(name.removeprefix(IMAGE_FOLDER))
    if not folder.parts or folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(f"data set {name!r} must be {IMAGE_FOLDER}<folder> with a folder below the data root")
    train = require_root(name, root) / folder / "train"
    return Source(
        name=name,
        classes=sum(entry.is_dir() for entry in train.iterdir()) if train.is_dir() else 0,
        size=0,
        files=tuple(f"{glob.escape(str(folder))}/{part}/**/*" for part in ("train", "val")),
        description="Images in train/<class>/ and val/<class>/",
    )
