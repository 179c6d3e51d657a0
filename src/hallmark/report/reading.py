"""The files that the report is made from, as frames."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from hallmark.errors import DataError
from hallmark.report import features, rows


def runs(results: Path) -> pd.DataFrame:
    """The result rows; none if nothing was run.

    Raises:
        DataError: If the file breaks its format.
    """
    path = results / "runs.csv"
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame({column: [] for column in rows.COLUMNS})
    return rows.read(path)


def points(results: Path, measured: pd.DataFrame) -> pd.DataFrame:
    """The points of pictures, with the ``paper`` that each belongs to; none if there is no file.

    Args:
        results: Folder of ``features.csv``.
        measured: Of :func:`runs`.

    Raises:
        DataError: If the file breaks its format, or has points of an experiment without rows.
    """
    path = results / "features.csv"
    if not path.is_file():
        return pd.DataFrame({column: [] for column in (*features.COLUMNS, "paper")})
    with path.open(encoding="utf-8", newline="") as file:
        header = tuple(next(csv.reader(file), ()))
    if header not in (features.COLUMNS, features.FIRST):
        raise DataError(f"{path}: the columns are {','.join(header)}; expected {','.join(features.COLUMNS)}")
    numbers = {"x": "float64", "y": "float64", "seed": "int64"}
    try:
        found = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(header, "str") | numbers)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    papers = dict(zip(measured["experiment"], measured["paper"], strict=True))
    strangers = sorted(set(found["experiment"]) - set(papers))
    if strangers:
        raise DataError(f"{path}: experiment {strangers[0]} has no rows in runs.csv; measure it or delete its points")
    found = found.reindex(columns=list(features.COLUMNS), fill_value="")
    return found.assign(paper=found["experiment"].map(papers))
