"""Running what is missing of an experiment."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from hallmark.stages.cost import component
from hallmark.stages.graph import Stage
from hallmark.stages.store import LockedError, Store
from hallmark.training_settings import Deadline

WORK_PER_SECOND = 6000.0
"""Images a second through ``resnet_small`` forward on two cores, for estimates before the store has a history."""

OVERHEAD = 0.3
"""Seconds that a stage takes beside, such as for loading and storing models."""

PATIENCE = 0.5
"""Seconds between looks at the store while other processes are at work on all that could be done."""

Say = Callable[[str], None]
Group = tuple[str, ...]
"""Stages that are alike: by kind and component, by kind, or all of them."""


@dataclass(frozen=True)
class Line:
    """One line of a plan: a stage, whether its result is there, and the seconds it may take."""

    stage: Stage
    hit: bool
    seconds: float


class _Outcome(Enum):
    """What became of one stage."""

    RAN = auto()
    FOUND = auto()
    LATER = auto()


def survey(stages: Iterable[Stage], store: Store) -> list[Line]:
    """What a run would do.

    Args:
        stages: Stages in order.
        store: Where finished stages are.

    Returns:
        One line a stage; hits cost nothing.  Estimates at :data:`WORK_PER_SECOND` are corrected by what finished stages
        took: those of the same kind and component if there are any, else of the same kind, else all.
    """
    stages = list(stages)
    finished = store.keys()
    taken: dict[Group, float] = {}
    expected: dict[Group, float] = {}
    for stage in stages:
        if stage.key in finished:
            seconds = store.manifest(stage.key).seconds
            for group in _groups(stage):
                taken[group] = taken.get(group, 0.0) + seconds
                expected[group] = expected.get(group, 0.0) + _expected(stage)

    def seconds_of(stage: Stage) -> float:
        known = next((group for group in _groups(stage) if group in taken), None)
        return _expected(stage) * (1.0 if known is None else taken[known] / expected[known])

    return [Line(s, s.key in finished, 0.0 if s.key in finished else seconds_of(s)) for s in stages]


def _expected(stage: Stage) -> float:
    """Seconds of a stage on a machine that nothing is known about."""
    return OVERHEAD + stage.work / WORK_PER_SECOND


def _groups(stage: Stage) -> tuple[Group, ...]:
    """Which stages a stage is like, from those most like it to all."""
    return (stage.kind, component(stage)), (stage.kind,), ()


def execute(
    lines: Iterable[Line], store: Store, work: Callable[[Stage, Path], None], deadline: Deadline, say: Say
) -> int:
    """Run every stage that is missing; each as soon as its inputs are there and no other process is at work on it.

    Any number of processes may run the same experiment, or others that share stages with it, in one store: they divide
    the stages among themselves, and every stage is done once.

    Args:
        lines: The plan, inputs before what needs them.
        store: Where results go.
        work: Does a stage's work in a folder.
        deadline: Checked before every stage; inside a stage the trainer checks it.
        say: Receives one line before and after each stage.

    Returns:
        Number of stages that this process ran.

    Raises:
        BudgetExhausted: The budget is spent; finished stages are kept.
    """
    waiting = [line for line in lines if not line.hit]
    total, done, ran = len(waiting), 0, 0
    while waiting:
        later = []
        for line in waiting:
            deadline.check()
            ready = all(store.has(stage.key) for stage in line.stage.inputs.values())
            outcome = _attempt(line, store, work, say, f"[{done + 1}/{total}]") if ready else _Outcome.LATER
            ran += outcome is _Outcome.RAN
            if outcome is _Outcome.LATER:
                later.append(line)
            else:
                done += 1
        if len(later) == len(waiting):
            time.sleep(PATIENCE)
        waiting = later
    return ran


def _attempt(line: Line, store: Store, work: Callable[[Stage, Path], None], say: Say, number: str) -> _Outcome:
    """Run a stage unless another process is at work on it."""
    stage, entered = line.stage, False
    try:
        with store.writing(stage.key, stage.identity, timeout=0) as folder:
            entered, started = True, time.monotonic()
            if folder is None:
                say(f"{number} {stage.kind:8} {stage.label}: done meanwhile by another process")
                return _Outcome.FOUND
            say(f"{number} {stage.kind:8} {stage.label} (about {duration(line.seconds)})")
            work(stage, folder)
    except LockedError:
        if entered:
            raise
        return _Outcome.LATER
    say(f"        took {duration(time.monotonic() - started)}")
    return _Outcome.RAN


def duration(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``4 min``, ``1.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
