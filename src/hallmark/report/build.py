"""The whole report as a pure function of the rows and the papers' expectations."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hallmark.errors import DataError
from hallmark.report import (
    against,
    analysis,
    contents,
    features,
    figures,
    hidden,
    page,
    rows,
    sheets,
    speed,
    summary,
    surveys,
    tables,
)
from hallmark.report.claims import NOT_RUN, Finding, judge
from hallmark.report.expected import Expected, load
from hallmark.report.responses import responses
from hallmark.report.survival import extraction

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
OWNED = ("tables", "figures")
"""Folders of the results that hold nothing but generated files."""


def build(results: Path, experiments: Path, readme: Path | None) -> dict[Path, bytes]:
    """Everything the report consists of.

    Args:
        results: Folder with ``runs.csv`` and perhaps ``features.csv``; either may be missing or empty.
        experiments: Folder with ``<paper>/expected.yaml``.
        readme: File whose generated blocks are filled, if it exists.

    Returns:
        The content of every generated file, the same bytes for the same input.

    Raises:
        DataError: If an input breaks its format.
    """
    found = papers(results, experiments)
    files: dict[Path, str | bytes] = {
        results / "REPORT.md": page.report(found),
        results / "index.html": page.page(found),
    }
    for section in (section for paper in found for section in paper.sections):
        for table in section.tables:
            stem = results / "tables" / table.name
            files[stem.with_suffix(".md")] = tables.markdown(table.heads, table.texts())
            files[stem.with_suffix(".csv")] = tables.comma_separated(table.frame)
            files[stem.with_suffix(".tex")] = tables.latex(table)
        for picture in section.pictures:
            files[results / "figures" / f"{picture.name}.svg"] = picture.svg
    for picture in page.chosen_picture(found):
        files[results / "figures" / f"{picture.name}.png"] = picture.png
    if readme is not None and readme.is_file():
        folder = Path(os.path.relpath(results, readme.parent)).as_posix()
        blocks = page.blocks(found, folder) | {"speed": speed.block(results / "benchmarks")}
        files[readme] = page.fill(readme.read_text(encoding="utf-8"), blocks)
    return {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}


def stale(files: Mapping[Path, bytes], results: Path) -> list[str]:
    """One line for every file that is missing, differs, or is there without being generated."""
    lines = []
    for path, content in sorted(files.items()):
        if not path.is_file():
            lines.append(f"{path} is missing")
        elif path.read_bytes() != content:
            lines.append(f"{path} is stale")
    return lines + [f"{path} is not generated any more" for path in _leftovers(files, results)]


def write(files: Mapping[Path, bytes], results: Path) -> None:
    """Write what changed and remove what is not generated any more."""
    for path, content in files.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in _leftovers(files, results):
        path.unlink()


def _leftovers(files: Mapping[Path, bytes], results: Path) -> list[Path]:
    there = (path for folder in OWNED for path in (results / folder).rglob("*") if path.is_file())
    return sorted(path for path in there if path not in files)


def papers(results: Path, experiments: Path) -> list[page.Paper]:
    """Every paper that is expected or has rows, those with expectations first, with all that its rows say.

    Raises:
        DataError: If an input breaks its format.
    """
    runs = _runs(results / "runs.csv")
    points = _features(results / "features.csv", runs)
    drawn = sheets.load(results)
    expected = [load(path) for path in sorted(experiments.glob("*/expected.yaml"))]
    unexpected = sorted(set(runs["paper"]) - {e.paper for e in expected})
    known = [*expected, *(Expected(paper=p, title=p) for p in unexpected)]
    return [_paper(e, runs, points, [sheet for sheet in drawn if sheet.paper == e.paper]) for e in known]


def _paper(
    expected: Expected, runs: pd.DataFrame, points: pd.DataFrame, pictured: Sequence[sheets.Sheet]
) -> page.Paper:
    findings: list[Finding] = []
    sections = []
    for scale in reversed(rows.SCALES):
        mine = runs[(runs["paper"] == expected.paper) & (runs["scale"] == scale)]
        if mine.empty:
            continue
        if scale in JUDGED:
            derived = pd.concat([mine, analysis.removals(mine)], ignore_index=True)
            findings += [judge(claim, derived, scale) for claim in expected.claims]
        name = f"{expected.paper}_{scale}"
        drawn = [make(mine, f"{name}_{kind}") for kind, make in TABLES.items()]
        if scale in JUDGED:
            drawn.insert(1, against.table(expected.numbers, mine, f"{name}_against_paper"))
        here = points[(points["paper"] == expected.paper) & (points["scale"] == scale)]
        sections.append(
            page.Section(
                scale=scale,
                facts=summary.facts(mine) if scale in JUDGED else (UNJUDGED,),
                commands=_commands(expected, mine, scale),
                tables=tuple(table for table in drawn if len(table.frame)),
                pictures=tuple(figures.pictures(mine, here, name)),
                sheets=tuple(sheet for sheet in pictured if sheet.scale == scale),
            )
        )
    if not findings:
        findings = [Finding(claim, "", NOT_RUN, "", "") for claim in expected.claims]
    return page.Paper(expected, tuple(findings), tuple(sections))


def _commands(expected: Expected, mine: pd.DataFrame, scale: str) -> dict[str, str]:
    """What reproduces each experiment, with all of its seeds."""
    commands = {}
    for experiment, part in mine.groupby("experiment"):
        seeds = sorted(part["seed"].unique())
        flags = (
            "" if seeds == [0] else f" seed={seeds[0]}" if len(seeds) == 1 else f" -m seed={','.join(map(str, seeds))}"
        )
        commands[str(experiment)] = expected.command.format(experiment=experiment, scale=scale) + flags
    return commands


def _runs(path: Path) -> pd.DataFrame:
    """The result rows; none if nothing was run."""
    if not path.is_file() or path.stat().st_size == 0:
        return pd.DataFrame({column: [] for column in rows.COLUMNS})
    return rows.read(path)


def _features(path: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The points of pictures, with the paper that each belongs to; none if there is no file."""
    if not path.is_file():
        return pd.DataFrame({column: [] for column in (*features.COLUMNS, "paper")})
    with path.open(encoding="utf-8", newline="") as file:
        header = tuple(next(csv.reader(file), ()))
    if header not in (features.COLUMNS, features.FIRST):
        raise DataError(f"{path}: the columns are {','.join(header)}; expected {','.join(features.COLUMNS)}")
    numbers = {"x": "float64", "y": "float64", "seed": "int64"}
    try:
        points = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(header, "str") | numbers)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    papers = dict(zip(runs["experiment"], runs["paper"], strict=True))
    strangers = sorted(set(points["experiment"]) - set(papers))
    if strangers:
        raise DataError(f"{path}: experiment {strangers[0]} has no rows in runs.csv; measure it or delete its points")
    points = points.reindex(columns=list(features.COLUMNS), fill_value="")
    return points.assign(paper=points["experiment"].map(papers))
