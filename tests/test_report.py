import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from hallmark.errors import DataError
from hallmark.report import against, analysis, contents, page
from hallmark.report.against import Numbers
from hallmark.report.build import build, papers, stale, write
from hallmark.report.cli import main
from hallmark.report.features import COLUMNS
from hallmark.report.rows import Row, merge, read
from synthetic_rows import feature_points, wpe_rows

ROOT = Path(__file__).parents[1]
README = "# Title\n\n" + "\n".join(
    f"<!-- report:{name} -->\nold\n<!-- /report -->\n" for name in ("papers", "wpe", "figure")
)
PLACE = {
    "experiment": "wpe/main", "paper": "wpe", "host": "net", "pretrain": "simclr", "downstream": "a", "scale": "cpu",
    "task": "linear_probe",
}  # fmt: skip
MARKED = Row(**PLACE, scheme="wpe", suspect="marked", metric="accuracy", value=0.9)
ORIGINAL = Row(**PLACE, scheme="none", suspect="original", metric="accuracy", value=0.9)
FOUND = Row(**PLACE, scheme="wpe", suspect="marked", access="labels", metric="detected", value=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with rows at two scales, points in feature space, a README, and its report."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "experiments", root / "experiments")
    (root / "README.md").write_text(README)
    rows = [*wpe_rows("cpu", (0,), ("simclr", "byol"), ("linear_probe", "finetune"))]
    rows += wpe_rows("smoke", (0,), ("simclr",), ("linear_probe",))
    merge(root / "results" / "runs.csv", rows)
    with (root / "results" / "features.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *feature_points(("simclr",))])
    assert main(["--results", str(root / "results")]) == 0
    return root


def frame_of(tmp_path, rows):
    merge(tmp_path / "runs.csv", rows)
    return read(tmp_path / "runs.csv")


def test_report_is_the_same_bytes_in_another_process(project):
    command = [sys.executable, "-m", "hallmark.report.cli", "--results", "results", "--check"]
    environment = {**os.environ, "PYTHONHASHSEED": "17", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "7"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_promised_is_there(project):
    results = project / "results"
    names = {path.name for path in (results / "tables").iterdir()}
    kinds = ("glance", "fidelity", "verdicts", "false_positives", "attacks", "attacked_models")
    expected = {f"wpe_{scale}_{k}.{e}" for scale in ("cpu", "smoke") for k in kinds for e in ("md", "csv", "tex")}
    assert names == expected
    figures = {path.name for path in (results / "figures").iterdir()}
    curves = {f"wpe_cpu_robustness_{a}.svg" for a in ("prune_fraction_global", "finetune_epochs_all")}
    assert figures >= {"wpe_cpu_features.png", "wpe_cpu_features.svg", "wpe_cpu_pvalues.svg", *curves}
    for path in (results / "figures").glob("*.svg"):
        text = path.read_text()
        assert "<dc:date>" not in text
        assert "Matplotlib v" not in text
    report = (results / "REPORT.md").read_text()
    assert "hallmark experiment=wpe/main scale=cpu" in report
    assert "### Deviations" in report
    assert "wpe.robust" in report


def test_readme_blocks_are_filled_and_the_rest_is_kept(project):
    text = (project / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- report:papers -->\n| paper | scale |")
    assert "old" not in text
    assert "](results/figures/wpe_cpu_features.png)" in text
    assert "mark found" in text


def test_check_finds_what_is_stale(tmp_path, capsys):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text("<!-- report:papers -->\n<!-- /report -->\n")
    merge(results / "runs.csv", [MARKED, replace(FOUND, metric="p_value", value=0.001)])
    write(build(results, tmp_path / "experiments", readme), results)
    assert main(["--results", str(results), "--check"]) == 0
    report, leftover = results / "REPORT.md", results / "tables" / "old.csv"
    report.write_bytes(report.read_bytes() + b"x")
    leftover.write_text("a,b\n")
    (results / "figures" / "wpe_cpu_pvalues.svg").unlink()
    readme.write_text("<!-- report:papers -->\nby hand\n<!-- /report -->\n")
    capsys.readouterr()
    assert main(["--results", str(results), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for part in ("README.md is stale", "REPORT.md is stale", "pvalues.svg is missing", "old.csv is not generated"):
        assert sum(part in line for line in lines) == 1
    files = build(results, tmp_path / "experiments", readme)
    write(files, results)
    assert not leftover.exists()
    assert stale(files, results) == []


class Cells(HTMLParser):
    """Collects the texts of all table lines, and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.lines, self.links, self.inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag == "tr":
            self.lines.append([])
        self.inside = tag == "td"
        if self.inside:
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.lines[-1][-1] += data


def test_page_holds_every_verdict_and_nothing_from_outside(project):
    text = (project / "results" / "index.html").read_text()
    cells = Cells()
    cells.feed(text)
    rows = read(project / "results" / "runs.csv")
    for scale in ("cpu", "smoke"):
        lines = contents.verdict(rows[rows["scale"] == scale], "x").texts()
        assert len(lines) > 20
        assert all(line in cells.lines for line in lines)
    assert cells.links
    assert all(link.startswith("#") for link in cells.links)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert 'name="viewport"' in text


def test_page_escapes_what_rows_say(tmp_path):
    rows = [replace(row, host="<script>alert(1)</script> & co") for row in (MARKED, ORIGINAL)]
    rows += [replace(row, host="other") for row in (MARKED, ORIGINAL)]
    merge(tmp_path / "results" / "runs.csv", rows)
    files = build(tmp_path / "results", tmp_path / "experiments", None)
    text = files[tmp_path / "results" / "index.html"].decode()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text


def test_scales_never_share_a_cell(tmp_path):
    pairs = [(MARKED, 0.8), (ORIGINAL, 0.9)]
    rows = [replace(row, value=value) for row, value in pairs]
    rows += [replace(row, scale="paper", value=value + 0.05) for row, value in pairs]
    merge(tmp_path / "results" / "runs.csv", rows)
    files = build(tmp_path / "results", tmp_path / "experiments", None)
    for scale, mean in (("cpu", "0.8"), ("paper", "0.85")):
        (line,) = csv.DictReader(files[tmp_path / "results" / f"tables/wpe_{scale}_fidelity.csv"].decode().splitlines())
        assert (line["scale"], line["marked_mean"], line["models"]) == (scale, mean, "1")
    mixed = [rows[0], rows[3]]  # marked at one scale, original at the other: no pair
    assert contents.fidelity(frame_of(tmp_path, mixed), "x").frame.empty


def test_fidelity_is_the_paired_difference_in_points(tmp_path):
    values = {0: (0.80, 0.83), 1: (0.84, 0.85), 2: (0.82, 0.81)}
    rows = [replace(row, seed=s, value=v[i]) for s, v in values.items() for i, row in enumerate((MARKED, ORIGINAL))]
    table = contents.fidelity(frame_of(tmp_path, rows), "x")
    # differences -3, -1, +1 points: mean -1, standard deviation 2; marked 80, 84, 82; original 83, 85, 81;
    # Student's quantile for two degrees of freedom is 4.303, so the interval reaches 4.303 · 2 / √3 = 5.0 points
    assert table.heads == ["marked / %", "original / %", "difference / points", "95 % interval", "seeds"]
    assert table.texts() == [["82.0 ± 2.0", "83.0 ± 2.0", "−1.0 ± 2.0", "−6.0 … +4.0", "3"]]
    assert "algorithm simclr" in table.note


def test_twin_of_another_scheme_is_no_partner(tmp_path):
    rows = frame_of(tmp_path, [MARKED, replace(ORIGINAL, scheme="aw", value=0.1), replace(ORIGINAL, value=0.7)])
    pairs = analysis.paired(rows, "suspect", "marked", "original")
    assert pairs["difference"].tolist() == [0.2]


@pytest.mark.parametrize(
    ("before", "after", "accuracy", "outcome"),
    [
        (1, 1, 0.10, "kept"),
        (1, 0, 0.85, "removed"),  # exactly the tolerance of 0.05 is still worth having
        (1, 0, 0.849, "ruined"),
        (0, 0, 0.90, "absent"),
        (1, 0, None, "unknown"),
        (1, None, 0.90, "unknown"),
        (None, 0, 0.90, "unknown"),
    ],
)
def test_removed_needs_flipped_verdict_and_useful_model(tmp_path, before, after, accuracy, outcome):
    attack = {"attack": "prune", "strength": 0.5, "unit": "fraction global"}
    chance = replace(FOUND, metric="p_value", value=0.5)
    rows = [MARKED, chance, replace(chance, **attack)]
    rows += [] if before is None else [replace(FOUND, value=before)]
    rows += [] if after is None else [replace(FOUND, **attack, value=after)]
    rows += [] if accuracy is None else [replace(MARKED, **attack, value=accuracy)]
    rows += [Row(**PLACE, scheme="wpe", **attack, suspect="marked", metric="seconds", value=12.5)]
    (line,) = analysis.attacks(frame_of(tmp_path, rows)).to_dict("records")
    assert line["outcome"] == outcome
    assert line["seconds"] == 12.5
    if accuracy is not None:
        assert line["loss"] == pytest.approx(0.9 - accuracy)


def test_declared_tolerance_replaces_the_default(tmp_path):
    attack = {"attack": "prune", "strength": 0.5}
    rows = [MARKED, replace(MARKED, **attack, value=0.8), FOUND, replace(FOUND, **attack, value=0)]
    assert analysis.attacks(frame_of(tmp_path, rows))["outcome"].tolist() == ["ruined"]
    rows.append(Row(**{**PLACE, "downstream": "", "task": ""}, scheme="wpe", metric="tolerance", value=0.1))
    assert analysis.attacks(frame_of(tmp_path, rows))["outcome"].tolist() == ["removed"]


def test_encoder_is_worth_the_mean_of_its_downstream_models(tmp_path):
    attack = {"attack": "prune", "strength": 0.5}
    other = replace(MARKED, downstream="b", value=0.7)
    rows = [MARKED, other, replace(MARKED, **attack, value=0.88), replace(other, **attack, value=0.64)]
    verdict = replace(FOUND, access="features", downstream="", task="")
    rows += [verdict, replace(verdict, **attack, value=0)]
    (line,) = analysis.attacks(frame_of(tmp_path, rows)).to_dict("records")
    assert line["loss"] == pytest.approx((0.02 + 0.06) / 2)
    assert line["outcome"] == "removed"


def test_rate_above_alpha_is_flagged_only_beyond_its_interval(tmp_path):
    rate = Row(**PLACE, scheme="wpe", suspect="innocent", metric="fpr", value=0.02, count=20, n=1000)
    rows = [
        replace(rate, ci_low=0.0122, ci_high=0.031),
        replace(rate, suspect="wrong_key", ci_low=0.0091, ci_high=0.03),
    ]
    rows += [replace(MARKED, suspect="", metric="alpha", value=0.001)]
    rows += [replace(MARKED, suspect="", metric="fpr_alpha", value=0.01)]
    table = contents.false_positives(frame_of(tmp_path, rows), "x")
    assert [line[-1] for line in table.texts()] == ["above alpha", "consistent"]
    assert table.texts()[0][1:5] == ["2", "20/1000", "1.2 … 3.1", "1"]


def test_wrong_key_without_verdict_is_held_against_alpha(tmp_path):
    chance = replace(FOUND, suspect="wrong_key", metric="p_value", value=0.001)
    rows = [chance, replace(chance, seed=1, value=0.0011), replace(MARKED, suspect="", metric="alpha", value=0.001)]
    assert analysis.verdicts(frame_of(tmp_path, rows))["detected"].tolist() == [1, 0]


def test_two_values_of_alpha_are_an_error(tmp_path):
    alpha = replace(MARKED, suspect="", metric="alpha", value=0.001)
    rows = frame_of(tmp_path, [alpha, replace(alpha, seed=1, value=0.01)])
    with pytest.raises(DataError, match="declares two values of alpha"):
        analysis.parameter(rows, rows, "alpha")


@pytest.mark.parametrize("content", [None, "", "header"])
def test_without_rows_the_report_says_so(tmp_path, content):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "README.md").write_text(README)
    results = tmp_path / "results"
    results.mkdir()
    if content is not None:
        merge(results / "other.csv", [MARKED])
        header = (results / "other.csv").read_text().splitlines()[0] + "\n"
        (results / "runs.csv").write_text(header if content else "")
    assert main(["--results", str(results)]) == 0
    assert "Nothing has been run yet" in (results / "REPORT.md").read_text()
    assert "Nothing has been run yet" in (results / "index.html").read_text()
    assert "· not run" in (results / "REPORT.md").read_text()
    assert "*Nothing has been run yet.*" in (tmp_path / "README.md").read_text()
    assert main(["--results", str(results), "--check"]) == 0


def test_smoke_decides_no_claim(project):
    (paper,) = (p for p in papers(project / "results", project / "experiments") if p.name == "wpe")
    assert {finding.scale for finding in paper.findings} == {"cpu"}
    assert paper.sections[1].facts[0].startswith("Numbers of this scale prove that the code runs")
    states = {finding.claim.id: finding.state for finding in paper.findings}
    assert states["wpe.task-agnostic"] == "confirmed"
    assert states["wpe.algorithms"] == "partly"  # two of three algorithms
    assert states["wpe.robust"] == "partly"
    assert "extract" in next(f.missing for f in paper.findings if f.claim.id == "wpe.robust")


def test_readme_with_broken_blocks_is_refused():
    with pytest.raises(DataError, match="block report:nothing; there are: papers"):
        page.fill("<!-- report:nothing -->\n<!-- /report -->", {"papers": ""})
    for text in ("<!-- report:papers -->\n", "<!-- report:papers -->\n<!-- report:papers -->\n<!-- /report -->"):
        with pytest.raises(DataError, match="do not match"):
            page.fill(text, {"papers": ""})


def test_bad_input_ends_in_one_line(project, tmp_path, capsys):
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    merge(tmp_path / "results" / "runs.csv", [MARKED])
    text = (tmp_path / "results" / "runs.csv").read_text()
    (tmp_path / "results" / "runs.csv").write_text(text.replace("marked", "guilty"))
    assert main(["--results", str(tmp_path / "results")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "line 2: unknown suspect 'guilty'" in lines[1]


def test_figures_cope_with_little(tmp_path):
    attack = {"attack": "prune", "strength": 0.5, "unit": "fraction"}
    rows = [FOUND, replace(FOUND, **attack), replace(FOUND, **attack, metric="p_value", value=0.0)]
    merge(tmp_path / "results" / "runs.csv", rows)
    files = build(tmp_path / "results", tmp_path / "experiments", None)
    assert tmp_path / "results" / "figures" / "wpe_cpu_robustness_prune_fraction.svg" in files


def test_features_of_unknown_experiment_are_refused(tmp_path):
    merge(tmp_path / "results" / "runs.csv", [replace(MARKED, experiment="other")])
    with (tmp_path / "results" / "features.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *feature_points(("simclr",), each=1)])
    with pytest.raises(DataError, match="experiment wpe/main has no rows"):
        build(tmp_path / "results", tmp_path / "experiments", None)


def test_a_papers_numbers_lie_beside_ours():
    rows = [
        Row(experiment="e", paper="p", scheme="s", scale="cpu", metric="ber", value=value, seed=seed, variant=variant)
        for variant, seed, value in (("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.5))
    ]
    frame = pd.DataFrame([row.as_dict() for row in rows])
    numbers = Numbers("Table 1", "ber", "variant", {"a": 0.25, "b": 0.4, "unmeasured": 0.0}, {"experiment": ("e",)})
    shown = against.table([numbers], frame, "name")
    assert shown.texts() == [
        ["Table 1", "a", "ber", "0.25", "0.2 ± 0.14", "2"],
        ["Table 1", "b", "ber", "0.4", "0.5", "1"],
    ]
    assert shown.experiments == ["e"]
