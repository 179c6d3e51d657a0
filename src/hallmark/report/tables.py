"""What a table is: an aggregated frame with a way to show it, and its Markdown and CSV.

A table's frame holds plain numbers and goes into the CSV as it is; its columns turn one line of it into the texts that
people read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hallmark.report.rows import VOCABULARY, number_text

Record = Mapping[str, Any]
NOTHING = "–"
HEADS = {"pretrain": "algorithm", "dataset": "trained on"}
"""What columns of the rows are called where people read them, if not by their own name."""


@dataclass(frozen=True)
class Column:
    """One shown column.

    Attributes:
        head: Its heading, with the unit.
        key: The frame's column that sorts it.
        show: The text of one line; ``None`` shows ``key`` itself.
    """

    head: str
    key: str
    show: Callable[[Record], str] | None = None

    def text(self, record: Record) -> str:
        """The text of the column in one line of the frame."""
        if self.show is not None:
            return self.show(record)
        value = record[self.key]
        return value if isinstance(value, str) else plain(value)


@dataclass(frozen=True)
class Table:
    """A table that people read and programs can read too.

    Attributes:
        name: Stem of its files.
        title: What it shows.
        note: What one has to know to read it, and what is the same in all of its lines.
        frame: The numbers, one line per line of the table.
        columns: What is shown.
    """

    name: str
    title: str
    note: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]

    @property
    def heads(self) -> list[str]:
        """The headings."""
        return [column.head for column in self.columns]

    @property
    def experiments(self) -> list[str]:
        """The experiments it draws on."""
        return sorted(self.frame["experiment"].unique())

    def texts(self) -> list[list[str]]:
        """The shown texts, line by line."""
        return [[text for text, _ in line] for line in self.cells()]

    def cells(self) -> list[list[tuple[str, str]]]:
        """The shown texts, each with what sorts it: a number's text, a word, or nothing."""
        records = self.frame.to_dict("records")
        return [[(c.text(record), _plain_cell(record[c.key], c.key)) for c in self.columns] for record in records]


def compact(
    name: str, title: str, note: str, frame: pd.DataFrame, keys: Sequence[str], columns: Sequence[Column]
) -> Table:
    """Keys that never vary go from the columns into the note; columns without any number are left out."""
    constant = {key: frame[key].iloc[0] for key in keys if len(frame) and frame[key].nunique(dropna=False) == 1}
    varying = [Column(HEADS.get(key, key), key) for key in keys if key not in constant]
    shown = [column for column in columns if frame[column.key].notna().any()]
    same = [f"{HEADS.get(k, k)} {v}" for k, v in constant.items() if v not in ("", "none", 0) and k != "scale"]
    if same:
        note = f"{note.rstrip()} In all lines: {', '.join(map(str, same))}."
    return Table(name, title, note, frame, (*varying, *shown))


def plain(value: float, digits: str = "g") -> str:
    """A number as text, or a dash where there is none."""
    return NOTHING if pd.isna(value) else f"{value:{digits}}"


def p_text(value: float) -> str:
    """A p-value with two digits."""
    return plain(value, ".2g")


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def mean_sd(record: Record, name: str, factor: float = 100.0, digits: str = "z.1f") -> str:
    """``mean ± sd`` of what :func:`over_seeds` left in ``name_mean`` and ``name_sd``."""
    mean, sd = record[f"{name}_mean"] * factor, record[f"{name}_sd"] * factor
    text = plain(mean, digits).replace("-", "−")
    return text if pd.isna(sd) or text == NOTHING else f"{text} ± {plain(sd, digits)}"


def share(count: Any, total: Any) -> str:
    """``3/9``, or a dash where there were none."""
    return NOTHING if pd.isna(total) or total == 0 else f"{int(count)}/{int(total)}"


def over_seeds(frame: pd.DataFrame, keys: Sequence[str], means: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation and number of the columns ``means`` over everything that ``keys`` leave open.

    Returns:
        One line per value of ``keys``, in the order of the vocabularies: the keys, ``models`` (lines that went into
        it) and for each name ``name_mean``, ``name_sd`` (NaN for a single number) and ``name_n``.
    """
    groups = frame.groupby(list(keys), sort=False, dropna=False)
    parts = [groups.size().rename("models")]
    for name in means:
        parts += [getattr(groups[name], how)().rename(f"{name}_{as_}") for how, as_ in _MOMENTS]
    return ordered(pd.concat(parts, axis=1).reset_index(), keys)


_MOMENTS = (("mean", "mean"), ("std", "sd"), ("count", "n"))


def ordered(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The frame sorted by ``keys``, words with a vocabulary in its order, unknown ones behind."""

    def rank(column: pd.Series) -> pd.Series:
        words = VOCABULARY.get(str(column.name), ())
        known = [*words, *sorted(set(column) - set(words))] if words else []
        return column.map({word: i for i, word in enumerate(known)}) if words else column

    return frame.sort_values(list(keys), key=rank, ignore_index=True, kind="stable")


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, ending in a newline."""
    escaped = [[text.replace("|", "\\|") for text in line] for line in [heads, *lines]]
    escaped.insert(1, ["---"] * len(heads))
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def comma_separated(frame: pd.DataFrame) -> str:
    """The frame's plain numbers as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    for record in frame.to_dict("records"):
        writer.writerow([_plain_cell(value, str(column)) for column, value in record.items()])
    return text.getvalue()


def _plain_cell(value: Any, column: str) -> str:
    return value if isinstance(value, str) else "" if pd.isna(value) else number_text(value, column)
