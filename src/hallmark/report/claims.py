"""Claims of a paper, each decided by the rows.

The check of a claim selects rows and compares each of them (a *cell*) with a limit.  A claim is *confirmed* if all
cells of its checks pass and everything that it needs is covered, *not confirmed* if no cell passes, *partly* in
between, and *not run* without cells.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hallmark.errors import DataError
from hallmark.report import analysis
from hallmark.report.rows import FRACTIONS, IDENTITY, METRICS
from hallmark.report.tables import p_text, plain, points

CONFIRMED, PARTLY, REFUTED, NOT_RUN = STATES = ("confirmed", "partly", "not confirmed", "not run")
_NAMES = {"p_value": "p-value", "p_min": "smallest p", "fpr": "FPR", "wsr": "WSR"}
_ENDS = {"value": "", "ci_low": ", lower end", "ci_high": ", upper end"}
DECLARED = ("fpr_alpha", "alpha", "tolerance")
"""Limits that an experiment declares by a row of that metric."""
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True)
class Limit:
    """What a cell is compared with: an operator, and a number or the name of a declared one."""

    compare: str
    sign: int
    bound: str

    def holds(self, cells: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
        """Whether each cell passes; a cell that is NaN does not.

        Raises:
            DataError: If the limit names a number that an experiment of the cells has not declared.
        """
        if self.bound not in DECLARED:
            limit = pd.Series(float(self.bound), index=cells.index)
        else:
            default = analysis.TOLERANCE if self.bound == "tolerance" else None
            limit = analysis.parameter(cells, rows, self.bound, default)
            if limit.isna().any():
                place = cells.loc[limit.isna(), ["experiment", "scale"]].iloc[0]
                raise DataError(
                    f"experiment {place['experiment']} at scale {place['scale']} has no row of metric {self.bound}, "
                    "which a claim needs; write one when the experiment runs"
                )
        return OPERATORS[self.compare](cells["cell"], self.sign * limit) & cells["cell"].notna()


@dataclass(frozen=True)
class Check:
    """One selection of rows and what all of them have to fulfil; see the module for its parts."""

    metric: str
    all: Limit
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    pair: tuple[str, str, str] | None = None
    column: str = "value"
    over: tuple[str, ...] = ()
    aggregate: str = "mean"
    cover: Mapping[str, int] = field(default_factory=dict)
    require: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def cells(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The selected cells.

        Args:
            rows: Result rows of one paper and scale, with the metric ``removed`` among them.

        Returns:
            The identity columns that are left, ``cell`` (the number to compare) and ``passed``.
        """
        # two metrics of the same thing, such as a rate and its bound, differ in that column
        metrics = self.pair[1:] if self.pair and self.pair[0] == "metric" else (self.metric,)
        chosen = rows[rows["metric"].isin(metrics)]
        for column, values in self.where.items():
            chosen = chosen[chosen[column].isin(values)]
        if self.pair:
            chosen = analysis.paired(chosen, *self.pair).rename(columns={"difference": "cell"})
        else:
            chosen = chosen.rename(columns={self.column: "cell"})
        keys = [c for c in IDENTITY if c not in self.over]
        chosen = analysis.distinct(chosen[[*IDENTITY, "run", "cell"]])
        if self.over:
            chosen = chosen.groupby(keys, sort=False)["cell"].agg(self.aggregate).round(12).reset_index()
        return chosen.assign(passed=self.all.holds(chosen, rows))

    def missing(self, cells: pd.DataFrame) -> list[str]:
        """What the cells do not cover, in words."""
        if cells.empty:
            return [f"no rows of {self.metric}"]
        gaps = [
            f"{cells[column].nunique()} of {least} different {column}"
            for column, least in self.cover.items()
            if cells[column].nunique() < least
        ]
        for column, values in self.require.items():
            absent = [str(value) for value in values if value not in set(cells[column])]
            gaps += [f"no {column} {', '.join(absent)}"] if absent else []
        return gaps

    @property
    def fraction(self) -> bool:
        """Whether differences are of fractions, and shown in points."""
        return self.metric not in METRICS or self.metric in FRACTIONS

    def show(self, value: float) -> str:
        """A cell's number as a person reads it."""
        if self.pair and self.fraction:
            return points(value)
        if self.metric in ("p_value", "p_min"):
            return p_text(value)
        return plain(value, ".3g")


@dataclass(frozen=True)
class Claim:
    """One claim: its id and text, the paper's number if it is known, and the tests that decide it."""

    id: str
    claim: str
    tests: tuple[Check, ...]
    paper: str = ""


@dataclass(frozen=True)
class Finding:
    """The state of one claim at one scale: one of :data:`STATES`, our figure, and what is missing."""

    claim: Claim
    scale: str
    state: str
    figure: str
    missing: str


def judge(claim: Claim, rows: pd.DataFrame, scale: str) -> Finding:
    """Decide one claim.

    Args:
        claim: The claim.
        rows: Result rows of its paper at that scale, with the metric ``removed`` among them.
        scale: The scale's name.
    """
    results = [(check, check.cells(rows)) for check in claim.tests]
    passed = sum(int(cells["passed"].sum()) for _, cells in results)
    total = sum(len(cells) for _, cells in results)
    if total == 0:
        return Finding(claim, scale, NOT_RUN, "", "")
    missing = "; ".join(gap for check, cells in results for gap in check.missing(cells))
    state = REFUTED if passed == 0 else CONFIRMED if passed == total and not missing else PARTLY
    figure = "; ".join(_figure(check, cells) for check, cells in results if len(cells))
    return Finding(claim, scale, state, figure, missing)


def _figure(check: Check, cells: pd.DataFrame) -> str:
    """How many cells passed, and from where to where they reach."""
    share = f"{int(cells['passed'].sum())} of {len(cells)} pass"
    known = cells["cell"].dropna()
    if known.empty:
        return f"{share} ({check.metric} unknown)"
    low, high = check.show(known.min()), check.show(known.max())
    what = _NAMES.get(check.metric, check.metric.replace("_", " "))
    difference = ", difference in points" if check.fraction else ", difference"
    what += difference if check.pair else _ENDS[check.column]
    reach = low if low == high else f"{low} … {high}"
    seeds = "" if "seed" in check.over else f"; {_counted(cells['seed'].nunique(), 'seed')}"
    return f"{share} ({what} {reach}{seeds})"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
