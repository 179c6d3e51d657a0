"""From finished stages to result rows."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hallmark import stats
from hallmark.report.rows import Row
from hallmark.stages.graph import Stage
from hallmark.stages.plan import Experiment, Subject

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
        found += _of_subject(subject, result, experiment.scheme, shared)
    found += _false_positives(experiment, result, shared)
    return found


_DECLARED = ("alpha", "fpr_alpha", "tolerance")
"""What the experiment fixed before it ran."""


def _of_subject(subject: Subject, result: Result, scheme: str, shared: Mapping[str, Any]) -> Iterator[Row]:
    common = {
        **shared,
        "host": subject.host,
        "pretrain": subject.pretrain,
        "attack": subject.attack,
        "strength": subject.strength,
        "unit": subject.unit,
        "suspect": subject.suspect,
    }
    carried = scheme if subject.suspect == "marked" else "none"
    made = result(subject.stage)
    yield Row(
        **common, **_origin(subject.stage, made), scheme=carried, metric="seconds", value=made["seconds"],
    )  # fmt: skip
    for (downstream, task), stage in subject.transfers.items():
        content = result(stage)
        for figure in content["measurements"]:
            interval = stats.wilson(figure["count"], figure["n"]) if figure["n"] else None
            yield Row(
                **common, **_origin(stage, content), scheme=carried, downstream=downstream, task=task,
                metric=figure["metric"], value=figure["value"], count=figure["count"], n=figure["n"],
                ci_low=interval.low if interval else None, ci_high=interval.high if interval else None,
            )  # fmt: skip
    content = result(subject.verify)
    for judgement in content["judgements"]:
        place = {name: judgement[name] for name in ("access", "downstream", "task")}
        row = {**common, **_origin(subject.verify, content), **place, "scheme": scheme}
        for metric in ("p_value", "p_min"):
            yield Row(**row, metric=metric, value=judgement[metric])
        yield Row(**row, metric="detected", value=float(judgement["detected"]))
        if judgement["trials"]:
            yield _share(row, "wsr", judgement["matches"], judgement["trials"])
        if judgement["foreign"][1] and subject.suspect in ("marked", "original"):
            yield _share(row, "foreign_flip", *judgement["foreign"])
        if subject.suspect == "marked" and subject.attack == "none" and judgement["null_p"]:
            wrong = {**row, "suspect": "wrong_key"}
            first = judgement["null_p"][0]  # one key fixed beforehand; the rate over all of them is in the fpr rows
            yield Row(**wrong, metric="p_value", value=first)
            yield Row(**wrong, metric="p_min", value=judgement["p_min"])


def points(experiment: Experiment, result: Result) -> Iterator[dict[str, object]]:
    """Points of the feature-space pictures: every encoder that nobody attacked, marked and original."""
    for subject in experiment.subjects:
        if subject.attack == "none" and subject.suspect in ("marked", "original"):
            for kind, places in result(subject.verify).get("projection", {}).items():
                for x, y in places:
                    yield {
                        "run": subject.verify.key[:12],
                        "experiment": experiment.config["name"],
                        "scheme": experiment.scheme,
                        "pretrain": subject.pretrain,
                        "seed": experiment.config["seed"],
                        "scale": experiment.config["scale"]["name"],
                        "suspect": subject.suspect,
                        "kind": kind,
                        "label": "",
                        "x": x,
                        "y": y,
                    }


def _false_positives(experiment: Experiment, result: Result, shared: Mapping[str, Any]) -> Iterator[Row]:
    """Share of fresh keys that pass, by access and kind of suspect, over all suspects of the kind.

    All trials on one suspect share its decoys, and those on its downstream models their keys too, so the interval
    counts each suspect as one cluster.
    """
    level = experiment.config["fpr_alpha"]
    trials: dict[tuple[str, str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    origin: dict[str, Any] = {}
    for subject in experiment.subjects:
        content = result(subject.verify)
        origin = _origin(subject.verify, content)
        suspect = {"marked": "wrong_key", "original": "innocent"}.get(subject.suspect, subject.suspect)
        for judgement in content["judgements"]:
            if judgement["null_p"]:
                place = (suspect, judgement["access"], judgement["task"])
                trials[place][subject.verify.key] += [p <= level for p in judgement["null_p"]]
    for (suspect, access, task), clusters in trials.items():
        run = hashlib.sha256("".join(clusters).encode()).hexdigest()[:12]
        row = {
            **shared, **origin, "run": run, "wall_s": None, "scheme": experiment.scheme,
            "suspect": suspect, "access": access, "task": task,
        }  # fmt: skip
        rate = stats.clustered([sum(c) for c in clusters.values()], [len(c) for c in clusters.values()])
        yield Row(**row, metric="fpr", value=rate.rate, count=rate.count, n=rate.n, ci_low=rate.low, ci_high=rate.high)


def _share(row: Mapping[str, Any], metric: str, count: int, n: int) -> Row:
    """A share of queries; without an interval, since queries of one trigger succeed or fail together."""
    return Row(**row, metric=metric, value=count / n, count=count, n=n)


def _origin(stage: Stage, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": stage.key[:12],
        "wall_s": content["seconds"],
        "device": content["device"],
        "commit": content["commit"],
    }
