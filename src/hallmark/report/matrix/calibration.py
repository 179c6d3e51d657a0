"""Whether a scheme accuses innocents more often than it says, and the mark at the name of one that does.

A trial is an innocent model, attacked or not, judged by a key that was drawn fresh: it should be accused at the level
that the experiment fixed.  A scheme whose rate exceeds that level, after correction for so many rates, does not keep
what a p-value promises, and no table of the matrix names it without :data:`DAGGER`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from hallmark.pooling import effective_trials, exceeds, pooled
from hallmark.report import analysis
from hallmark.report.matrix.removal import SCHEME, strongest_first
from hallmark.report.tables import NOTHING, Column, Record, Table, compact, p_text, plain, share
from hallmark.stats import Proportion, at_worth, clopper_pearson, holm

DAGGER = "†"
INNOCENT = ("innocent", "attacked_innocent")
"""Whose accusations are false claims; fresh keys on the marked model are shown beside."""
ABOVE, WITHIN = "above alpha", "consistent"
EXCESS = 0.025
"""Corrected p-value from which a rate counts as above alpha: one side of an interval with 95 %."""
_KINDS = (*INNOCENT, "wrong_key")


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The measured rate of false claims.

    Args:
        rows: Result rows; those of metric ``fpr`` count the trials of each kind of suspect.

    Returns:
        One line per scheme and access: ``<kind>_count`` and ``<kind>_n`` of each kind of suspect; of innocents and
        attacked innocents together ``rate``, ``count``, ``n``, ``low`` and ``high``; ``alpha``, the level that was
        fixed; ``excess`` the p-value of a rate of at most alpha, ``excess_holm`` the same after Holm's correction over
        all lines; ``verdict``, :data:`ABOVE` where that is at most :data:`EXCESS`.
    """
    trials = rows[(rows["metric"] == "fpr") & (rows["unit"] == "") & rows["suspect"].isin(_KINDS)]
    lines = [_line(part) for _, part in trials.groupby([*SCHEME, "access"], sort=True)]
    frame = pd.DataFrame(lines, columns=list(_COLUMNS))
    if frame.empty:
        return frame
    nominal = analysis.parameter(frame, rows, "fpr_alpha")
    frame["alpha"] = nominal.fillna(analysis.parameter(frame, rows, "alpha"))
    judged = frame["n"].notna() & frame["alpha"].notna()
    rates = [Proportion(*r) for r in frame.loc[judged, ["count", "n", "low", "high"]].itertuples(index=False)]
    excess = [exceeds(rate, level) for rate, level in zip(rates, frame.loc[judged, "alpha"], strict=True)]
    frame.loc[judged, "excess"] = excess
    frame.loc[judged, "excess_holm"] = holm(excess)
    above = frame["excess_holm"] <= EXCESS
    frame["verdict"] = above.map({True: ABOVE, False: WITHIN}).where(judged, NOTHING)
    return frame.sort_values([*SCHEME, "access"], key=_rank, ignore_index=True, kind="stable")


def table(rows: pd.DataFrame, name: str) -> Table:
    """Measured false claims of every scheme at every access."""
    columns = (
        Column("innocent", "innocent_n", lambda r: share(r["innocent_count"], r["innocent_n"])),
        Column("attacked innocent", "attacked_innocent_n", _attacked_innocent),
        Column("false claims / %", "rate", lambda r: plain(100 * r["rate"], ".3g")),
        Column("interval / %", "high", _interval),
        Column("alpha / %", "alpha", lambda r: plain(100 * r["alpha"])),
        Column("p of excess", "excess", lambda r: p_text(r["excess"])),
        Column("p, Holm", "excess_holm", lambda r: p_text(r["excess_holm"])),
        Column("verdict", "verdict"),
        Column("wrong key", "wrong_key_n", lambda r: share(r["wrong_key_count"], r["wrong_key_n"])),
    )
    note = (
        "Accused of the trials (suspect, fresh key) at alpha, the level that was fixed for them. Rate and interval are "
        "of innocent and attacked innocent suspects together: Clopper and Pearson's with 95 %, at the number of "
        "independent trials that the kinds are worth, since trials on one suspect share its decoys. The p-value is of "
        f"a rate of at most alpha; from {EXCESS} on after Holm's correction, over all lines, the rate counts as above "
        "alpha. Wrong keys on marked models stand beside."
    )
    return compact(name, "Calibration: how often innocents are accused", note, measured(rows), _KEYS, columns)


