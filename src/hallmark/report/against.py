"""A paper's own numbers beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hallmark.report import analysis
from hallmark.report.tables import Column, Record, Table, plain


@dataclass(frozen=True)
class Numbers:
    """Some numbers of one table or figure of a paper.

    Attributes:
        source: Where they are printed, e.g. ``Table 5``.
        metric: What they are; of ``runs.csv``.
        by: The column whose values tell them apart.
        paper: The printed number by value of that column.
        where: Which of our rows they are compared with: column to value or values.
    """

    source: str
    metric: str
    by: str
    paper: Mapping[Any, float]
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def lines(self, rows: pd.DataFrame) -> list[dict[str, Any]]:
        """One line a number that we have measured: the paper's, and mean, deviation and count of ours over seeds."""
        chosen = rows[rows["metric"] == self.metric]
        for column, values in self.where.items():
            chosen = chosen[chosen[column].isin(values)]
        chosen = analysis.distinct(chosen)
        found = []
        for case, printed in self.paper.items():
            mine = chosen[chosen[self.by] == case].dropna(subset=["value"])
            ours = mine["value"]
            found += [
                {
                    "experiment": experiment,
                    "source": self.source,
                    "case": _case(self.by, case),
                    "metric": self.metric,
                    "paper": float(printed),
                    "ours": ours.mean(),
                    "sd": ours.std(),
                    "n": len(ours),
                }
                for experiment in mine["experiment"].unique()
            ]
        return found


def table(numbers: Sequence[Numbers], rows: pd.DataFrame, name: str) -> Table:
    """All numbers of a paper that we have rows for, in the order of its expectations."""
    lines = [line for part in numbers for line in part.lines(rows)]
    frame = pd.DataFrame(lines, columns=["experiment", "source", "case", "metric", "paper", "ours", "sd", "n"])
    columns = (
        Column("source", "source"),
        Column("case", "case"),
        Column("metric", "metric"),
        Column("paper", "paper", lambda r: plain(r["paper"], ".3g")),
        Column("ours", "ours", _ours),
        Column("seeds", "n"),
    )
    note = "Ours: mean ± standard deviation over seeds. Fractions are written 0 to 1; the deviations are listed above."
    return Table(name, "The paper's numbers and ours", note, frame, columns)


def _case(column: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{column} {value:g}"


def _ours(record: Record) -> str:
    text = plain(record["ours"], ".3g")
    return text if pd.isna(record["sd"]) else f"{text} ± {plain(record['sd'], '.2g')}"
