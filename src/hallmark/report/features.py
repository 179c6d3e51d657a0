"""Points of the feature-space pictures, beside the rows."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

COLUMNS = ("run", "experiment", "scheme", "pretrain", "seed", "scale", "suspect", "kind", "x", "y")
"""Columns of ``features.csv``: one query a line, its features on the plane of two principal components."""

_PICTURE = ("experiment", "scheme", "pretrain", "seed", "scale", "suspect")


def merge_points(path: Path, points: Iterable[dict[str, object]]) -> None:
    """Put the points of whole pictures into the file, in place of what stood there for the same pictures.

    Args:
        path: ``results/features.csv``; made if missing.
        points: Values for every column of :data:`COLUMNS`.
    """
    new = [{column: str(point[column]) for column in COLUMNS} for point in points]
    drawn = {tuple(p[c] for c in _PICTURE) for p in new}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        old: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                old = [p for p in csv.DictReader(file) if tuple(p[c] for c in _PICTURE) not in drawn]
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            # a stable sort by picture keeps the queries of each in their order
            writer.writerows(sorted(old + new, key=lambda p: (*(p[c] for c in _PICTURE), p["kind"])))
        partial.replace(path)