def uncalibrated(frame: pd.DataFrame) -> dict[tuple[str, str, str], list[str]]:
    """The schemes that accuse innocents too often.

    Args:
        frame: Of :func:`measured`.

    Returns:
        By experiment, scheme and variant the levels at which they do.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in frame[frame["verdict"] == ABOVE].itertuples():
        found.setdefault((line.experiment, line.scheme, line.variant), []).append(line.access)
    return {scheme: strongest_first(levels) for scheme, levels in found.items()}


def label(record: Record, guilty: Collection[tuple[str, str, str]]) -> str:
    """Scheme and variant, with the dagger if they have earned one; ``guilty`` by experiment, scheme and variant."""
    return f"{record['scheme']} {record['variant']}".strip() + _dagger(record, guilty)


def marked(shown: Table, guilty: Mapping[tuple[str, str, str], list[str]]) -> Table:
    """The table with the dagger at the names of uncalibrated schemes, and what it means below.

    Args:
        shown: Any table; those without a scheme in their frame stay as they are.
        guilty: Of :func:`uncalibrated`.
    """
    if "scheme" not in shown.frame:
        return shown
    places = {_place(record) for record in shown.frame.to_dict("records")}
    present = {place: levels for place, levels in guilty.items() if place in places}
    if not present:
        return shown
    columns = tuple(
        replace(c, show=lambda r: f"{r['scheme']}{_dagger(r, guilty)}") if c.key == "scheme" else c
        for c in shown.columns
    )
    return replace(shown, columns=columns, note=f"{shown.note} {explained(present)}")


def explained(guilty: Mapping[tuple[str, str, str], list[str]]) -> str:
    """What the dagger says of some schemes."""
    whose = (
        f"{f'{scheme} {variant}'.strip()} in {experiment} by {' and '.join(levels)}"
        for (experiment, scheme, variant), levels in guilty.items()
    )
    return f"{DAGGER} accuses innocents more often than alpha, by more than chance explains: {'; '.join(whose)}."


_KEYS = ("experiment", "scheme", "variant", "access")
_COLUMNS = (
    *(*SCHEME, "access"),
    *(f"{kind}_{what}" for kind in _KINDS for what in ("count", "n")),
    *("rate", "count", "n", "low", "high", "alpha", "excess", "excess_holm", "verdict"),
)


def _place(record: Record) -> tuple[str, str, str]:
    return record["experiment"], record["scheme"], record.get("variant", "")


def _dagger(record: Record, guilty: Collection[tuple[str, str, str]]) -> str:
    return DAGGER if _place(record) in guilty else ""


def _line(part: pd.DataFrame) -> dict[str, Any]:
    """All trials of one scheme at one access."""
    line = {key: part[key].iloc[0] for key in (*SCHEME, "access")}
    for kind, mine in part.groupby("suspect"):
        line |= {f"{kind}_count": int(mine["count"].sum()), f"{kind}_n": int(mine["n"].sum())}
    innocent = part[part["suspect"].isin(INNOCENT)]
    groups = [_one(group) for _, group in innocent.groupby(["suspect", "seed"])]
    if groups:
        rate = pooled(groups)
        line |= {"rate": rate.rate, "count": rate.count, "n": rate.n, "low": rate.low, "high": rate.high}
    return line


def _one(group: pd.DataFrame) -> Proportion:
    """One rate of the same suspects and keys: over several tasks they are worth no more trials than over one."""
    tasks = [
        clopper_pearson(int(r.count_), int(r.n))
        if pd.isna(r.ci_low)
        else Proportion(r.count_, r.n, r.ci_low, r.ci_high)
        for r in group.rename(columns={"count": "count_"}).itertuples()
    ]
    if len(tasks) == 1:
        return tasks[0]
    count, n = sum(int(task.count) for task in tasks), sum(int(task.n) for task in tasks)
    return at_worth(count, n, max(effective_trials(task) for task in tasks))


def _attacked_innocent(record: Record) -> str:
    return share(record["attacked_innocent_count"], record["attacked_innocent_n"])


def _interval(record: Record) -> str:
    if pd.isna(record["low"]):
        return NOTHING
    return f"{plain(100 * record['low'], '.2g')} … {plain(100 * record['high'], '.2g')}"


def _rank(column: pd.Series) -> pd.Series:
    """Sorts levels of access by strength, all else by its words."""
    if column.name != "access":
        return column
    order = {level: i for i, level in enumerate(strongest_first(column))}
    return column.map(order)
