"""Points of pictures, beside the rows: what is drawn point by point.

The file is named after its first picture.  What ``x`` and ``y`` are, ``kind`` says:

* ``clean``, ``triggered``: a query's features on the plane of two principal components;
* ``responses``, ``weights``, and whatever else a scheme samples: the centre of a histogram's bin, and its share;
* ``score``: the score that the detector in ``unit`` gave to a suspect, and the suspect's number.
"""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

FIRST = ("run", "experiment", "scheme", "pretrain", "seed", "scale", "suspect", "kind", "x", "y")
"""Columns of files that hold pictures of feature space alone."""
COLUMNS = (*FIRST, "variant", "unit")
"""Columns of ``features.csv``: those of the rows, the kind of point, and its place."""
QUERIES = ("clean", "triggered")
SCORE = "score"

_RUN = ("experiment", "seed", "scale")
_PICTURE = ("experiment", "scheme", "variant", "pretrain", "seed", "scale", "suspect", "unit", "kind")


def merge_points(path: Path, points: Iterable[dict[str, object]]) -> None:
    """Put all points of an experiment's run into the file, in place of what stood there for the same run.

    Args:
        path: ``results/features.csv``; made if missing.
        points: Values for every column of :data:`COLUMNS`; without any, the file is left as it is.
    """
    new = [{column: str(point[column]) for column in COLUMNS} for point in points]
    if not new:
        return
    drawn = {tuple(p[c] for c in _RUN) for p in new}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        old = [p for p in _there(path) if tuple(p[c] for c in _RUN) not in drawn]
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            # a stable sort by picture keeps the points of each in their order
            writer.writerows(sorted(old + new, key=lambda p: tuple(p[c] for c in _PICTURE)))
        partial.replace(path)


def _there(path: Path) -> Iterator[dict[str, str]]:
    """The points of the file, none if there is no file."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for point in csv.DictReader(file):
                yield {column: point.get(column, "") for column in COLUMNS}
