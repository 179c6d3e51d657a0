"""The matrix's part of the report: its tables, figures, sentences and choice."""

from __future__ import annotations

import pandas as pd

from hallmark.report import contents, hidden, surveys
from hallmark.report.figures import p_values
from hallmark.report.matrix import calibration, choice, figures, forging, hours, tables
from hallmark.report.matrix.removal import IMPOSSIBLE, KEPT, NOT_RUN, OPENED, REMOVED, cells
from hallmark.report.shown import JUDGED, UNJUDGED, Shown

PAPER = "matrix"
"""What the rows of the matrix's experiments carry as ``paper``."""


def shown(rows: pd.DataFrame, name: str, scale: str) -> Shown:
    """Everything about the matrix at one scale.

    Args:
        rows: Result rows of one scale.
        name: Stem of the files' names.
        scale: The scale's name.
    """
    found = cells(rows)
    guilty = calibration.uncalibrated(calibration.measured(rows))
    drawn = []
    for experiment, part in found.groupby("experiment", sort=True):
        drawn.append(
            tables.matrix(part, rows[rows["experiment"] == experiment], f"{name}_{figures.stem(str(experiment))}")
        )
    drawn += [
        tables.removals(found, rows, f"{name}_removals"),
        calibration.table(rows, f"{name}_calibration"),
        tables.tried(rows, f"{name}_cells"),
        contents.fidelity(rows, f"{name}_fidelity"),
        contents.verdict(rows, f"{name}_verdicts"),
        contents.detection(rows, f"{name}_detection"),
        hidden.hidden_images(rows, f"{name}_hidden_images"),
        surveys.forged_keys(rows, f"{name}_forged_keys"),
        hours.table(rows, f"{name}_hours"),
    ]
    pictures = figures.pictures(found, rows, guilty, name)
    pictures += [picture for picture in (p_values(rows, f"{name}_pvalues"),) if picture is not None]
    made = choice.choices(found, rows, guilty)
    said = (*_facts(found, guilty), *forging.facts(rows), *map(choice.sentence, made))
    return Shown(
        facts=said if scale in JUDGED else (UNJUDGED,),
        tables=tuple(calibration.marked(table, guilty) for table in drawn if len(table.frame)),
        pictures=tuple(pictures),
        choice=choice.paragraph(made, scale) if scale in JUDGED else "",
    )


def _facts(found: pd.DataFrame, guilty: dict[tuple[str, str, str], list[str]]) -> tuple[str, ...]:
    """How far the matrix is filled and what it says, an experiment a sentence."""
    lines = []
    for experiment, part in found.groupby("experiment", sort=True):
        best = part.drop_duplicates(["scheme", "variant", "attack"])  # the strongest access comes first
        counts = best["state"].value_counts()
        schemes, attacks = best[["scheme", "variant"]].drop_duplicates(), best["attack"].nunique()
        opened = f"{counts[OPENED]} open the lock, " if OPENED in counts else ""
        word = "schemes" if len(schemes) > 1 else "scheme"
        lines.append(
            f"{experiment}: of {len(schemes)} {word} × {attacks} attacks, {counts.get(REMOVED, 0)} remove the mark at "
            f"the strongest access, {opened}{counts.get(KEPT, 0)} do not, {counts.get(IMPOSSIBLE, 0)} cannot be tried, "
            f"{counts.get(NOT_RUN, 0)} were not run."
        )
    return (*lines, *([calibration.explained(guilty)] if guilty else []))
