"""Images by the plain description that stages carry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hallmark.data.catalogue import RESIDENT_BYTES, load
from hallmark.data.images import ImageSet
from hallmark.data.splits import split_indices
from hallmark.errors import DataError


@dataclass
class DataFolder:
    """Loads described images and keeps them for the next stage.

    Args:
        root: Where data sets are, or None for generated ones alone.
        download: Let torchvision download what is missing.
        resident_bytes: See :func:`hallmark.data.catalogue.load`.
        workers: See :func:`hallmark.data.catalogue.load`.
    """

    root: Path | None
    download: bool = False
    resident_bytes: int = RESIDENT_BYTES
    workers: int = 0
    _loaded: dict[tuple[Any, ...], ImageSet] = field(default_factory=dict)

    def get(self, description: Mapping[str, Any]) -> ImageSet:
        """The images of a description.

        Args:
            description: ``name``, ``split``, ``size``, ``limit`` and ``seed`` as
                :func:`hallmark.data.catalogue.load` takes them; with ``parts`` (share by name) and ``part``, that
                part alone.

        Raises:
            DataError: The set is missing, damaged or too small.
        """
        fields = {name: description[name] for name in ("name", "split", "size", "limit", "seed")}
        key = tuple(fields.values())
        if key not in self._loaded:
            self._loaded[key] = load(
                **fields,
                root=self.root,
                download=self.download,
                resident_bytes=self.resident_bytes,
                workers=self.workers,
            )
        whole = self._loaded[key]
        if not description.get("parts"):
            return whole
        parts = split_indices(len(whole), description["parts"], seed=description["seed"], groups=whole.groups)
        return whole.subset(parts[description["part"]])

    def indices(self, description: Mapping[str, Any]) -> Tensor:
        """Places of the described images in the split they were loaded from, int64 ``(N,)``."""
        found = self.get(description).indices
        if found is None:
            raise DataError(f"data set {description['name']!r} does not say where its images come from")
        return found
