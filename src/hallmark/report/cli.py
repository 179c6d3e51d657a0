"""``hallmark-report``: result rows to tables, figures, the report, the page and the README's blocks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hallmark.errors import DataError, HallmarkError

RESULTS = Path("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, or check that it is up to date.

    Returns:
        0 if all is well, 1 if ``--check`` found a stale file, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="hallmark-report", description="Generate everything in results/ that people read."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of runs.csv (default: results)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a generated file is stale")
    options = parser.parse_args(arguments)
    try:
        return _report(options.results, check=options.check)
    except HallmarkError as error:
        print(f"hallmark-report: {error}", file=sys.stderr)
        return 2


def _report(results: Path, *, check: bool) -> int:
    if not results.is_dir():
        raise DataError(f"{results} is no folder; run from the project's root or name it with --results")
    from hallmark.report.build import build, stale, write

    root = results.resolve().parent
    # only the project's own results speak in its README; those of a trial in another folder do not
    readme = root / "README.md" if results.name == RESULTS.name else None
    files = build(results, root / "experiments", readme)
    if not check:
        write(files, results)
        print(f"{len(files)} files are up to date; read {results / 'REPORT.md'} or {results / 'index.html'}")
        return 0
    lines = stale(files, results)
    for line in lines:
        print(f"{line}; run hallmark-report")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
