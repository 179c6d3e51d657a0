from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hallmark.errors import DataError
from hallmark.report.analysis import removals
from hallmark.report.claims import judge
from hallmark.report.expected import load
from hallmark.report.rows import Row, merge, read

BASE = Row(
    experiment="e", paper="p", scheme="wpe", scale="cpu", suspect="marked", access="labels", downstream="a",
    task="linear_probe", pretrain="simclr", metric="p_value", value=0.0005,
)  # fmt: skip
ALPHA = Row(experiment="e", paper="p", scheme="wpe", scale="cpu", metric="alpha", value=0.001)
CHECK = {"metric": "p_value", "where": {"suspect": "marked"}, "all": "<= alpha"}


@pytest.fixture
def finding(tmp_path):
    def decide(rows, *tests):
        path = tmp_path / "p" / "expected.yaml"
        path.parent.mkdir(exist_ok=True)
        claim = {"id": "p.c", "claim": "it holds", "paper": None, "tests": list(tests)}
        path.write_text(yaml.safe_dump({"paper": "p", "title": "T", "claims": [claim]}))
        (tmp_path / "runs.csv").unlink(missing_ok=True)
        merge(tmp_path / "runs.csv", rows)
        frame = read(tmp_path / "runs.csv")
        derived = pd.concat([frame, removals(frame)], ignore_index=True)
        return judge(load(path).claims[0], derived, "cpu")

    return decide


def test_confirmed_if_all_pass(finding):
    found = finding([ALPHA, BASE, replace(BASE, downstream="b", value=0.001)], CHECK)
    assert (found.state, found.missing) == ("confirmed", "")
    assert found.figure == "2 of 2 pass (p-value 0.0005 … 0.001; 1 seed)"


def test_partly_if_some_pass(finding):
    found = finding([ALPHA, BASE, replace(BASE, downstream="b", value=0.2)], CHECK)
    assert found.state == "partly"
    assert found.figure.startswith("1 of 2 pass")


def test_not_confirmed_if_none_passes(finding):
    assert finding([ALPHA, replace(BASE, value=0.2)], CHECK).state == "not confirmed"


def test_not_run_without_rows(finding):
    assert finding([ALPHA, replace(BASE, suspect="original")], CHECK).state == "not run"


def test_missing_coverage_makes_partly(finding):
    rows = [ALPHA, BASE, replace(BASE, downstream="b")]
    assert finding(rows, {**CHECK, "cover": {"downstream": 2}}).state == "confirmed"
    found = finding(rows, {**CHECK, "cover": {"downstream": 3}})
    assert (found.state, found.missing) == ("partly", "2 of 3 different downstream")
    found = finding(rows, {**CHECK, "require": {"pretrain": ["simclr", "byol"]}})
    assert (found.state, found.missing) == ("partly", "no pretrain byol")


def test_a_test_without_rows_is_missing_coverage(finding):
    found = finding([ALPHA, BASE], CHECK, {"metric": "wsr", "all": ">= 0.5"})
    assert (found.state, found.missing) == ("partly", "no rows of wsr")


def test_a_rate_is_compared_with_its_own_bound(finding):
    """Two metrics that agree in everything else are a pair; those without a partner are none."""
    rate = replace(BASE, metric="fpr", access="", suspect="original", unit="tau 0.5", variant="block 1", value=0.01)
    bound = replace(rate, metric="fpr_bound", value=0.02)
    other = replace(rate, variant="block 2", value=0.03)
    longest = replace(bound, unit="tau 0.5 longest", value=1.0)
    check = {"metric": "fpr", "pair": {"metric": ["fpr", "fpr_bound"]}, "all": "<= 0"}
    found = finding([ALPHA, rate, bound, other, longest], check)
    assert (found.state, found.figure[:11]) == ("confirmed", "1 of 1 pass")
    assert finding([ALPHA, rate, replace(bound, value=0.005)], check).state == "not confirmed"


def test_pairs_compare_differences_with_an_inclusive_limit(finding):
    marked = replace(BASE, metric="accuracy", access="", value=0.88)
    rows = [marked, replace(marked, suspect="original", scheme="none", value=0.90)]
    check = {"metric": "accuracy", "pair": {"suspect": ["marked", "original"]}, "all": ">= -0.02"}
    found = finding(rows, check)
    assert found.state == "confirmed"  # 0.88 - 0.90 is a little less than -0.02 in floating point
    assert found.figure == "1 of 1 pass (accuracy, difference in points −2.0; 1 seed)"
    assert finding(rows, {**check, "all": ">= -0.0199"}).state == "not confirmed"


def test_aggregates_over_seeds_before_comparing(finding):
    rows = [ALPHA, *(replace(BASE, seed=seed, metric="wsr", value=v) for seed, v in enumerate((0.2, 0.5, 0.95)))]
    for how, limit in (("mean", ">= 0.55"), ("median", "== 0.5"), ("min", "< 0.3"), ("max", "> 0.9")):
        found = finding(rows, {"metric": "wsr", "over": ["seed"], "aggregate": how, "all": limit})
        assert (found.state, found.figure[:9]) == ("confirmed", "1 of 1 pa"), how


def test_a_measurement_of_two_experiments_counts_once(finding):
    rows = [ALPHA, replace(ALPHA, experiment="f"), BASE, replace(BASE, experiment="f")]
    assert finding(rows, CHECK).figure.startswith("1 of 1")


def test_limit_that_was_not_declared_is_an_error(finding):
    with pytest.raises(DataError, match="experiment e at scale cpu has no row of metric alpha"):
        finding([BASE], CHECK)


def test_a_mark_that_was_never_there_did_not_survive(finding):
    before = replace(BASE, metric="detected", value=0)
    rows = [before, replace(before, attack="prune", strength=0.5)]
    check = {"metric": "removed", "all": "== 0"}
    found = finding(rows, check)
    assert (found.state, found.figure) == ("not confirmed", "0 of 1 pass (removed unknown)")
    assert finding([replace(row, value=1) for row in rows], check).state == "confirmed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "speed"}, "claim p.c: unknown metric 'speed'"),
        ({"all": "at most 3"}, "cannot read the limit 'at most 3'"),
        ({"where": {"colour": "red"}}, "unknown column 'colour'"),
        ({"where": {"suspect": "guilty"}}, "unknown suspect 'guilty'"),
        ({"require": {"access": ["label"]}}, "unknown access 'label'"),
        ({"some": 1}, "unknown entry of a test 'some'"),
        ({"pair": {"suspect": "marked"}}, "wrong shape"),
        ({"aggregate": "mode"}, "unknown aggregate 'mode'"),
    ],
)
def test_expected_file_is_checked(finding, change, message):
    with pytest.raises(DataError, match=message) as caught:
        finding([BASE], {**CHECK, **change})
    assert "expected.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("experiments/*/expected.yaml")), ids=str)
def test_expected_files_of_the_project_can_be_read(path):
    expected = load(path)
    assert expected.claims
    assert len({claim.id for claim in expected.claims}) == len(expected.claims)


def test_equal_numbers_of_different_stages_both_count(finding):
    """Two experiments may share a stage, which counts once, or measure two things that come out equal."""
    found = replace(BASE, metric="ber", value=0.0, run="first")
    check = {"metric": "ber", "all": "== 0"}
    assert finding([found, replace(found, experiment="f")], check).figure.startswith("1 of 1")
    assert finding([found, replace(found, experiment="f", run="second")], check).figure.startswith("2 of 2")
