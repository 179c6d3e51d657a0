"""Tables as LaTeX: bare ``tabular`` environments for the results folder, and tables with captions for papers.

Rules are those of the ``booktabs`` package; what is longer than a page is a ``longtable`` of the package of that name.
Characters that pdfLaTeX reads otherwise, or not at all, are written as commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hallmark.errors import DataError, allowed
from hallmark.report.tables import Table

LONGEST = 40
"""Lines up to which a table floats on one page."""
PREAMBLE = "% needs \\usepackage{booktabs}"
_CHARACTERS = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
        **{"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "…": r"\dots{}", "–": "--"},
        **{"≤": r"$\le$", "≥": r"$\ge$", "α": r"$\alpha$", "τ": r"$\tau$", "σ": r"$\sigma$"},
        **{"“": "``", "”": "''", "’": "'", "→": r"$\to$", "₁": r"$_1$", "₀": r"$_0$", "<": r"\textless{}"},
        **{">": r"\textgreater{}", "|": r"\textbar{}", "é": r"\'e", "°": r"\textdegree{}", "·": r"$\cdot$"},
    }
)


def escape(text: str) -> str:
    """A text as LaTeX sets it unchanged."""
    return text.translate(_CHARACTERS)


def tabular(table: Table) -> str:
    """The table alone, to be put into anything."""
    return "\n".join([f"% {table.title}", *_environment("tabular", table, [], [r"\bottomrule"]), ""])


def floating(table: Table) -> str:
    r"""The table with its title and note as caption and ``tab:NAME`` as label, ready for ``\input``."""
    caption = rf"\caption{{{escape(table.title)}. {escape(table.note)}}}\label{{tab:{table.name}}}"
    if len(table.frame) > LONGEST:
        middle = [r"\endhead", r"\bottomrule", r"\endlastfoot"]
        lines = _environment("longtable", table, [rf"{caption} \\"], [], middle)
        return "\n".join([f"{PREAMBLE} \\usepackage{{longtable}}", r"{\footnotesize", *lines, "}", ""])
    body = _environment("tabular", table, [], [r"\bottomrule"])
    start = [PREAMBLE, r"\begin{table}", r"\centering\footnotesize", caption]
    return "\n".join([*start, *body, r"\end{table}", ""])


def chosen(tables: Iterable[Table], names: Sequence[str]) -> str:
    """Some tables by name, one after the other, as :func:`floating` gives them.

    Raises:
        DataError: There is no table of that name.
    """
    known = {table.name: table for table in tables}
    for name in names:
        if name not in known:
            raise DataError(allowed(name, known or ["none, since nothing has been run"], "table"))
    return "\n".join(floating(known[name]) for name in names)


def write(tables: Iterable[Table], folder: Path) -> int:
    """All tables, one file each, as :func:`floating` gives them; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [(folder / f"{table.name}.tex").write_text(floating(table), encoding="utf-8") for table in tables]
    return len(written)


def _environment(
    kind: str, table: Table, above: Sequence[str], below: Sequence[str], middle: Sequence[str] = ()
) -> list[str]:
    head = " & ".join(map(escape, table.heads)) + r" \\"
    lines = [" & ".join(map(escape, line)) + r" \\" for line in table.texts()]
    opening = rf"\begin{{{kind}}}{{{'l' * len(table.columns)}}}"
    return [opening, *above, r"\toprule", head, r"\midrule", *middle, *lines, *below, rf"\end{{{kind}}}"]
