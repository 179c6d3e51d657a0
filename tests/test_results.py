"""Rows of what finished stages left: what a theft cost, and the evidence behind verdicts."""

from typing import Any

import pytest

from hallmark.composition import compose
from hallmark.core.attack import KNOWLEDGE
from hallmark.report.rows import Row
from hallmark.stages.graph import Stage
from hallmark.stages.plan import plan
from hallmark.stages.results import rows
from smoke import TINY

COUNTED_IMAGES = 127
PLACE = {
    "downstream": "", "task": "", "foreign": [0, 0], "null_p": [], "figures": {}, "detected": False, "p_value": 0.4,
    "p_min": 0.02,
}  # fmt: skip
COUNTED = {**PLACE, "access": "labels", "matches": 3, "trials": 12, "statistic": 3.0}
SCORED = {
    **PLACE,
    "access": "features",
    "matches": None,
    "trials": None,
    "statistic": 0.25,
    "p_value": 0.4,
    "p_min": 0.02,
}
UNREAD = {**SCORED, "access": "logits", "statistic": 0.0, "p_value": 1.0, "p_min": 1.0}
SILENT = {**SCORED, "access": "weights", "statistic": float("nan")}


def left(stage: Stage) -> dict[str, Any]:
    made: dict[str, Any] = {"seconds": 2.0, "device": "d", "commit": "c"}
    if stage.kind == "attack":
        made["queries"] = 64 if "extract" in stage.label else 0
        made |= {"images": COUNTED_IMAGES} if "overwrite" in stage.label else {}
    if stage.kind == "transfer":
        made["measurements"] = []
    if stage.kind == "verify":
        made["judgements"] = [COUNTED, SCORED, UNREAD, SILENT]
    return made


@pytest.fixture(scope="module")
def found() -> list[Row]:
    added = ["+attack@attacks.extract=extract", "attacks.extract.strengths=[64]", "+attack@attacks.overwrite=overwrite"]
    return rows(plan(compose([*TINY, *added]), lambda name: name), left)


def test_a_theft_says_what_it_asked_and_weights_ask_nothing(found: list[Row]) -> None:
    asked = [row for row in found if row.metric == "queries"]
    assert {(row.attack, row.suspect, row.scheme, row.value) for row in asked} == {
        ("extract", "marked", "wpe", 64), ("extract", "attacked_innocent", "none", 64)
    }  # fmt: skip
    assert {row.attack for row in found if row.metric == "seconds"} == {
        *("none", "extract", "finetune", "prune", "overwrite")
    }


def test_what_attackers_had_is_said_of_every_theft(found: list[Row]) -> None:
    """A third of 384 images are the attacker's; a stage that counted what it looked at knows better than the plan."""
    had = [row for row in found if row.metric == "attacker_images"]
    assert {(row.attack, row.suspect, row.scheme, row.value) for row in had} == {
        (attack, suspect, scheme, images)
        for attack, images in {"extract": 64, "finetune": 128, "prune": 0, "overwrite": COUNTED_IMAGES}.items()
        for suspect, scheme in (("marked", "wpe"), ("attacked_innocent", "none"))
    }
    thefts = {(row.attack, row.unit, row.strength, row.suspect) for row in found if row.metric == "seconds"}
    assert len(had) == len({place for place in thefts if place[0] != "none"})


def test_what_attackers_know_is_said_once_for_each(found: list[Row]) -> None:
    rows = [row for row in found if row.metric.startswith("knows_")]
    known = {(row.attack, row.metric): row.value for row in rows}
    assert len(known) == len(rows)
    naive = [(attack, f"knows_{what}") for attack in ("extract", "finetune", "prune") for what in KNOWLEDGE]
    assert {place: known.pop(place) for place in naive} == dict.fromkeys(naive, 0.0)
    assert known == {
        ("overwrite", "knows_scheme"): 1.0, ("overwrite", "knows_layer"): 0.0, ("overwrite", "knows_data"): 0.0
    }  # fmt: skip
    # of the attack at any strength, and about no suspect
    assert {(row.suspect, row.strength, row.scheme) for row in rows} == {("", 0.0, "wpe")}
    assert all(row.unit for row in rows)


def test_evidence_is_a_share_or_a_mean_difference(found: list[Row]) -> None:
    marked = [row for row in found if row.suspect == "marked" and row.attack == "none"]
    evidence = {row.access: (row.metric, row.value) for row in marked if row.metric in ("wsr", "ber", "statistic")}
    assert evidence == {"labels": ("wsr", 0.25), "features": ("statistic", 0.25)}  # nothing of what could not be read
    assert {row.access for row in marked if row.metric == "p_value"} == {"labels", "features", "logits", "weights"}
