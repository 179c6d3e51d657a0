"""The guide's scheme and attack, from files outside the package, by the guide's own commands."""

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from hallmark.cli import main, run
from hallmark.composition import compose
from hallmark.report.build import papers
from hallmark.report.matrix import section
from hallmark.report.matrix.removal import IMPOSSIBLE, NOT_RUN, cells
from hallmark.report.rows import read
from smoke import TINY

GUIDE = (Path(__file__).parents[1] / "experiments" / "README.md").read_text()
MODULES = dict(re.findall(r"say `(my_\w+\.py)`.*?```python\n(.*?)```", GUIDE, flags=re.DOTALL))
"""The guide's blocks of code, by the file that the text above them names."""
COMMANDS = [
    shlex.split(line)[2:]
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("PYTHONPATH=. hallmark ")
]
"""Arguments of every ``hallmark`` command of the guide."""


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with the guide's files, which is all that is put on the path."""
    assert set(MODULES) == {"my_attacks.py", "my_schemes.py"}
    for name, code in MODULES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.slow
def test_the_guides_attack_runs_from_outside_the_package(outside: Path) -> None:
    (attack,) = (word for word in COMMANDS[0] if word.startswith("+attacks.drop="))
    run(compose([*TINY, f"store={outside / 's'}", f"results={outside / 'r'}", attack]))
    rows = read(outside / "r" / "runs.csv")
    dropped = rows[(rows["attack"] == "drop_filters") & (rows["metric"] == "p_value")]
    assert set(dropped["strength"]) == {0.1, 0.5}
    assert set(dropped["suspect"]) == {"marked", "attacked_innocent"}
    assert set(dropped["unit"]) == {"share of filters"}
    assert set(rows.loc[(rows["attack"] == "drop_filters") & (rows["metric"] == "attacker_images"), "value"]) == {0}


KEPT_SCHEMES, KEPT_ATTACKS = ("uchida",), ("prune", "quantize", "permute")
"""What the matrix is cut down to, so that it takes seconds."""
SCHEMES, ATTACKS = {*KEPT_SCHEMES, "filter_signs"}, {*KEPT_ATTACKS, "drop_filters"}


def cut(command: list[str]) -> list[str]:
    """The guide's command for the matrix with fewer schemes and attacks, and data of its own folder."""
    whole = compose(["experiment=matrix/classifiers", "scale=smoke"])
    gone = [f"~attacks.{name}" for name in whole["attacks"] if name not in KEPT_ATTACKS]
    gone += [f"~variants.{name}" for name in whole["variants"] if name not in KEPT_SCHEMES]
    return [*command, *gone, "store=s", "trainer.progress=false"]


def hallmark(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["hallmark", *words])
    main()


@pytest.mark.slow
def test_the_guides_scheme_and_attack_are_a_line_and_a_column_of_the_matrix(outside: Path, monkeypatch) -> None:
    hallmark(monkeypatch, *cut(COMMANDS[1]))
    rows = read(outside / "trial" / "runs.csv")
    judged = rows[(rows["metric"] == "p_value") & (rows["suspect"] == "marked")]
    assert judged["value"].between(0, 1).all()
    clean = judged[judged["attack"] == "none"]
    # all of 16 signs are right
    assert clean.loc[clean["scheme"] == "filter_signs", "value"].tolist() == [pytest.approx(2.0**-16, rel=1e-5)]
    met = set(judged.loc[judged["attack"] != "none", ["scheme", "attack"]].itertuples(index=False, name=None))
    assert met == set(product(SCHEMES, ATTACKS))
    assert set(judged.loc[judged["attack"] == "drop_filters", "strength"]) == {0.1, 0.5}
    innocent = rows[(rows["metric"] == "fpr") & (rows["scheme"] == "filter_signs")]
    assert set(innocent["suspect"]) == {"innocent", "attacked_innocent", "wrong_key"}
    assert_in_the_report(rows)


def assert_in_the_report(rows: pd.DataFrame) -> None:
    """Both have a line or column of the table and of the heat map, and their cells hold outcomes."""
    found = cells(rows).set_index(["scheme", "attack"])["state"]
    assert set(found.index) == set(product(SCHEMES, ATTACKS))
    assert not found.isin((NOT_RUN, IMPOSSIBLE)).any()
    shown = section.shown(rows, "matrix_smoke", "smoke")
    table = next(table for table in shown.tables if table.name == "matrix_smoke_classifiers")
    assert set(table.frame["scheme"]) == SCHEMES
    assert {attack.replace("_", " ") for attack in ATTACKS} <= set(table.heads)
    heat_map = next(picture for picture in shown.pictures if picture.name == "matrix_smoke_classifiers_heatmap")
    figure = Figure(layout="constrained")
    heat_map.draw(figure)
    labels = {text.get_text().rstrip("†") for text in figure.axes[0].get_yticklabels()}
    assert labels == SCHEMES
    assert {text.get_text() for text in figure.axes[0].get_xticklabels()} == {a.replace("_", " ") for a in ATTACKS}


@pytest.mark.slow
def test_the_guides_own_experiment_runs_from_a_file_of_ones_own(outside: Path, monkeypatch) -> None:
    (example,) = re.findall(r"```yaml\n(# @package _global_\n.*?)```", GUIDE, flags=re.DOTALL)
    (outside / "my_conf" / "experiment").mkdir(parents=True)
    (outside / "my_conf" / "experiment" / "mine.yaml").write_text(example)
    own = ["--config-dir", "my_conf", "experiment=mine", "scale=smoke", "results=trial"]
    assert GUIDE.count(shlex.join(own)) == 2
    hallmark(monkeypatch, *own, "store=s", "trainer.progress=false")
    rows = read(outside / "trial" / "runs.csv")
    judged = rows[rows["metric"] == "p_value"]
    assert set(judged.loc[judged["suspect"] == "marked", "strength"]) == {0, 0.5, 0.9}
    (paper,) = [paper for paper in papers(outside / "trial", outside) if paper.sections]
    assert "your own command" in paper.sections[0].commands["mine"]


def test_they_are_planned_alike_from_configuration_files_of_ones_own(outside: Path, monkeypatch, capsys) -> None:
    settings = next(word.partition("=")[2] for word in COMMANDS[1] if word.startswith("+attacks.drop="))
    for group, name, content in (
        ("attack", "drop", yaml.safe_load(settings)),
        ("scheme", "filter_signs", {"_target_": "my_schemes.FilterSigns"}),
    ):
        (outside / "my_conf" / group).mkdir(parents=True)
        (outside / "my_conf" / group / f"{name}.yaml").write_text(yaml.safe_dump(content))
    plans = []
    for command in COMMANDS[1:]:
        hallmark(monkeypatch, *cut(command), "--plan")
        plans.append(sorted(capsys.readouterr().out.splitlines()))
    assert len(plans) == 2
    assert plans[0] == plans[1]
    label = "drop_filters 0.5 share of filters on filter_signs in supervised seed 0"
    assert any(label in line for line in plans[0])
