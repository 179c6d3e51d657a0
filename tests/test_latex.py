"""Tables as LaTeX, read back by a parser that knows nothing of how they were written, and set where there is a TeX."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from hallmark.report import latex
from hallmark.report.cli import main
from hallmark.report.rows import merge
from hallmark.report.tables import Column, Table
from synthetic_matrix import matrix_rows

NASTY = [
    ["a & b", "100 %", "$x$ #1 {y}", "under_score"],
    ["~ ^ \\", "1 ± 2", "−3.0 … +4", "3 × 4 – 5"],
    ["< 0.1 | > 2", "“quoted”", "n/a (a)", "wpe† α ≤ 1"],
    ["±ε / %", "‖w‖∞ · 255", "x ≥ ½ √n", "λ₁ ≈ 10⁻² → σ²"],
]
# what commands stand for, from the LaTeX companion's tables of symbols
SYMBOLS = {
    r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textbackslash{}": "\\", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"\dots{}": "…", r"$\pm$": "±", r"$\times$": "×", "$-$": "−",
    r"$\alpha$": "α", r"$\le$": "≤", "``": "“", "''": "”", "--": "–", r"\textdagger{}": "†",
    r"$\varepsilon$": "ε", r"$\|$": "‖", r"$\infty$": "∞", r"$\cdot$": "·", r"$\ge$": "≥", r"$\frac{1}{2}$": "½",
    r"$\surd$": "√", r"$\lambda$": "λ", "$_1$": "₁", r"$\approx$": "≈", "$^-$": "⁻", "$^2$": "²", r"$\to$": "→",
    r"$\sigma$": "σ", r"\textdegree{}": "°",
}  # fmt: skip
RESULTS = Path(__file__).parents[1] / "results" / "tables"


def table(lines: list[list[str]], name: str = "t") -> Table:
    frame = pd.DataFrame(lines, columns=list("abcd")).assign(experiment="e")
    columns = tuple(Column(f"{key} / %", key) for key in "abcd")
    return Table(name, "A title & more", "100 % of_it.", frame, columns)


def parse(text: str) -> tuple[str, list[list[str]]]:
    """The columns' letters and all lines of the one table in a LaTeX text."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    ((kind, letters, body),) = re.findall(r"\\begin\{(tabular|longtable)\}\{(\w+)\}(.*?)\\end\{\1\}", text, re.DOTALL)
    body = re.sub(r"\\caption\{.*?\}\\label\{[^}]*\} \\\\", "", body) if kind == "longtable" else body
    assert re.findall(r"\\(\w*rule)", body) == ["toprule", "midrule", "bottomrule"]
    body = re.sub(r"\\(\w*rule|endhead|endlastfoot)\b", "", body)
    lines = [line for line in re.split(r"\\\\\s*\n", body) if line.strip()]
    return letters, [[plain(cell.strip()) for cell in re.split(r"(?<!\\)&", line)] for line in lines]


def plain(cell: str) -> str:
    made, rest = "", cell
    while rest:
        command = next((c for c in SYMBOLS if rest.startswith(c)), None)
        if command:
            made, rest = made + SYMBOLS[command], rest[len(command) :]
        elif rest[0] == "\\" and rest[1] in "&%$#_{}":
            made, rest = made + rest[1], rest[2:]
        else:
            assert rest[0].isascii(), f"{rest[0]!r} is left as it is in {cell!r}"
            assert rest[0] not in "\\&%$#_{}~^", f"{rest[0]!r} is not escaped in {cell!r}"
            made, rest = made + rest[0], rest[1:]
    return made


@pytest.mark.parametrize("write", [latex.tabular, latex.floating])
@pytest.mark.parametrize("times", [1, 20])
def test_what_was_written_is_read_back(write, times) -> None:
    shown = table(NASTY * times)
    letters, (head, *lines) = parse(write(shown))
    assert letters == "llll"
    assert head == shown.heads
    assert lines == NASTY * times


@pytest.mark.parametrize("character", "ε‖∞α≥≤×±−·…–σλτ²₀½√≈→†°“”é")
def test_no_character_is_left_to_the_fonts(character: str) -> None:
    """pdfLaTeX reads ASCII whatever the encoding and the fonts; a formula starts and ends within a character."""
    written = latex.escape(character)
    assert written.isascii()
    assert written != character
    assert written.count("$") in (0, 2)


def test_every_character_of_the_record_is_written_in_ascii() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in sorted(RESULTS.glob("*.md")))
    assert {character for character in set(shown) if not latex.escape(character).isascii()} == set()


def test_captions_hold_title_and_note_and_labels_the_name() -> None:
    text = latex.floating(table(NASTY, "m_cpu_cells"))
    assert r"\caption{A title \& more. 100 \% of\_it.}\label{tab:m_cpu_cells}" in text
    assert "longtable" not in text
    assert r"\begin{longtable}" in latex.floating(table(NASTY * 20))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latex") / "results"
    merge(folder / "runs.csv", list(matrix_rows()))
    return folder


def test_one_table_is_printed_and_all_are_written(results, tmp_path, capsys) -> None:
    assert main(["--results", str(results), "--latex", "matrix_cpu_calibration"]) == 0
    printed = capsys.readouterr().out
    _, lines = parse(printed)
    assert ["uchida†", "weights"] in [line[:2] for line in lines]
    assert main(["--results", str(results), "--latex-to", str(tmp_path / "tex")]) == 0
    assert (tmp_path / "tex" / "matrix_cpu_calibration.tex").read_text() == printed
    assert {"matrix_cpu_encoders.tex", "matrix_cpu_cells.tex"} <= {p.name for p in (tmp_path / "tex").iterdir()}
    assert not (results / "tables").exists()


def test_an_unknown_table_is_one_line(results, capsys) -> None:
    assert main(["--results", str(results), "--latex", "matrix_cpu_nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hallmark-report: unknown table 'matrix_cpu_nothing'; allowed: matrix_cpu_")
    assert error.count("\n") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here; the parser above checks the escapes")
def test_pdflatex_sets_every_table(results, tmp_path) -> None:
    assert main(["--results", str(results), "--latex-to", str(tmp_path)]) == 0
    (tmp_path / "nasty.tex").write_text(latex.floating(table(NASTY)))
    names = sorted(path.stem for path in tmp_path.glob("*.tex"))
    inputs = "\n".join(rf"\input{{{name}}}\clearpage" for name in names)
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage[landscape,margin=1cm,paperwidth=80cm]{geometry}\n"
        f"\\usepackage{{booktabs,longtable}}\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")
