"""The outcome of one paper at one scale in a few sentences."""

from __future__ import annotations

import pandas as pd

from hallmark.report import analysis, responses, survival
from hallmark.report.analysis import CONTROLS
from hallmark.report.tables import plain, points


def facts(rows: pd.DataFrame) -> tuple[str, ...]:
    """What the rows say about effectiveness, integrity, fidelity and robustness; nothing about what was not measured.

    Args:
        rows: Result rows of one paper at one scale.
    """
    seen = analysis.verdicts(rows)
    access = analysis.least_access(seen)
    seen = analysis.distinct(seen[(seen["access"] == access) & seen["detected"].notna()])
    marked = seen[(seen["suspect"] == "marked") & (seen["attack"] == "none")]
    others = seen[seen["suspect"].isin(CONTROLS)]
    alphas = ", ".join(plain(alpha) for alpha in sorted(rows.loc[rows["metric"] == "alpha", "value"].unique()))
    at = f" at alpha {alphas}" if alphas else ""
    clean = rows[(rows["metric"] == "accuracy") & (rows["attack"] == "none")]
    difference = analysis.distinct(analysis.paired(clean, "suspect", "marked", "original"))["difference"]
    done = analysis.distinct(analysis.attacks(rows))
    fate = done.loc[(done["access"] == access) & (done["detected"].notna()), "outcome"].value_counts()
    found = []
    if len(marked):
        found.append(f"By {access} alone, the mark is found in {_of(marked['detected'])} marked models{at}.")
    if len(others):
        found.append(f"Of the suspects that should not be accused, {_of(others['detected'])} are.")
    if len(difference):
        low, mean, high = (points(x) for x in (difference.min(), difference.mean(), difference.max()))
        found.append(f"Accuracy changes by {mean} points on average ({low} to {high}, {len(difference)} pairs).")
    if len(fate):
        counts = ", ".join(f"{fate[name]} {name}" for name in analysis.OUTCOMES if name in fate.index)
        found.append(f"Under attack, of {fate.sum()} attacked models: {counts}.")
    return (*found, *responses.sentences(rows), *survival.sentences(rows))


def _of(flags: pd.Series) -> str:
    return f"{int(flags.sum())} of {len(flags)}"
