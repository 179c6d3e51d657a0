"""What the report says of marks in encoders: responses beside their controls, and marks that survive theft."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hallmark.report.responses import responses
from hallmark.report.responses import sentences as response_sentences
from hallmark.report.rows import Row, merge, read
from hallmark.report.survival import extraction
from hallmark.report.survival import sentences as survival_sentences

ROW = Row(
    experiment="e", paper="p", scheme="awencoder", host="net", pretrain="simclr", scale="cpu", access="features",
    suspect="original", metric="response", value=0.4,
)  # fmt: skip
ALPHA = Row(experiment="e", paper="p", scheme="wpe", scale="cpu", metric="alpha", value=0.01)


def frame(tmp_path: Path, rows: list[Row]) -> pd.DataFrame:
    merge(tmp_path / "runs.csv", rows)
    return read(tmp_path / "runs.csv")


def responding(suspect: str, share: float, noise: float, **changes: object) -> list[Row]:
    row = replace(ROW, suspect=suspect, **changes)
    return [replace(row, value=share), replace(row, metric="response_noise", value=noise)]


def test_the_clean_originals_response_is_said(tmp_path: Path) -> None:
    rows = [
        *responding("original", 0.4, 0.01),
        *responding("original", 0.6, 0.03, pretrain="byol"),
        *responding("marked", 0.95, 0.02),
        *responding("marked", 0.1, 0.02, attack="prune", strength=0.9),  # no response of the mark as it was made
        replace(ROW, scheme="stain_lock", value=7.0, suspect="marked"),  # answers another question
    ]
    found = response_sentences(frame(tmp_path, rows))
    assert found == [
        "By features the clean original goes 50 % of the way to the key image and the marked model 95 %; under random "
        "noise of the same size the original goes 2 %."
    ]


def test_responses_stand_beside_noise(tmp_path: Path) -> None:
    rows = responding("original", 0.4, -0.01)
    cosines = {"own_cosine": 0.5, "key_cosine_clean": 0.2, "key_cosine": 0.7, "perturbation_linf": 8 / 255}
    rows += [replace(ROW, metric=metric, value=value) for metric, value in cosines.items()]
    rows += responding("innocent", 0.2, 0.0, host="net other seed")
    rows += responding("innocent", 0.3, 0.0, host="net third seed")
    table = responses(frame(tmp_path, rows), "t")
    lines = {line[0]: line[1:] for line in table.texts()}
    assert lines["original"] == ["40.0", "−1.0", "8", "0.50", "0.20", "0.70", "1"]
    assert lines["innocent"][:2] == ["25.0", "0.0"]
    assert lines["innocent"][-1] == "2"


@pytest.mark.parametrize("rows", [[], [ALPHA], [ALPHA, replace(ROW, metric="accuracy", value=0.5, access="")]])
def test_nothing_is_said_of_what_was_not_measured(rows: list[Row], tmp_path: Path) -> None:
    found = frame(tmp_path, [ALPHA, *rows])
    assert response_sentences(found) == survival_sentences(found) == []
    assert len(responses(found, "t").frame) == len(extraction(found, "t").frame) == 0


def verdict(scheme: str, p: float, accuracy: float, access: str = "features", **changes: object) -> list[Row]:
    """A judged encoder and the accuracy of its downstream model."""
    row = replace(ROW, scheme=scheme, suspect="marked", access=access, **changes)
    judged = [replace(row, metric="p_value", value=p), replace(row, metric="detected", value=float(p <= 0.01))]
    worth = replace(row, access="", downstream="a", task="linear_probe", metric="accuracy", value=accuracy)
    return [*judged, replace(row, metric="statistic", value=1 - p), worth]


def theft(queries: int, seconds: float, unit: str = "queries cosine net") -> dict[str, object]:
    return {"attack": "extract", "unit": unit, "strength": float(queries)}


def paid(scheme: str, queries: int, seconds: float) -> list[Row]:
    row = replace(ROW, scheme=scheme, suspect="marked", access="", **theft(queries, seconds))
    return [replace(row, metric="queries", value=queries), replace(row, metric="seconds", value=seconds)]


@pytest.fixture
def stolen(tmp_path: Path) -> pd.DataFrame:
    rows = [ALPHA, *verdict("wpe", 0.01, 0.80), *verdict("other", 0.01, 0.80, access="weights")]
    outcomes = {1000: (0.5, 0.60), 5000: (0.5, 0.77), 20000: (0.01, 0.79)}  # ruined, removed, kept
    for queries, (p, accuracy) in outcomes.items():
        rows += verdict("wpe", p, accuracy, **theft(queries, 12.0)) + paid("wpe", queries, 12.0)
    rows += verdict("other", 0.9, 0.5, access="weights", **theft(1000, 3.0)) + paid("other", 1000, 3.0)
    return frame(tmp_path, rows)


def test_which_mark_survives_is_said(stolen: pd.DataFrame) -> None:
    assert survival_sentences(stolen) == [
        "By weights, other survives 0 of 1 extractions; the others ruin the encoder.",
        "By features, wpe survives 1 of 3 extractions; the cheapest that removes it buys 5000 answers (queries cosine "
        "net), trains for 12 s and changes accuracy by −3.0 points.",
    ]


def test_each_theft_has_utility_evidence_p_and_cost(stolen: pd.DataFrame) -> None:
    table = extraction(stolen, "t")
    assert table.heads[-4:] == ["evidence", "p-value", "queries", "theft / s"]
    lines = [line for line in table.texts() if line[0] == "wpe"]
    assert [line[-9:] for line in lines] == [
        ["0/1", "0", "1", "60.0", "20.0", "0.500", "0.5", "1000", "12"],
        ["0/1", "1", "0", "77.0", "3.0", "0.500", "0.5", "5000", "12"],
        ["1/1", "0", "0", "79.0", "1.0", "0.990", "0.01", "20000", "12"],
    ]
