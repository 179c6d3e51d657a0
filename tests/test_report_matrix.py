"""The matrix of schemes and attacks: cost to removal, calibration and its dagger, choice by rule, figures."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from scipy.stats import beta

from hallmark.report import page
from hallmark.report.build import papers
from hallmark.report.matrix import calibration, choice, hours, removal, tables
from hallmark.report.matrix.figures import pictures
from hallmark.report.matrix.section import shown
from hallmark.report.rows import Row, merge, read
from hallmark.stats import holm
from synthetic_matrix import ALPHA, ATTACKS, FALSE_CLAIMS, FIDELITY, GONE, NOT_RUN, REASON, TRAINING, matrix_rows
from synthetic_rows import wpe_rows

DAGGER = "†"


def frame(tmp_path: Path, rows: list[Row]) -> pd.DataFrame:
    merge(tmp_path / "runs.csv", rows)
    return read(tmp_path / "runs.csv")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return frame(tmp_path_factory.mktemp("matrix"), list(matrix_rows()))


@pytest.fixture(scope="module")
def found(rows: pd.DataFrame) -> pd.DataFrame:
    return removal.cells(rows)


@pytest.fixture(scope="module")
def guilty(rows: pd.DataFrame) -> dict[tuple[str, str, str], list[str]]:
    return calibration.uncalibrated(calibration.measured(rows))


def expected_cell(scheme: str, access: str, attack: str) -> tuple[str, float | None]:
    """State and cheapest strength, by the definition, from what the rows were made of."""
    if attack == NOT_RUN:
        return "n/a", None
    gone = GONE[scheme][access].get(attack, float("inf"))
    if gone == 0:
        return "absent", None
    how = ATTACKS[attack]
    useful = [
        (seconds, strength)
        for strength, seconds, lost in zip(how.strengths, how.seconds, how.lost, strict=True)
        if strength >= gone and lost <= 0.05
    ]
    return ("removed", min(useful)[1]) if useful else ("not removed", None)


def test_every_cell_is_what_the_definition_says(found: pd.DataFrame) -> None:
    cells = {(c.scheme, c.owner, c.attack): c for c in found.itertuples()}
    assert set(cells) == {
        (scheme, access, attack) for scheme in GONE for access in GONE[scheme] for attack in (*ATTACKS, NOT_RUN)
    }
    for (scheme, access, attack), cell in cells.items():
        state, strength = expected_cell(scheme, access, attack)
        assert (cell.state, cell.strength if strength else None) == (state, strength), (scheme, access, attack)
        if state == "removed":
            seconds = ATTACKS[attack].seconds[ATTACKS[attack].strengths.index(strength)]
            assert cell.share == pytest.approx(seconds / TRAINING)
            assert (cell.removed, cell.bearing, cell.access) == (3, 3, access)
            assert (cell.queries == cell.strength) if attack == "extract" else pd.isna(cell.queries)
        if state == "n/a":
            assert cell.reason == REASON
    assert {c.state for c in cells.values()} == {"removed", "not removed", "absent", "n/a"}


PLACE = {"experiment": "matrix/x", "paper": "matrix", "host": "net", "pretrain": "simclr", "scale": "cpu"}


def judged(found_: bool, accuracy: float | None, access: str = "features", p_min: float = 0.001, **at: object) -> list:
    row = Row(**PLACE, **at, scheme="s", suspect="marked", metric="detected", access=access, value=float(found_))
    made = [row, replace(row, metric="p_value", value=0.001 if found_ else min(1.0, p_min * 500))]
    made.append(replace(row, metric="p_min", value=p_min))
    task = {"access": "", "task": "linear_probe", "downstream": "a"}
    return made + ([] if accuracy is None else [replace(row, **task, metric="accuracy", value=accuracy)])


PRUNED = {"attack": "prune", "unit": "fraction", "strength": 0.5}


@pytest.mark.parametrize(
    ("after", "state", "share"),
    [
        ([(False, 0.88), (True, 0.88)], "removed", (1, 2)),  # half of the models that bore it
        ([(False, 0.88), (True, 0.88), (True, 0.88)], "not removed", (0, 3)),
        ([(False, 0.5), (False, 0.5), (False, 0.88)], "not removed", (0, 3)),  # two of three are ruined
        ([(False, None)], "undecided", (0, 0)),
    ],
)
def test_removal_is_of_at_least_half_of_the_models(tmp_path: Path, after: list, state: str, share: tuple) -> None:
    rows = []
    for seed, (detected, accuracy) in enumerate(after):
        rows += judged(True, 0.9, seed=seed) + judged(detected, accuracy, seed=seed, **PRUNED)
    (cell,) = removal.cells(frame(tmp_path, rows)).itertuples()
    assert (cell.state, cell.removed, cell.bearing) == (state, *share)


def test_what_the_suspect_does_not_grant_does_not_decide(tmp_path: Path) -> None:
    rows = judged(True, 0.9, "weights") + judged(True, None, "labels")
    rows += judged(False, 0.9, "weights", p_min=1.0, **PRUNED) + judged(True, None, "labels", **PRUNED)
    cells = removal.cells(frame(tmp_path, rows))
    assert cells[["owner", "state", "access"]].to_numpy().tolist() == [
        ["weights", "not removed", "labels"],
        ["labels", "not removed", "labels"],
    ]
    alone = [row for row in rows if row.access != "labels"]
    (cell,) = removal.cells(frame(tmp_path / "alone", alone)).itertuples()
    assert (cell.state, cell.access) == ("removed", "weights")  # nothing else was to be read


def test_cost_counts_no_loading_and_sorts_equal_clocks_by_queries_and_loss(tmp_path: Path) -> None:
    rows = judged(True, 0.9)
    for strength, accuracy, seconds in ((0.5, 0.87, 1.001), (0.7, 0.88, 1.002)):
        at = {"attack": "prune", "unit": "fraction", "strength": strength}
        spent = Row(**PLACE, **at, scheme="s", suspect="marked", metric="seconds", value=seconds)
        rows += [*judged(False, accuracy, **at), spent]
    trained = Row(**PLACE, scheme="none", suspect="original", metric="seconds", value=1000)
    (cell,) = removal.cells(frame(tmp_path, [*rows, trained])).itertuples()
    assert cell.strength == 0.7  # the same percent of training, less utility lost
    assert cell.share == pytest.approx(0.001002)
    foreign = [replace(row, pretrain="foreign") for row in [*rows, trained]]
    (cell,) = removal.cells(frame(tmp_path / "foreign", foreign)).itertuples()
    assert cell.state == "removed"
    assert pd.isna(cell.share)


@pytest.mark.parametrize(
    ("detected", "accuracy", "state", "removed", "opened"),
    [
        (True, 0.1, "not removed", 0, 0),  # still shut
        (True, 0.80, "not removed", 0, 0),  # six points below what it did with its patch
        (True, 0.83, "opened", 0, 1),
        (False, 0.83, "removed", 1, 0),
        (False, 0.1, "not removed", 0, 0),  # a thief has nothing from losing the mark alone
    ],
)
def test_a_locked_model_is_worth_what_it_does_with_its_patch(
    tmp_path: Path, detected: bool, accuracy: float, state: str, removed: int, opened: int
) -> None:
    patched = Row(**PLACE, scheme="s", suspect="marked", metric="unlocked_accuracy", unit="patch", value=0.86)
    worn = [replace(patched, unit=unit, value=0.1) for unit in ("patch, jpeg 25", "random patch")]
    unmarked = Row(
        **PLACE, scheme="none", suspect="original", metric="accuracy", task="linear_probe", downstream="a", value=0.87
    )
    spent = Row(**PLACE, **PRUNED, scheme="s", suspect="marked", metric="seconds", value=5.0)
    trained = Row(**PLACE, scheme="none", suspect="original", metric="seconds", value=100.0)
    innocent = Row(**PLACE, scheme="s", suspect="innocent", access="features", metric="fpr", value=0, count=0, n=300)
    made = [
        *worn,
        patched,
        unmarked,
        spent,
        trained,
        innocent,
        *judged(True, 0.1),
        *judged(detected, accuracy, **PRUNED),
    ]
    rows = frame(tmp_path, made)
    found = removal.cells(rows)
    (cell,) = found.itertuples()
    assert (cell.state, cell.removed, cell.opened) == (state, removed, opened)
    assert removal.embedding_loss(rows)["lost"].tolist() == pytest.approx([0.01])
    assert removal.attacked(rows)["loss"].tolist() == pytest.approx([0.86 - accuracy])
    assert removal.attacked(rows)["as_stolen"].tolist() == [0.1]
    (line,) = tables.matrix(found, rows, "m").texts()
    assert line[2:4] == ["1.0", "0/1" if state in removal.BROKEN else "1/1"]
    unseen = rows[rows["metric"] != "unlocked_accuracy"].assign(scheme=rows["scheme"].replace("s", "lock"))
    assert set(removal.cells(unseen)["state"]) == {"not removed" if detected else "undecided"}
    assert removal.embedding_loss(unseen)["lost"].isna().all()
    assert line[4] == {"opened": "opened, 5.0 % (−3.0)", "removed": "5.0 % (−3.0)"}.get(state, state)
    (best,) = choice.choices(found, rows, {})
    assert best.cheapest.startswith({"opened": "prune, 0.5 fraction, opens it", "removed": "prune"}.get(state, ""))
    assert bool(best.cheapest) == (state in removal.BROKEN)
    (heat_map,) = [picture for picture in pictures(found, rows, {}, "m") if picture.name.endswith("heatmap")]
    drawn = "".join(ElementTree.fromstring(heat_map.svg).itertext())
    assert ("5.0°" in drawn) == (state == "opened")


def test_utility_of_networks_that_give_images_is_their_similarity(tmp_path: Path) -> None:
    rows = frame(tmp_path, list(matrix_rows("matrix/images")))
    cells = {(c.scheme, c.owner, c.attack): c.state for c in removal.cells(rows).itertuples()}
    assert cells["sslguard", "features", "prune"] == "removed"
    assert cells["wpe", "logits", "prune"] == "not removed"  # 0.3 of similarity is lost where the mark goes
    losses = removal.embedding_loss(rows).set_index("scheme")["lost"]
    assert losses.to_dict() == pytest.approx(FIDELITY)


def test_the_matrix_has_a_line_for_weaker_access_where_it_matters(found: pd.DataFrame, rows: pd.DataFrame) -> None:
    table = tables.matrix(found, rows, "m")
    assert table.heads == ["scheme", "access", "lost to the mark / points", "survives", *sorted([*ATTACKS, NOT_RUN])]
    assert {(line[0], line[1]): line[2:] for line in table.texts()} == {
        ("lost", "features"): ["0.0", "–", "absent", "absent", "n/a (a)", "absent"],
        ("sslguard", "features"): ["2.0", "1/3", "150 % (−3.0)", "not removed", "n/a (a)", "< 0.1 % (−1.0)"],
        ("uchida", "weights"): ["0.2", "1/3", "150 % (−3.0)", "5.0 % (+0.0)", "n/a (a)", "not removed"],
        ("wpe", "logits"): ["1.0", "2/3", "not removed", "50 % (−1.0)", "n/a (a)", "not removed"],
        ("wpe", "labels"): ["1.0", "0/3", "150 % (−3.0)", "15 % (−0.5)", "n/a (a)", "< 0.1 % (−1.0)"],
    }
    assert f"n/a: (a) {REASON}." in table.note
    same = rows[~((rows["access"] == "labels") & (rows["attack"] != "none"))]
    again = rows[(rows["access"] == "logits") & (rows["attack"] != "none")].assign(access="labels")
    equal = pd.concat([same, again], ignore_index=True)
    lines = tables.matrix(removal.cells(equal), equal, "m").texts()
    assert [line[:2] for line in lines if line[0] == "wpe"] == [["wpe", "logits"]]


def test_cells_that_nobody_ran_are_dashes(rows: pd.DataFrame) -> None:
    part = rows[~((rows["scheme"] == "wpe") & (rows["attack"] == "finetune"))]
    lines = tables.matrix(removal.cells(part), part, "m").texts()
    assert {line[5] for line in lines if line[0] == "wpe"} == {"–"}


def test_a_scheme_that_cannot_mark_the_host_has_no_cell(rows: pd.DataFrame) -> None:
    refused = rows[rows["metric"] == "not_applicable"].iloc[:1].assign(scheme="stain", attack="none", unit="no place")
    cells = removal.cells(pd.concat([rows, refused], ignore_index=True))
    mine = cells[cells["scheme"] == "stain"]
    assert mine["attack"].tolist() == sorted([*ATTACKS, NOT_RUN])
    assert set(mine["state"] + ": " + mine["reason"]) == {"n/a: no place"}


def test_removals_say_what_the_attacker_paid(found: pd.DataFrame, rows: pd.DataFrame) -> None:
    table = tables.removals(found, rows, "r")
    lines = [dict(zip(table.heads, line, strict=True)) for line in table.texts()]
    (line,) = [line for line in lines if (line["scheme"], line["attack"]) == ("sslguard", "extract")]
    assert {head: line[head] for head in table.heads[3:]} == {
        "attack": "extract", "cheapest strength": "20000", "in": "queries cosine net", "verified by": "features",
        "removed": "3/3", "cost / % of training": "150", "attack / s": "300", "training / s": "200",
        "lost / points": "3.0", "queries": "20000", "images": "–", "knows": "data, scheme",
    }  # fmt: skip


def test_every_strength_is_listed_with_holms_correction(rows: pd.DataFrame) -> None:
    table = tables.tried(rows, "t")
    lines = [dict(zip(table.heads, line, strict=True)) for line in table.texts()]
    verdicts = rows[(rows["metric"] == "p_value") & (rows["attack"] != "none")]
    stand = sum(p <= ALPHA for p in holm(verdicts["value"].tolist()))
    assert f"over all {len(verdicts)} verdicts of this table, of which {stand} stand" in table.note
    assert (
        0 < stand == sum(int(line["detected, Holm"].split("/")[0]) for line in lines if "/" in line["detected, Holm"])
    )
    steps = sum(len(how.strengths) for how in ATTACKS.values()) * sum(map(len, GONE.values()))
    assert len(lines) == steps + len(GONE)
    (line,) = [
        line for line in lines if (line["scheme"], line["attack"], line["strength"]) == ("uchida", "extract", "1000")
    ]
    assert [line[head] for head in ("utility before / %", "after / %", "lost / points")] == [
        "89.8 ± 0.0", "69.8 ± 0.0", "20.0 ± 0.0",
    ]  # fmt: skip
    assert [line[head] for head in ("mark", "queries", "attack / s", "models")] == ["3 ruined", "1000", "40", "3"]
    assert {line["mark"] for line in lines if line["attack"] == NOT_RUN} == {f"n/a: {REASON}"}


def test_calibration_pools_innocents_and_attacked_innocents(rows: pd.DataFrame) -> None:
    frame = calibration.measured(rows).set_index(["scheme", "access"])
    for (scheme, _), line in frame.iterrows():
        count = 2 * FALSE_CLAIMS[scheme]
        assert (line["count"], line["n"], line["alpha"]) == (count, 600, ALPHA)
        assert line["low"] == pytest.approx(beta.ppf(0.025, count, 600 - count + 1), rel=1e-3)
        assert line["high"] == pytest.approx(beta.ppf(0.975, count + 1, 600 - count), rel=1e-3)
    assert frame["verdict"].to_dict() == {
        (scheme, access): "above alpha" if scheme == "uchida" else "consistent"
        for scheme in GONE
        for access in GONE[scheme]
    }
    assert frame["excess_holm"].tolist() == holm(frame["excess"].tolist())


def test_tasks_on_the_same_suspects_are_worth_no_more_trials(rows: pd.DataFrame) -> None:
    rates = rows[(rows["metric"] == "fpr") & (rows["scheme"] == "sslguard")]
    twice = pd.concat([rates.assign(task=task) for task in ("linear_probe", "finetune")])
    once, both = (calibration.measured(pd.concat([rows[rows["metric"] != "fpr"], r])).iloc[0] for r in (rates, twice))
    assert (both["count"], both["n"]) == (2 * once["count"], 2 * once["n"])
    assert [both["low"], both["high"]] == pytest.approx([once["low"], once["high"]], rel=1e-3)


def test_who_accuses_innocents_bears_the_dagger_in_every_table(rows: pd.DataFrame) -> None:
    made = shown(rows, "matrix_cpu", "cpu")
    assert {"encoders", "removals", "calibration", "cells", "fidelity", "verdicts"} <= {
        table.name.removeprefix("matrix_cpu_") for table in made.tables
    }
    for table in made.tables:
        column = table.heads.index("scheme")
        names = {line[column] for line in table.texts()}
        assert {name for name in names if name.endswith(DAGGER)} == {f"uchida{DAGGER}"}, table.name
        assert f"{DAGGER} accuses innocents more often than alpha" in table.note
        assert "uchida in matrix/encoders by weights" in table.note
        assert set(table.frame["scheme"]) & {"uchida"} == {"uchida"}  # the CSV keeps the plain name
    assert any(DAGGER in fact for fact in made.facts)


def test_the_choice_follows_the_rule(found: pd.DataFrame, rows: pd.DataFrame, guilty: dict) -> None:
    made = {c.owner: c for c in choice.choices(found, rows, guilty)}
    assert list(made) == ["weights", "features", "logits", "labels"]
    assert made["weights"].ranked["scheme"].tolist() == ["wpe", "sslguard"]  # 2 of 3 against 1 of 3
    accused, unfound = made["weights"].left_out.values()
    assert (accused, unfound) == (("uchida",), ("lost",))
    assert list(made["features"].left_out.values()) == [("lost",)]
    assert made["labels"].ranked[["scheme", "survived", "decided"]].to_numpy().tolist() == [["wpe", 0, 3]]
    text = choice.paragraph(list(made.values()), "cpu")
    assert "- encoders, by weights: wpe survives 2 of 3 attacks and costs 1.0 points; finetune, 10 epochs all, " in text
    assert "removes it for 50 % of training the host and 1.0 points of utility. Next: sslguard, 1 of 3 attacks" in text
    assert "Left out, since innocents are accused too often: uchida; since it is not found: lost." in text
    assert choice.paragraph([], "cpu") == ""


def test_among_equals_the_one_that_costs_less_utility_is_chosen(rows: pd.DataFrame) -> None:
    twin = rows[rows["scheme"] == "sslguard"].assign(scheme="aaa")
    dearer = twin["value"].where(~((twin["metric"] == "accuracy") & (twin["attack"] == "none")), twin["value"] - 0.01)
    both = pd.concat([rows, twin.assign(value=dearer)], ignore_index=True)
    (first, *_) = [c for c in choice.choices(removal.cells(both), both, {}) if c.owner == "features"]
    assert first.ranked["scheme"].tolist() == ["wpe", "sslguard", "aaa"]


def test_a_mark_that_spoils_its_host_is_no_choice(rows: pd.DataFrame) -> None:
    clean = (rows["scheme"] == "wpe") & (rows["metric"] == "accuracy") & (rows["attack"] == "none")
    dear = rows.assign(value=rows["value"].where(~clean, 0.84))
    (first, *_) = choice.choices(removal.cells(dear), dear, {})
    assert first.ranked["scheme"].tolist() == ["uchida", "sslguard"]
    assert first.left_out["since the model loses too much"] == ("wpe (6.0 points)",)


def test_what_was_not_measured_speaks_against_a_scheme(rows: pd.DataFrame) -> None:
    unasked = rows[~((rows["scheme"] == "wpe") & (rows["metric"] == "fpr"))]
    (first, *_) = choice.choices(removal.cells(unasked), unasked, {})
    assert first.left_out["since no innocent was asked by fresh keys"] == ("wpe",)
    unpaired = rows[rows["suspect"] != "original"]
    (first, *_) = choice.choices(removal.cells(unpaired), unpaired, {})
    assert "wpe" in first.left_out["since what it costs was not measured"]
    assert first.ranked.empty


def test_a_cheap_opening_comes_before_a_dear_removal(tmp_path: Path) -> None:
    patched = Row(**PLACE, scheme="s", suspect="marked", metric="unlocked_accuracy", unit="patch", value=0.86)
    made = [patched, Row(**PLACE, scheme="none", suspect="original", metric="seconds", value=100.0), *judged(True, 0.1)]
    for strength, found_, seconds in ((0.5, True, 1.0), (0.9, False, 90.0)):
        at = {**PRUNED, "strength": strength}
        made += [
            *judged(found_, 0.85, **at),
            Row(**PLACE, **at, scheme="s", suspect="marked", metric="seconds", value=seconds),
        ]
    (cell,) = removal.cells(frame(tmp_path, made)).itertuples()
    assert (cell.state, cell.strength, cell.opened) == ("opened", 0.5, 1)


def test_hours_are_those_of_the_stages_behind_the_rows(tmp_path: Path) -> None:
    place = {**PLACE, "scheme": "s", "suspect": "marked", "device": "cpu"}
    task = {"task": "linear_probe", "downstream": "a"}
    rows = [
        Row(
            **{**place, "scheme": "none", "suspect": "original"}, metric="seconds", value=9, run="a" * 12, wall_s=100.0
        ),
        Row(**place, metric="seconds", value=9, run="b" * 12, wall_s=50.0),
        Row(**place, **PRUNED, metric="seconds", value=9, run="c" * 12, wall_s=20.0),
        Row(**place, **PRUNED, metric="attacker_images", value=9, run="c" * 12, wall_s=20.0),
        *(Row(**place, **task, metric=m, value=0.5, run="d" * 12, wall_s=10.0) for m in ("accuracy", "knn_accuracy")),
        *(Row(**place, metric=m, value=0.5, access="features", run="e" * 12, wall_s=5.0) for m in ("p_value", "wsr")),
        Row(**place, metric="forged_p", value=0.5, unit="innocent, features, computed", run="f" * 12, wall_s=15.0),
        Row(**place, metric="alpha", value=0.01),
    ]
    spent = hours.spent(frame(tmp_path, rows))
    assert spent[["kind", "stages", "seconds", "share"]].to_numpy().tolist() == [
        [kind, 1, seconds, pytest.approx(seconds / 200)]
        for kind, seconds in zip(hours.KINDS, (100.0, 50.0, 20.0, 10.0, 5.0, 15.0), strict=True)
    ]


def test_readme_has_the_choice_only_where_there_is_a_matrix(tmp_path: Path) -> None:
    results = tmp_path / "results"

    def block(rows: list[Row]) -> str:
        merge(results / "runs.csv", rows)
        found = papers(results, tmp_path / "experiments")
        return page.fill("<!-- report:matrix -->\nold\n<!-- /report -->", page.blocks(found, "results"))

    assert (
        block(list(wpe_rows("cpu", (0,), ("simclr",), ("linear_probe",)))) == "<!-- report:matrix -->\n<!-- /report -->"
    )
    assert "Which mark when" not in block(list(matrix_rows(scale="smoke")))  # smoke proves that the code runs
    assert block(list(matrix_rows())).startswith("<!-- report:matrix -->\n## Which mark when\n")


def test_figures_are_drawn_and_name_the_dagger(found: pd.DataFrame, rows: pd.DataFrame, guilty: dict) -> None:
    drawn = {picture.name: picture for picture in pictures(found, rows, guilty, "m")}
    assert set(drawn) >= {"m_encoders_heatmap", "m_encoders_pareto", "m_curve_encoders_prune_fraction_global"}
    for name in ("m_encoders_heatmap", "m_encoders_pareto", "m_curve_encoders_extract_queries_cosine_net"):
        texts = " ".join(ElementTree.fromstring(drawn[name].svg).itertext())
        assert f"uchida{DAGGER}" in texts
        assert f"wpe{DAGGER}" not in texts
    heat = " ".join(ElementTree.fromstring(drawn["m_encoders_heatmap"].svg).itertext())
    assert "kept" in heat
    assert "n/a" in heat
    assert "<image" not in drawn["m_encoders_heatmap"].svg.decode()  # a page needs nothing else


def test_impossible_rows_change_no_other_table(tmp_path: Path) -> None:
    rows = list(wpe_rows("cpu", (0,), ("simclr",), ("linear_probe",)))
    refused = Row(
        experiment="wpe/main",
        paper="wpe",
        scheme="wpe",
        scale="cpu",
        attack="invert",
        unit="no",
        metric="not_applicable",
        value=1,
    )
    made = []
    for part, more in (("without", []), ("with", [refused])):
        merge(tmp_path / part / "results" / "runs.csv", [*rows, *more])
        (paper,) = papers(tmp_path / part / "results", tmp_path / "experiments")
        made.append([(table.name, table.note, table.texts()) for table in paper.sections[0].tables])
    assert made[0] == made[1]
