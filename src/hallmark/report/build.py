"""The whole report as a pure function of the rows and the papers' expectations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hallmark.composition import CONF
from hallmark.report import analysis, latex, page, reading, rows, sheets, speed, tables
from hallmark.report.against import Numbers
from hallmark.report.claims import NOT_RUN, Finding, judge
from hallmark.report.expected import Expected, load
from hallmark.report.matrix import section as matrix
from hallmark.report.shown import JUDGED, Shown, shown

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
            files[stem.with_suffix(".tex")] = latex.tabular(table)
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
    """Every paper that is expected or has rows, with all that its rows say: those that have some first.

    Raises:
        DataError: If an input breaks its format.
    """
    runs = reading.runs(results)
    points = reading.points(results, runs)
    drawn = sheets.load(results)
    expected = [load(path) for path in sorted(experiments.glob("*/expected.yaml"))]
    unexpected = sorted(set(runs["paper"]) - {e.paper for e in expected})
    known = [*expected, *(Expected(paper=p, title=p) for p in unexpected)]
    found = [_paper(e, runs, points, [sheet for sheet in drawn if sheet.paper == e.paper]) for e in known]
    return sorted(found, key=lambda paper: not paper.sections)


def present(runs: pd.DataFrame, points: pd.DataFrame, paper: str, scale: str, numbers: Sequence[Numbers] = ()) -> Shown:
    """What the report shows of one paper at one scale.

    Args:
        runs: Result rows.
        points: Points of pictures, with ``paper`` beside their columns.
        paper: Its folder's name.
        scale: The scale.
        numbers: What the paper's tables print.
    """
    mine, here = (frame[(frame["paper"] == paper) & (frame["scale"] == scale)] for frame in (runs, points))
    if paper == matrix.PAPER:
        return matrix.shown(mine, f"{paper}_{scale}", scale)
    return shown(mine, here, f"{paper}_{scale}", scale, numbers)


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
        made = present(runs, points, expected.paper, scale, expected.numbers)
        sections.append(
            page.Section(
                scale=scale,
                facts=made.facts,
                commands=_commands(expected, mine, scale),
                tables=made.tables,
                pictures=made.pictures,
                sheets=tuple(sheet for sheet in pictured if sheet.scale == scale),
                choice=made.choice,
            )
        )
    if not findings:
        findings = [Finding(claim, "", NOT_RUN, "", "") for claim in expected.claims]
    return page.Paper(expected, tuple(findings), tuple(sections))


def _commands(expected: Expected, mine: pd.DataFrame, scale: str) -> dict[str, str]:
    """What reproduces each experiment, with all of its seeds; of one that has no file, that it is somebody's own."""
    commands = {}
    for experiment, part in mine.groupby("experiment"):
        if not (CONF / "experiment" / f"{experiment}.yaml").is_file():
            commands[str(experiment)] = f"{experiment} is none of Hallmark's experiments: repeat your own command"
            continue
        seeds = sorted(part["seed"].unique())
        flags = (
            "" if seeds == [0] else f" seed={seeds[0]}" if len(seeds) == 1 else f" -m seed={','.join(map(str, seeds))}"
        )
        commands[str(experiment)] = expected.command.format(experiment=experiment, scale=scale) + flags
    return commands
