"""What the report shows of one paper at one scale: sentences, tables, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hallmark.report import against, contents, figures, hidden, summary, surveys
from hallmark.report.against import Numbers
from hallmark.report.canvas import Picture
from hallmark.report.responses import responses
from hallmark.report.survival import extraction
from hallmark.report.tables import Table

TABLES = {
    "glance": contents.headline,
    "fidelity": contents.fidelity,
    "verdicts": contents.verdict,
    "false_positives": contents.false_positives,
    "responses": responses,
    "extraction": extraction,
    "detection": contents.detection,
    "false_fires": surveys.false_fires,
    "locked_use": surveys.locked_use,
    "worn_patches": surveys.worn_patches,
    "forged_keys": surveys.forged_keys,
    "hidden_images": hidden.hidden_images,
    "attacks": contents.attack_summary,
    "attacked_models": contents.attack_models,
}
JUDGED = ("paper", "cpu")
"""Scales at which claims are judged; smaller ones prove that the code runs, nothing else."""
UNJUDGED = "Numbers of this scale prove that the code runs, nothing else."


@dataclass(frozen=True)
class Shown:
    """The generated part of a section.

    Attributes:
        facts: The outcome in a few sentences.
        tables: The tables that have lines.
        pictures: The figures.
        choice: Which scheme to choose when, as Markdown, where the rows tell.
    """

    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    choice: str = ""


def shown(rows: pd.DataFrame, points: pd.DataFrame, name: str, scale: str, numbers: Sequence[Numbers] = ()) -> Shown:
    """Everything about a paper at one scale.

    Args:
        rows: Its result rows at that scale.
        points: Points of its pictures at that scale.
        name: Stem of the files' names.
        scale: The scale's name.
        numbers: What the paper's tables print.
    """
    drawn = [make(rows, f"{name}_{kind}") for kind, make in TABLES.items()]
    if scale in JUDGED:
        drawn.insert(1, against.table(numbers, rows, f"{name}_against_paper"))
    return Shown(
        facts=summary.facts(rows) if scale in JUDGED else (UNJUDGED,),
        tables=tuple(table for table in drawn if len(table.frame)),
        pictures=tuple(figures.pictures(rows, points, name)),
    )
