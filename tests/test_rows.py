import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context

import pytest

from hallmark.errors import DataError
from hallmark.report.rows import COLUMNS, IDENTITY, Row, merge, number_text, read

ROW = Row(experiment="wpe/main", paper="wpe", scheme="wpe", scale="cpu", metric="accuracy", value=0.9, suspect="marked")


def test_columns_are_those_of_the_design():
    assert ",".join(COLUMNS) == (
        "run,experiment,paper,scheme,host,pretrain,dataset,downstream,attack,strength,unit,task,access,suspect,seed,"
        "scale,metric,value,count,n,ci_low,ci_high,wall_s,device,commit,variant"
    )
    results = {"run", "value", "count", "n", "ci_low", "ci_high", "wall_s", "device", "commit"}
    assert set(IDENTITY) == set(COLUMNS) - results
    assert list(ROW.as_dict()) == list(COLUMNS)


def test_row_module_does_not_import_pandas():
    code = "import sys, hallmark.report.rows; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.1 + 0.2, "0.3"), (1 / 3, "0.333333"), (2.0, "2"), (-0.0, "0"), (1.23456789e-12, "1.23457e-12"), (None, "")],
)
def test_numbers_are_short_and_stable(number, text):
    assert number_text(number) == text
    assert text == "" or number_text(float(text)) == text


def test_whole_numbers_stay_exact():
    assert number_text(123456789, "n") == "123456789"
    with pytest.raises(DataError, match=r"n is 1\.5; it has to be a whole number"):
        number_text(1.5, "n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acc"}, "unknown metric 'acc'; allowed: "),
        ({"suspect": "guilty"}, "unknown suspect 'guilty'"),
        ({"access": "label"}, "unknown access"),
        ({"task": "Linear probe"}, "unknown task"),
        ({"scale": "big"}, "unknown scale 'big'; allowed: cpu, paper, smoke"),
        ({"value": 91.2}, "accuracy is 91.2; fractions are written 0 to 1"),
        ({"value": float("nan")}, "value is nan; it has to be finite"),
        ({"strength": 0.5}, "attack none has strength 0.5"),
        ({"unit": None}, "unit is None; it has to be a text"),
        ({"seed": None}, "cannot be empty"),
    ],
)
def test_row_refuses_what_the_file_must_not_hold(change, message):
    with pytest.raises(DataError, match=message):
        replace(ROW, **change)


def test_merge_replaces_equal_identity_and_counts_changes(tmp_path):
    path = tmp_path / "results" / "runs.csv"
    other = replace(ROW, seed=10)
    assert merge(path, [other, ROW, replace(ROW, seed=9)]) == 3
    before = path.read_bytes()
    assert merge(path, [ROW]) == 0
    assert path.read_bytes() == before
    assert merge(path, [replace(ROW, value=0.5, run="abc"), replace(ROW, seed=11)]) == 2
    frame = read(path)
    assert list(frame["seed"]) == [0, 9, 10, 11]  # as numbers, not as texts
    assert list(frame["value"]) == [0.5, 0.9, 0.9, 0.9]
    assert not [p for p in path.parent.iterdir() if p.suffix == ".tmp"]


def test_file_does_not_depend_on_the_order_of_writing(tmp_path):
    rows = [replace(ROW, seed=seed, value=1 / (seed + 3), count=seed, n=9) for seed in range(12)]
    merge(tmp_path / "a.csv", rows)
    for row in reversed(rows):
        merge(tmp_path / "b.csv", [row])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


def test_reading_and_writing_again_is_byte_stable(tmp_path):
    path, copy = tmp_path / "a.csv", tmp_path / "b.csv"
    odd = replace(ROW, seed=1, host='a "quoted", name', value=2 / 7, ci_low=1e-9, wall_s=1234567.8)
    merge(path, [ROW, odd, replace(ROW, metric="seconds", value=0.1 + 0.2, count=3, n=10**9)])
    frame = read(path).astype(object)
    merge(copy, [Row(**record) for record in frame.where(frame.notna(), None).to_dict("records")])
    assert copy.read_bytes() == path.read_bytes()


def test_merge_refuses_two_rows_in_one_place(tmp_path):
    with pytest.raises(DataError, match="two rows claim the same place"):
        merge(tmp_path / "runs.csv", [ROW, replace(ROW, value=0.8)])
    assert merge(tmp_path / "runs.csv", [ROW, ROW]) == 1


def _write(path, seed):
    merge(path, [replace(ROW, seed=seed)])


def test_processes_writing_at_once_lose_nothing(tmp_path):
    path = tmp_path / "runs.csv"
    with get_context("fork").Pool(4) as pool:
        pool.starmap(_write, [(path, seed) for seed in range(24)])
    assert list(read(path)["seed"]) == list(range(24))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy,0.9", "accurac,0.9", "line 2: unknown metric 'accurac'"),
        ("accuracy,0.9", "accuracy,high", "line 2: value is 'high'; it has to be a number or empty"),
        (",0,cpu", ",0.5,cpu", "line 2: seed is '0.5'; it has to be a whole number"),
        ("run,experiment", "run,trial", r"line 1: wrong columns \(experiment, trial\)"),
        (",0.9,", ",0.9,,", "line 2: 27 cells instead of 26"),
    ],
)
def test_read_names_line_and_value(tmp_path, old, new, message):
    path = tmp_path / "runs.csv"
    merge(path, [ROW])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_read_refuses_a_repeated_row(tmp_path):
    path = tmp_path / "runs.csv"
    merge(path, [ROW])
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match="line 3: the same place as line 2"):
        read(path)


def test_read_types(tmp_path):
    path = tmp_path / "runs.csv"
    merge(path, [ROW, replace(ROW, seed=1, value=None, count=3, n=4)])
    frame = read(path)
    assert frame["value"].isna().tolist() == [False, True]
    assert frame["count"].dtype == "Int64"
    assert frame["strength"].dtype == "float64"
    assert frame["unit"].tolist() == ["", ""]


def test_complete_merge_drops_older_rows_of_the_same_run_and_no_others(tmp_path):
    path = tmp_path / "runs.csv"
    gone = replace(ROW, attack="prune", strength=0.5)
    kept = [replace(ROW, seed=1), replace(ROW, experiment="wpe/robustness"), replace(ROW, scale="paper")]
    merge(path, [ROW, gone, *kept])
    assert merge(path, [ROW], complete=True) == 1
    assert sorted(read(path)["strength"]) == [0, 0, 0, 0]
    assert merge(path, [ROW], complete=True) == 0
