"""Running what is missing: several processes on one store, killed ones, held stages, and estimates."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from hallmark.errors import BudgetExhausted, ConfigError
from hallmark.stages import runner
from hallmark.stages.graph import Stage, in_order
from hallmark.stages.runner import OVERHEAD, WORK_PER_SECOND, execute, survey
from hallmark.stages.store import Store
from hallmark.training_settings import Deadline

FORK = get_context("fork")  # a fresh interpreter would take seconds to import torch
PATIENCE = 0.05


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", PATIENCE)


def graph(branches: int = 6) -> list[Stage]:
    """A host, marks in it, attacks on these, and a verdict on all: every stage after its inputs."""
    host = Stage("pretrain", {"n": 0}, label="host")
    marks = [Stage("embed", {"n": n}, {"host": host}, label=f"mark {n}") for n in range(branches)]
    attacked = [Stage("attack", {"n": n}, {"victim": mark}, label=f"attack {n}") for n, mark in enumerate(marks)]
    verdict = Stage("verify", {}, {f"{n}": stage for n, stage in enumerate(attacked)}, label="verdict")
    return in_order([verdict])


class Worker:
    """A stage's work that a process leaves a line of in a common log: who did what, when its inputs were there.

    Args:
        folder: Holds the log and the store.
        seconds: How long a stage takes.
        stuck: Label of a stage that never ends; its checkpoint says who began it.
    """

    def __init__(self, folder: Path, seconds: float = 0.02, stuck: str = "") -> None:
        self.folder, self.seconds, self.stuck = folder, seconds, stuck
        self.store = Store(folder / "store")

    def __call__(self, stage: Stage, work: Path) -> None:
        assert all(self.store.has(source.key) for source in stage.inputs.values())
        checkpoints = work / "checkpoints"
        found = (checkpoints / "begun").read_text() if checkpoints.exists() else ""
        if stage.label == self.stuck:
            checkpoints.mkdir()
            (checkpoints / "begun").write_text(str(os.getpid()))
            time.sleep(60)
        time.sleep(self.seconds)
        (work / "result").write_text(stage.label)
        with (self.folder / "log").open("a") as log:  # one short line: appended as a whole
            log.write(f"{os.getpid()} {stage.key} {found}\n")

    def run(self, stages: list[Stage], said: Callable[[str], None] = lambda _: None) -> int:
        """Do what is missing; returns how many stages this process did."""
        return execute(survey(stages, self.store), self.store, self, Deadline(), said)

    @property
    def log(self) -> list[list[str]]:
        """Process, key, and who had begun the stage before, of every stage done."""
        path = self.folder / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def process(worker: Worker, stages: list[Stage]) -> BaseProcess:
    """A process of its own that runs the stages and ends with status 0."""
    child = FORK.Process(target=worker.run, args=(stages,))
    child.start()
    return child


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def finish(child: BaseProcess) -> int | None:
    child.join(timeout=60)
    return child.exitcode


def test_two_processes_divide_the_stages_and_do_each_once(tmp_path: Path) -> None:
    stages, worker = graph(), Worker(tmp_path, seconds=0.1)
    children = [process(worker, stages) for _ in range(2)]
    assert [finish(child) for child in children] == [0, 0]
    done = [key for _, key, *_ in worker.log]
    assert sorted(done) == sorted(stage.key for stage in stages)
    # a dozen stages of a tenth of a second: one process cannot have done them before the other looked
    assert {int(pid) for pid, *_ in worker.log} == {child.pid for child in children}
    position = {key: place for place, key in enumerate(done)}
    assert all(position[source.key] < position[s.key] for s in stages for source in s.inputs.values())
    assert worker.run(stages) == 0


def test_a_stage_that_another_process_holds_is_left_to_it_while_others_go_on(tmp_path: Path) -> None:
    stages, worker = graph(), Worker(tmp_path)
    held = next(stage for stage in stages if stage.label == "mark 0")
    with worker.store.lock(held.key):
        child = process(worker, stages)
        wait_for(lambda: len(worker.log) == len(stages) - 3)  # all but mark 0, its attack and the verdict
        time.sleep(4 * PATIENCE)
        assert child.is_alive()
        labels = {stage.key: stage.label for stage in stages}
        assert {labels[key] for _, key, *_ in worker.log} == set(labels.values()) - {"mark 0", "attack 0", "verdict"}
    assert finish(child) == 0
    assert len(worker.log) == len(stages)


def test_what_a_killed_process_began_another_goes_on_with(tmp_path: Path) -> None:
    stages = graph()
    doomed = process(Worker(tmp_path, stuck="mark 0"), stages)
    begun = tmp_path / "store" / "work" / next(s.key for s in stages if s.label == "mark 0") / "checkpoints" / "begun"
    wait_for(lambda: begun.exists() and begun.read_text())
    heir = process(Worker(tmp_path), stages)
    wait_for(lambda: len(Worker(tmp_path).log) == len(stages) - 3)
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    assert finish(heir) == 0
    done = Worker(tmp_path).log
    assert sorted(key for _, key, *_ in done) == sorted(stage.key for stage in stages)
    assert {int(pid) for pid, *_ in done} <= {heir.pid, doomed.pid}
    assert [words for words in done if len(words) == 3] == [[str(heir.pid), begun.parents[1].name, str(doomed.pid)]]
    assert finish(doomed) == -signal.SIGKILL


def test_what_another_process_did_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    stages, worker, said = graph(branches=1), Worker(tmp_path), []
    lines = survey(stages, worker.store)  # before anything is there
    assert worker.run(stages) == len(stages)
    assert execute(lines, worker.store, worker, Deadline(), said.append) == 0
    assert len(worker.log) == len(stages)
    assert len([line for line in said if "done meanwhile by another process" in line]) == len(stages)


def test_an_error_ends_the_run_and_leaves_what_is_done(tmp_path: Path) -> None:
    stages, worker = graph(branches=1), Worker(tmp_path)

    def failing(stage: Stage, folder: Path) -> None:
        if stage.kind == "attack":
            raise ConfigError("no")
        worker(stage, folder)

    with pytest.raises(ConfigError, match="no"):
        execute(survey(stages, worker.store), worker.store, failing, Deadline(), lambda _: None)
    assert [stage.kind for stage in stages if worker.store.has(stage.key)] == ["pretrain", "embed"]


def test_a_spent_budget_ends_the_run_before_the_next_stage(tmp_path: Path) -> None:
    stages, worker = graph(branches=1), Worker(tmp_path, seconds=0.2)
    with pytest.raises(BudgetExhausted, match="run the same command"):
        execute(survey(stages, worker.store), worker.store, worker, Deadline(0.1), lambda _: None)
    assert len(worker.log) == 1


# Estimates


def costing(kind: str, about: str, work: float, n: int) -> Stage:
    return Stage(kind, {"attack" if kind == "attack" else "scheme": {"_target_": about}, "n": n}, work=work)


def test_without_a_history_a_stage_takes_what_its_work_takes() -> None:
    (line,) = survey([costing("attack", "a.A", 2 * WORK_PER_SECOND, 0)], Store(Path("/nowhere")))
    assert (line.hit, line.seconds) == (False, pytest.approx(OVERHEAD + 2))


def test_what_stages_took_corrects_the_estimates_of_those_most_like_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished = [
        costing("attack", "a.A", 0, 0),
        costing("attack", "a.B", 0, 0),
        costing("embed", "s.S", 10 * WORK_PER_SECOND, 0),
    ]
    for stage in finished:
        with store.writing(stage.key, stage.identity) as folder:
            assert folder is not None
    # ten times as long as they should have taken, twice as long, half as long
    taken = dict(zip((stage.key for stage in finished), (3.0, 0.6, 5.15), strict=True))

    class Manifest:
        def __init__(self, key: str) -> None:
            self.seconds = taken[key]

    store.manifest = Manifest  # type: ignore[method-assign, assignment]
    kinds = {"like A": ("attack", "a.A"), "like B": ("attack", "a.B"), "an attack": ("attack", "a.C"),
             "like S": ("embed", "s.S"), "nothing alike": ("detect", "d.D")}  # fmt: skip
    asked = {name: costing(kind, about, WORK_PER_SECOND, 1) for name, (kind, about) in kinds.items()}
    lines = survey([*finished, *asked.values()], store)
    found = {name: line.seconds for name, line in zip(asked, lines[3:], strict=True)}
    plain = OVERHEAD + 1
    assert [line.seconds for line in lines[:3]] == [0, 0, 0]
    assert found == {
        "like A": pytest.approx(10 * plain),
        "like B": pytest.approx(2 * plain),
        "an attack": pytest.approx((3.0 + 0.6) / (2 * OVERHEAD) * plain),
        "like S": pytest.approx(0.5 * plain),
        "nothing alike": pytest.approx((3.0 + 0.6 + 5.15) / (3 * OVERHEAD + 10) * plain),
    }
