"""Data sets by name, as images in memory: RGB, uint8, square, in an order that does not change.

Sets of image files that memory does not hold stay in their files, see :mod:`hallmark.data.stored`.
"""

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hallmark.core.random import generator
from hallmark.data.images import ImageSet
from hallmark.data.readers import Opened, open_split
from hallmark.data.sources import NAMES, SPLITS, Source, find_files, find_source, require_root
from hallmark.data.stored import StoredImages
from hallmark.errors import ConfigError, DataError, allowed

__all__ = ["NAMES", "RESIDENT_BYTES", "Source", "load"]

RESIDENT_BYTES = 32 * 2**30
"""Most memory that one split may take by default: a little over 200,000 images of 224 x 224."""

_log = logging.getLogger(__name__)


def load(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
    resident_bytes: int = RESIDENT_BYTES,
    workers: int = 0,
) -> ImageSet:
    """Load one split of a data set.

    Args:
        name: A name of :data:`NAMES` or ``imagefolder:<folder>``.
        split: ``"train"`` or ``"test"``; the test images of an image folder are those in ``val/``.
        root: Data folder; not needed for generated sets.
        size: Height and width to resize to, antialiased bilinear.  Images of an image folder are first cut to their
            central square, others are square or nearly so.
        limit: Keep at most so many images, spread over the classes as evenly as possible.  Only these are read.
        seed: Seed of the limit's draw.  Of two limits with one seed the larger keeps all that the smaller keeps.
        download: Let torchvision download a set that is not there.
        resident_bytes: Most memory that the images may take.  Image files that need more are read when they are used.
        workers: Processes that read such files ahead while a network trains.

    Returns:
        The images.

    Raises:
        ConfigError: If there is no such name or split, or size or limit is below 1.
        DataError: If the files are missing or damaged, or the images do not fit in memory.
    """
    if split not in SPLITS:
        raise ConfigError(allowed(split, SPLITS, "split"))
    if size < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"size and limit of data set {name!r} must be at least 1, not {size} and {limit}")
    source = find_source(name, root)
    if source.files and not (download and source.downloadable):
        find_files(source, require_root(name, root))
    with _damage_reported(source, root, download):
        opened = open_split(source, split, root, download)
        keep = torch.arange(len(opened.labels)) if limit is None else _balanced(opened.labels, limit, seed)
        stored = StoredImages(opened.read, keep, size, workers)
        resident = _fits(name, opened, stored, resident_bytes)
        images = stored[:] if resident else stored
        objects = None if opened.objects is None else opened.objects(keep, size)
    return ImageSet(
        name=source.name,
        images=images,  # type: ignore[arg-type]  # stored images act as a tensor
        labels=opened.labels[keep],
        classes=source.classes,
        groups=None if opened.groups is None else opened.groups[keep],
        indices=keep,
        objects=objects,
    )


def _balanced(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Return the sorted indices of at most ``limit`` samples, drawn as evenly over the classes as can be."""
    chance = generator(seed, "limit")
    shuffled = torch.randperm(len(labels), generator=chance)
    labels = labels - labels.min().clamp(max=0)  # images without a label are one more class
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    turns = torch.randperm(len(counts), generator=chance)
    # Deal one sample of every class, in the order of their turns, then a second of every class, and so on.
    rounds = torch.cat([torch.arange(count) for count in counts.tolist()])
    dealt = by_class[(rounds * len(counts) + turns[labels[by_class]]).argsort()]
    return dealt[:limit].sort().values


def _fits(name: str, opened: Opened, images: StoredImages, most: int) -> bool:
    """Whether the images may be brought to memory; if not, say that they stay in their files.

    Raises:
        DataError: They may not and have no files of their own.
    """
    bytes_each = 3 * images.size**2
    needed = len(images) * bytes_each
    if needed <= most:
        return True
    what = f"{len(images)} images of data set {name!r} at size {images.size} need {needed} bytes of memory"
    if not opened.files:
        raise DataError(
            f"{what} and at most {most} are given; set limit={most // bytes_each} or lower, "
            "or raise trainer.resident_gib"
        )
    _log.warning("%s, more than the %d given: they stay in their files, read by %d workers", what, most, images.workers)
    return False


@contextmanager
def _damage_reported(source: Source, root: Path | None, download: bool) -> Iterator[None]:
    """Turn what torchvision and NumPy raise on missing, cut-off or wrong files into one line."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, AssertionError, zipfile.BadZipFile) as error:
        if not source.files:
            raise
        what = "cannot be downloaded or read" if download else "is damaged"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data set {source.name!r} under {str(root)!r} {what}: {reason}") from error
