"""Planning: a sweep of thousands of stages against a store as large, and a finished experiment run again."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.measure import Run, Spread, interleave, measured, peak, ratio, say, seconds
from hallmark.composition import compose, fingerprinter
from hallmark.stages.graph import Stage
from hallmark.stages.manifest import MANIFEST
from hallmark.stages.plan import plan
from hallmark.stages.runner import Line, survey
from hallmark.stages.store import Store

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sweep:
    """Seconds to plan ``stages`` stages, which are ``experiments`` seeds of one experiment.

    ``planning_seconds`` is the sum of ``graph_seconds``, from configurations to stages with their keys, and
    ``survey_full_seconds``, the look-up in a store of ``entries`` finished stages; ``survey_over_graph`` compares them.
    ``finished_seconds`` is for one finished experiment, from its name to the finding that nothing is to be run.
    ``over_stages`` is planning over the number of stages, against the same store.
    """

    experiment: str
    experiments: int
    stages: int
    entries: int
    planning_seconds: Spread
    graph_seconds: Spread
    survey_full_seconds: Spread
    survey_empty_seconds: Spread
    survey_over_graph: Spread
    finished_stages: int
    finished_seconds: Spread
    over_stages: list["Point"]


@dataclass(frozen=True)
class Point:
    """One point of the curve: building the graph and looking it up."""

    stages: int
    seconds: Spread
    peak_mib: float


def compare(experiment: str, stages: int, repeats: int) -> Sweep:
    """Plan against a store fabricated in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        overrides = [f"experiment={experiment}", "scale=smoke", f"store={root / 'full'}"]
        config = compose(overrides)
        graph = partial(_graph, config, stages)
        planned = graph()  # the first one imports what planning needs
        say(f"sweep: {len(planned)} stages of {experiment}")
        full, empty = Store(root / "full"), Store(root / "empty")
        fabricate(full, planned)
        works: dict[str, tuple[Callable[[], Any], int]] = {
            "graph": (graph, len(planned)),
            "survey, full store": (partial(survey, planned, full), len(planned)),
            "survey, empty store": (partial(survey, planned, empty), len(planned)),
            "finished experiment": (partial(rerun, overrides), len(_stages(config, 0))),
        }
        alternatives: dict[str, Callable[[], Run]] = {
            name: partial(measured, work, units, CPU) for name, (work, units) in works.items()
        }
        runs = interleave(alternatives, repeats)
        first = runs["finished experiment"][0].result
        built, looked_up = runs["graph"], runs["survey, full store"]
        say("sweep: number of stages")
        over_stages = _curve(config, full, sorted({max(1, int(stages * share)) for share in (0.1, 0.3, 1)}), repeats)
        return Sweep(
            experiment=experiment,
            experiments=-(-stages // len(first)),
            stages=len(planned),
            entries=len(full.keys()),
            planning_seconds=Spread.of([a.seconds + b.seconds for a, b in zip(built, looked_up, strict=True)]),
            graph_seconds=seconds(built),
            survey_full_seconds=seconds(looked_up),
            survey_empty_seconds=seconds(runs["survey, empty store"]),
            survey_over_graph=ratio(built, looked_up),  # of rates, so the other way round than of seconds
            finished_stages=sum(line.hit for line in first),
            finished_seconds=seconds(runs["finished experiment"]),
            over_stages=over_stages,
        )


def _curve(config: dict[str, Any], store: Store, counts: Sequence[int], repeats: int) -> list[Point]:
    works: dict[str, Callable[[], Run]] = {
        f"{count} stages": partial(measured, partial(_planned, config, store, count), count, CPU) for count in counts
    }
    runs = interleave(works, repeats).values()
    return [Point(len(run[0].result), seconds(run), peak(run)) for run in runs]


def _planned(config: dict[str, Any], store: Store, count: int) -> list[Line]:
    return survey(_graph(config, count), store)


def _stages(config: dict[str, Any], seed: int) -> list[Stage]:
    return plan({**config, "seed": seed}, fingerprinter(config)).stages


def _graph(config: dict[str, Any], count: int) -> list[Stage]:
    """The stages of as many seeds as it takes to have ``count`` of them; the last seed is planned whole."""
    stages: list[Stage] = []
    seed = 0
    while len(stages) < count:
        stages += _stages(config, seed)
        seed += 1
    return stages


def fabricate(store: Store, stages: Sequence[Stage]) -> None:
    """Entries that a survey takes for finished stages: a manifest, and no files."""
    for stage in stages:
        folder = store.root / "objects" / stage.key
        folder.mkdir(parents=True)
        manifest = {"identity": stage.identity, "files": {}, "seconds": 1.0, "created_by": {}}
        (folder / MANIFEST).write_text(json.dumps(manifest))


def rerun(overrides: Sequence[str]) -> list[Line]:
    """What the command does before it reads the results of a finished experiment."""
    config = compose(overrides)
    return survey(_stages(config, config["seed"]), Store(Path(config["store"])))
