"""The check that two processes shared a run: what it reads from what they print, and that it sees what is amiss."""

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from hallmark import cli
from hallmark.composition import compose_parts
from hallmark.stages.graph import Stage
from hallmark.stages.plan import plan
from hallmark.stages.runner import execute, survey
from hallmark.stages.store import Store
from hallmark.training_settings import Deadline
from smoke import reduced


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import share_run

    return share_run


def test_it_reads_every_stage_of_a_plan_by_a_name_of_its_own(script, monkeypatch, capsys, tmp_path) -> None:
    words = [*reduced("prune", "surrogate"), f"store={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["hallmark", *words, "--plan"])
    cli.main()
    (config,) = compose_parts(words)
    stages = plan(config, cli.fingerprinter(config)).stages
    read = script.planned(capsys.readouterr().out)
    assert read == {"matrix/images": {(stage.kind, stage.label): stage.key[:12] for stage in stages}}
    assert len(read["matrix/images"]) == len(stages)


def test_it_reads_who_did_what(script, tmp_path) -> None:
    host = Stage("pretrain", {"n": 0}, label="host")
    mark = Stage("embed", {"n": 1}, {"host": host}, label="mark (of 2) in host")
    said: list[str] = []

    def work(stage: Stage, folder: Path) -> None:
        (folder / "result").write_text("")

    lines = survey([host, mark], Store(tmp_path))
    assert execute(lines, Store(tmp_path), work, Deadline(), said.append) == 2
    assert script.done("\n".join(said)) == [("pretrain", "host"), ("embed", "mark (of 2) in host")]
    said.clear()
    assert execute(lines, Store(tmp_path), work, Deadline(), said.append) == 0
    assert said  # each was done meanwhile
    assert script.done("\n".join(said)) == []


PLAN = {
    "e/one": {("pretrain", "host"): "0" * 12, ("embed", "wpe in host"): "1" * 12},
    "e/two": {("embed", "lock in host"): "2" * 12, ("attack", "prune 1 x on lock in host"): "3" * 12},
}
STORED = [digit * 64 for digit in "0123"]


def log(*names: tuple[str, str]) -> str:
    return "\n".join(f"[1/4] {kind:8} {label} (about 1 s)\n        took 2 s" for kind, label in names)


def logs() -> list[str]:
    return [log(*part) for part in PLAN.values()]


ROWS = pd.DataFrame(
    [(e, s, a) for e, s in (("e/one", "wpe"), ("e/two", "lock")) for a in ("none", "prune")],
    columns=["experiment", "scheme", "attack"],
).assign(metric="p_value", suspect="marked")


def test_a_run_that_was_shared_as_it_should_be_has_no_faults(script) -> None:
    assert script.faults(PLAN, logs(), STORED, ROWS) == []


def test_whatever_is_amiss_is_named(script) -> None:
    one, two = logs()

    def found(plan=PLAN, logs=(one, two), stored=STORED, rows=ROWS) -> str:
        return "\n".join(script.faults(plan, logs, stored, rows))

    assert "('pretrain', 'host') was done 2 times" in found(logs=(one, f"{two}\n{log(('pretrain', 'host'))}"))
    assert "('attack', 'prune 1 x on lock in host') was planned and by no process done" in found(
        logs=(one, log(("embed", "lock in host")))
    )
    assert "('verify', 'x') was done and is in no plan" in found(logs=(one, f"{two}\n{log(('verify', 'x'))}"))
    assert "process 1 did no stage" in found(logs=(f"{one}\n{two}", ""))
    assert "the store holds 3 stages, not the 4" in found(stored=STORED[1:])
    assert "the store holds 4 stages, not the 4" in found(stored=[*STORED[1:], "4" * 64])
    assert "e/two has no verdict on lock attacked" in found(rows=ROWS[:3])
    assert "e/one has no verdict on wpe unattacked" in found(rows=ROWS[1:])
    assert found(plan={})
