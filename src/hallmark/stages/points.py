"""From finished stages to the points of pictures: what is drawn point by point, and would be too much for the rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from hallmark.stages.experiment import Detection, Experiment, Histogram, Subject
from hallmark.stages.results import Result

Point = dict[str, object]


def points(experiment: Experiment, result: Result) -> Iterator[Point]:
    """Every point an experiment yields at one seed and scale; see :mod:`hallmark.report.features` for their columns.

    Args:
        experiment: The plan; all its stages are finished.
        result: Reads a stage's figures.
    """
    config = experiment.config
    shared = {"experiment": config["name"], "seed": config["seed"], "scale": config["scale"]["name"]}
    for subject in experiment.subjects:
        if subject.attack == "none" and subject.suspect in ("marked", "original"):
            for kind, places in result(subject.verify).get("projection", {}).items():
                about = _about(subject, subject.verify.key) | {"suspect": subject.suspect, "kind": kind}
                yield from _points(shared | about, places)
    for histogram in experiment.histograms:
        about = _about(histogram, histogram.stage.key)
        for kind, curves in result(histogram.stage)["histograms"].items():
            for suspect, curve in curves.items():
                yield from _points(shared | about | {"suspect": suspect, "kind": kind}, curve)
    for detection in experiment.detections:
        about = _about(detection, detection.stage.key) | {"unit": detection.unit, "kind": "score"}
        scores = result(detection.stage)["scores"]
        for suspect, kind in (("marked", "marked"), ("innocent", "unmarked")):
            numbered = [[score, number] for number, score in enumerate(scores[kind])]
            yield from _points(shared | about | {"suspect": suspect}, numbered)


def _about(what: Subject | Histogram | Detection, key: str) -> Point:
    scheme, variant = what.mark.scheme.name, what.mark.variant
    return {"run": key[:12], "scheme": scheme, "variant": variant, "pretrain": what.pretrain, "unit": ""}


def _points(about: Mapping[str, Any], places: list[list[float]]) -> Iterator[Point]:
    for x, y in places:
        yield {**about, "x": x, "y": y}
