"""From finished stages to result rows."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hallmark import stats
from hallmark.components import instantiate
from hallmark.core import Access, Attack
from hallmark.core.attack import KNOWLEDGE
from hallmark.report.rows import Row
from hallmark.stages.experiment import Detection, Experiment, Mark, Subject, Surveyed
from hallmark.stages.graph import Stage
from hallmark.stages.manifest import canonical

Result = Callable[[Stage], Mapping[str, Any]]
"""What a finished stage left in its result file."""


def rows(experiment: Experiment, result: Result) -> list[Row]:
    """Every row an experiment yields at one seed and scale.

    Args:
        experiment: The plan; all its stages are finished.
        result: Reads a stage's figures.
    """
    config = experiment.config
    shared = {
        "experiment": config["name"],
        "paper": config["paper"],
        "seed": config["seed"],
        "scale": config["scale"]["name"],
        "dataset": experiment.dataset,
    }
    found = [Row(metric=m, value=config[m], scheme=experiment.scheme, **shared) for m in _DECLARED]
    for subject in experiment.subjects:
        found += _of_subject(subject, result, shared)
    found += _of_attackers(experiment, shared)
    for detection in experiment.detections:
        found += _of_detection(detection, config["fpr_alpha"], result, shared)
    for survey in experiment.surveys:
        found += _of_survey(survey, result, shared)
    found += _false_positives(experiment, result, shared)
    found += [
        Row(
            **shared, scheme=cell.mark.scheme.name, variant=cell.mark.variant, host=config["host"]["backbone"],
            attack=cell.attack, unit=cell.reason, suspect="marked", metric="not_applicable", value=1,
        )
        for cell in experiment.unfit
    ]  # fmt: skip
    return found


_DECLARED = ("alpha", "fpr_alpha", "tolerance")
"""What the experiment fixed before it ran."""


def _of_subject(subject: Subject, result: Result, shared: Mapping[str, Any]) -> Iterator[Row]:
    common = {
        **shared,
        "host": subject.host,
        "pretrain": subject.pretrain,
        "attack": subject.attack,
        "strength": subject.strength,
        "unit": subject.unit,
        "suspect": subject.suspect,
    }
    judged_by: dict[str, Any] = {"scheme": subject.mark.scheme.name, "variant": subject.mark.variant}
    carried = judged_by if subject.suspect == "marked" else {"scheme": "none"}
    made = result(subject.stage)
    yield Row(
        **common, **_origin(subject.stage, made), **carried, metric="seconds", value=made["seconds"],
    )  # fmt: skip
    if made.get("queries"):  # what a thief that sees answers alone has asked; others read weights
        yield Row(
            **common, **_origin(subject.stage, made), **carried, metric="queries", value=made["queries"],
        )  # fmt: skip
    if subject.attack != "none":
        yield Row(
            **common, **_origin(subject.stage, made), **carried, metric="attacker_images",
            value=made.get("images", subject.images),
        )  # fmt: skip
    for (downstream, task), stage in subject.transfers.items():
        content = result(stage)
        for figure in content["measurements"]:
            interval = stats.wilson(figure["count"], figure["n"]) if figure["count"] is not None else None
            yield Row(
                **common, **_origin(stage, content), **carried, downstream=downstream, task=task,
                metric=figure["metric"], value=figure["value"], count=figure["count"], n=figure["n"],
                ci_low=interval.low if interval else None, ci_high=interval.high if interval else None,
            )  # fmt: skip
    content = result(subject.verify)
    for judgement in content["judgements"]:
        place = {name: judgement[name] for name in ("access", "downstream", "task")}
        row = {**common, **_origin(subject.verify, content), **place, **judged_by}
        for metric in ("p_value", "p_min"):
            yield Row(**row, metric=metric, value=judgement[metric])
        yield Row(**row, metric="detected", value=float(judgement["detected"]))
        for metric, value in judgement.get("figures", {}).items():
            yield Row(**row, metric=metric, value=value)
        if judgement["trials"]:
            wrong_bits = judgement["trials"] - judgement["matches"]
            metric, count = (
                ("ber", wrong_bits) if judgement["access"].startswith(Access.WEIGHTS) else ("wsr", judgement["matches"])
            )
            yield _share(row, metric, count, judgement["trials"])
        elif judgement["p_min"] < 1 and math.isfinite(judgement["statistic"]):  # of paired scores; 1: nothing was read
            yield Row(**row, metric="statistic", value=judgement["statistic"])
        if judgement["foreign"][1] and subject.suspect in ("marked", "original"):
            yield _share(row, "foreign_flip", *judgement["foreign"])
        if subject.suspect == "marked" and subject.attack == "none" and judgement["null_p"]:
            wrong = {**row, "suspect": "wrong_key"}
            first = judgement["null_p"][0]  # one key fixed beforehand; the rate over all of them is in the fpr rows
            yield Row(**wrong, metric="p_value", value=first)
            yield Row(**wrong, metric="p_min", value=judgement["p_min"])


def _of_attackers(experiment: Experiment, shared: Mapping[str, Any]) -> Iterator[Row]:
    """What each attacker knows beyond the victim, 1 or 0, as ``knows_scheme`` and so on.

    The rows are about the attack at any strength, which is 0 in them, and about no suspect.
    """
    listed = {
        (subject.attack, subject.unit, canonical(subject.stage.config["attack"])): subject.stage.config["attack"]
        for subject in experiment.subjects
        if subject.attack != "none"
    }
    made: dict[tuple[str, str], frozenset[str]] = {}
    for (name, unit, _), settings in listed.items():
        attack: Attack = instantiate(settings, "attack", Attack)
        made[name, unit] = made.get((name, unit), frozenset()) | attack.knows
    for (name, unit), knows in made.items():
        for what in KNOWLEDGE:
            metric, value = f"knows_{what}", float(what in knows)
            yield Row(**shared, scheme=experiment.scheme, attack=name, unit=unit, metric=metric, value=value)


def _of_detection(detection: Detection, level: float, result: Result, shared: Mapping[str, Any]) -> Iterator[Row]:
    """How well a detector tells marked networks from unmarked ones.

    The networks are looked at, not changed: ``attack`` is ``none`` with strength 0, and the detector's name stands in
    ``unit``, where the variant of what was done stands in other rows.  The rows are about the marked suspects, as an
    attacker sees them who holds their weights; the level of ``tpr`` is the experiment's ``fpr_alpha``.
    """
    from hallmark.roc import area, true_positives  # scikit-learn takes a second to import

    content = result(detection.stage)
    marked, unmarked = (content["scores"][kind] for kind in ("marked", "unmarked"))
    row: dict[str, Any] = {
        **shared, **_origin(detection.stage, content), "scheme": detection.mark.scheme.name,
        "variant": detection.mark.variant, "host": detection.host, "pretrain": detection.pretrain,
        "unit": detection.unit, "access": str(Access.WEIGHTS), "suspect": "marked",
    }  # fmt: skip
    auc, rate = area(marked, unmarked), true_positives(marked, unmarked, level)
    n = len(marked) + len(unmarked)
    yield Row(**row, metric="auc", value=auc.value, n=n, ci_low=auc.low, ci_high=auc.high)
    yield Row(**row, metric="tpr", value=rate.rate, count=rate.count, n=rate.n, ci_low=rate.low, ci_high=rate.high)


def _of_survey(survey: Surveyed, result: Result, shared: Mapping[str, Any]) -> Iterator[Row]:
    content = result(survey.stage)
    for reading in content["readings"]:
        low, high = reading["low"], reading["high"]
        if reading["n"] and low is None:
            interval = stats.wilson(reading["count"], reading["n"])
            low, high = interval.low, interval.high
        yield Row(
            **shared, **_origin(survey.stage, content), scheme=survey.scheme,
            variant=" ".join(part for part in (survey.variant, reading["variant"]) if part), host=survey.host,
            pretrain=survey.pretrain, suspect=survey.suspect, unit=reading["unit"], metric=reading["metric"],
            value=reading["value"], count=reading["count"], n=reading["n"], ci_low=low, ci_high=high,
        )  # fmt: skip


def _false_positives(experiment: Experiment, result: Result, shared: Mapping[str, Any]) -> Iterator[Row]:
    """Share of fresh keys that pass, by mark, access and kind of suspect, over all suspects of the kind."""
    level = experiment.config["fpr_alpha"]
    passed: dict[_Place, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    origin: dict[str, Any] = {}
    for subject in experiment.subjects:
        content = result(subject.verify)
        origin = _origin(subject.verify, content)
        suspect = {"marked": "wrong_key", "original": "innocent"}.get(subject.suspect, subject.suspect)
        for judgement in content["judgements"]:
            if judgement["null_p"]:
                place = _Place(subject.mark, suspect, judgement["access"], judgement["task"])
                passed[place][subject.verify.key] += [p <= level for p in judgement["null_p"]]
    for place, suspects in passed.items():
        run = hashlib.sha256("".join(suspects).encode()).hexdigest()[:12]
        row = {
            **shared, **origin, "run": run, "wall_s": None, "scheme": place.mark.scheme.name,
            "variant": place.mark.variant, "suspect": place.suspect, "access": place.access, "task": place.task,
        }  # fmt: skip
        rate = _rate(place.mark, list(suspects.values()))
        yield Row(**row, metric="fpr", value=rate.rate, count=rate.count, n=rate.n, ci_low=rate.low, ci_high=rate.high)


class _Place(NamedTuple):
    mark: Mark
    suspect: str
    access: str
    task: str


def _rate(mark: Mark, suspects: list[list[bool]]) -> stats.Proportion:
    """The rate over all trials on all suspects.

    Under an exact binomial trials are independent.  Ranked trials on one suspect share its decoys, and those on its
    downstream models their keys too, so each suspect is one cluster.
    """
    counts, sizes = [sum(trials) for trials in suspects], [len(trials) for trials in suspects]
    if mark.scheme.chance is not None:
        return stats.clopper_pearson(sum(counts), sum(sizes))
    return stats.clustered(counts, sizes)


def _share(row: Mapping[str, Any], metric: str, count: int, n: int) -> Row:
    """A share of queries or bits; without an interval, since queries of one trigger succeed or fail together."""
    return Row(**row, metric=metric, value=count / n, count=count, n=n)


def _origin(stage: Stage, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": stage.key[:12],
        "wall_s": content["seconds"],
        "device": content["device"],
        "commit": content["commit"],
    }
