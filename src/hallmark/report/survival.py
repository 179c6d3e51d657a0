"""Which marks survive extraction, and what the thief pays who gets rid of one."""

from __future__ import annotations

import pandas as pd

from hallmark.report import analysis
from hallmark.report.analysis import EVIDENCE
from hallmark.report.tables import NOTHING, Column, Record, Table, mean_sd, over_seeds, p_text, plain, points

KEYS = ("experiment", "scheme", "variant", "unit", "strength", "access")
STRONGEST = ("features", "weights", "logits", "labels")
"""Levels at which a mark in an encoder is looked for, the owner's best first."""


def extraction(rows: pd.DataFrame, name: str) -> Table:
    """Every theft by queries from every mark: what is left of the mark, and what it costs."""
    done = thefts(rows)
    frame = over_seeds(done, KEYS, ("accuracy", "loss", "p_value", *EVIDENCE, "queries", "seconds"))
    counts = done.groupby(list(KEYS), sort=False)["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=list(analysis.OUTCOMES), fill_value=0).reset_index()
    medians = done.groupby(list(KEYS), sort=False)["p_value"].median().rename("p_median").reset_index()
    frame = frame.merge(counts, on=list(KEYS)).merge(medians, on=list(KEYS))
    columns = (
        Column("survives", "kept", _survives),
        Column("removed", "removed"),
        Column("ruined", "ruined"),
        Column("accuracy / %", "accuracy_mean", lambda r: mean_sd(r, "accuracy")),
        Column("lost / points", "loss_mean", lambda r: mean_sd(r, "loss")),
        Column("evidence", "statistic_mean", evidence),
        Column("p-value", "p_median", lambda r: p_text(r["p_median"])),
        Column("queries", "queries_mean", lambda r: plain(r["queries_mean"], "g")),
        Column("theft / s", "seconds_mean", lambda r: plain(r["seconds_mean"], ".3g")),
    )
    note = (
        "Algorithms, downstream models and seeds of a line together; the p-value is the median. Survives: found in so "
        "many of the stolen encoders, of those whose victim showed the mark. Removed: gone from one worth having; "
        "ruined: gone, but at a loss of more accuracy than the experiment tolerates. Evidence: flipped answers, wrong "
        "bits, or the mean difference of paired scores. Cost: answers bought, and seconds of training."
    )
    keys = tuple(Column(key, key) for key in KEYS if frame[key].nunique() > 1 or key == "scheme")
    return Table(name, "Extraction: which mark survives, and what the thief pays", note, frame, (*keys, *columns))


def sentences(rows: pd.DataFrame) -> list[str]:
    """Of each mark, at the level that shows it best: how many thefts it survives, what the cheapest removal costs."""
    done = thefts(rows)
    done = done[done["outcome"].isin(("kept", "removed", "ruined"))]
    lines = []
    for (scheme, variant), part in done.groupby(["scheme", "variant"]):
        access = next(level for level in (*STRONGEST, *part["access"]) if (part["access"] == level).any())
        part = part[part["access"] == access]
        kept = int((part["outcome"] == "kept").sum())
        text = f"By {access}, {f'{scheme} {variant}'.strip()} survives {kept} of {len(part)} extractions"
        gone = part[part["outcome"] == "removed"].sort_values(["queries", "seconds", "unit"])
        if len(gone):
            first = gone.iloc[0]
            text += (
                f"; the cheapest that removes it buys {first['queries']:g} answers ({first['unit']}), trains for "
                f"{first['seconds']:.3g} s and changes accuracy by {points(-first['loss'])} points"
            )
        elif kept < len(part):
            text += "; the others ruin the encoder"
        lines.append(f"{text}.")
    return lines


def thefts(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines of :func:`hallmark.report.analysis.attacks` that are extractions, as far as they were judged."""
    done = analysis.attacks(rows)
    return analysis.distinct(done[(done["attack"] == "extract") & done["detected"].notna()])


def _survives(record: Record) -> str:
    total = sum(int(record[name]) for name in ("kept", "removed", "ruined"))
    return f"{int(record['kept'])}/{total}" if total else NOTHING


def evidence(record: Record) -> str:
    """The evidence of one line of :func:`hallmark.report.tables.over_seeds`: flips, wrong bits or scores."""
    if not pd.isna(record["wsr_mean"]):
        return f"{mean_sd(record, 'wsr')} % flips"
    if not pd.isna(record["ber_mean"]):
        return f"{mean_sd(record, 'ber')} % wrong bits"
    return mean_sd(record, "statistic", 1.0, "z.3f")
