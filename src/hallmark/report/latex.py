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
_GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "η": "eta", "θ": "theta"},
    **{"λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "varphi", "χ": "chi"},
    **{"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi", "Ω": "Omega"},
}
_MATHEMATICS = {
    **{"±": r"\pm", "−": "-", "×": r"\times", "÷": r"\div", "·": r"\cdot", "√": r"\surd", "‖": r"\|"},
    **{"≤": r"\le", "≥": r"\ge", "≠": r"\ne", "≈": r"\approx", "∞": r"\infty", "∈": r"\in", "→": r"\to"},
    **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "∘": r"\circ", "⊃": r"\supset"},
    **{digit: f"_{place}" for place, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{digit: f"^{place}" for place, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "^-", "⁺": "^+"},
    **{letter: f"\\{name}" for letter, name in _GREEK.items()},
}
_CHARACTERS = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
        **{"…": r"\dots{}", "–": "--", "“": "``", "”": "''", "’": "'", "é": r"\'e", "ñ": r"\~n"},
        **{"°": r"\textdegree{}", "†": r"\textdagger{}", "§": r"\S{}"},
        **{character: f"${command}$" for character, command in _MATHEMATICS.items()},
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
