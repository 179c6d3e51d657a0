"""``hallmark-report``: result rows to tables, figures, the report, the page and the README's blocks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hallmark.errors import DataError, HallmarkError

RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, check that it is up to date, or give tables as LaTeX.

    Returns:
        0 if all is well, 1 if ``--check`` found a stale file, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="hallmark-report", description="Generate everything in results/ that people read."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of runs.csv (default: results)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail if a generated file is stale")
    what.add_argument("--latex", nargs="+", metavar="NAME", help="print tables with captions, by their files' names")
    what.add_argument("--latex-to", type=Path, metavar="FOLDER", help="write every table with its caption there")
    options = parser.parse_args(arguments)
    try:
        if options.latex or options.latex_to:
            return _latex(options.results, options.latex, options.latex_to)
        return _report(options.results, check=options.check)
    except HallmarkError as error:
        print(f"hallmark-report: {error}", file=sys.stderr)
        return 2


def _latex(results: Path, names: Sequence[str] | None, folder: Path | None) -> int:
    _check_folder(results)
    from hallmark.report import latex
    from hallmark.report.build import papers

    found = papers(results, results.resolve().parent / "experiments")
    tables = [table for paper in found for section in paper.sections for table in section.tables]
    if folder is None:
        print(latex.chosen(tables, names or ()), end="")
    else:
        print(f"{latex.write(tables, folder)} tables in {folder}")
    return 0


def _check_folder(results: Path) -> None:
    if not results.is_dir():
        raise DataError(f"{results} is no folder; run from the project's root or name it with --results")


def _report(results: Path, *, check: bool) -> int:
    _check_folder(results)
    from hallmark.report.build import build, stale, write

    root = results.resolve().parent
    # only the project's own results speak in its README; those of a trial in another folder do not
    readme = root / "README.md" if results.name == RESULTS.name else None
    files = build(results, root / "experiments", readme)
    if not check:
        write(files, results)
        print(f"{len(files)} files written; read {results / 'REPORT.md'} or {results / 'index.html'}")
        return 0
    lines = stale(files, results)
    for line in lines:
        print(f"{line}; run hallmark-report")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
