import json
import sys

import pytest

from hallmark import tracking
from hallmark.cli import run
from hallmark.composition import compose
from hallmark.report.console import verdict_table
from hallmark.report.matrix import section
from hallmark.report.rows import Row, merge, read
from smoke import TINY
from synthetic_matrix import matrix_rows


class FakeRun:
    def __init__(self):
        self.logged, self.finished = {}, False

    def log(self, content):
        self.logged |= content

    def finish(self):
        self.finished = True


@pytest.mark.slow
def test_wandb_offline_logs_curves_by_stage_key_and_the_rows_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = [*TINY[:-1], "attacks={}", f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}"]
    config = compose([*overrides, "logger=wandb", f"logger.folder={tmp_path / 'runs'}"])
    (tmp_path / "runs").mkdir()
    run(config)
    wandb_runs = {path.name.split("-")[-1] for path in (tmp_path / "runs" / "wandb").glob("offline-run-*")}
    stages = {}
    for manifest in (tmp_path / "s" / "objects").glob("*/manifest.json"):
        stages[manifest.parent.name[:16]] = json.loads(manifest.read_text())["identity"]["stage"]
    trained = {name for name, kind in stages.items() if kind in ("pretrain", "embed")}
    assert trained <= wandb_runs, "one run a trained stage, named by its key"
    assert len(wandb_runs) == len(trained) + 1, "and one for the experiment"


def test_wandb_offline_gets_the_reports_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = list(matrix_rows())
    merge(tmp_path / "results" / "runs.csv", rows)
    (tmp_path / "runs").mkdir()
    logger = {"project": "p", "entity": None, "folder": str(tmp_path / "runs")}
    config = {"name": "matrix/encoders", "paper": "matrix", "seed": 0, "scale": {"name": "cpu"}, "logger": logger}
    tracking.publish(config, rows, tmp_path / "results")
    (media,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/files/media")
    tables = {path.name.partition("_cpu_")[2]: path for path in media.glob("table/tables/*.table.json")}
    (matrix,) = (json.loads(path.read_text()) for name, path in tables.items() if name.startswith("encoders"))
    found = read(tmp_path / "results" / "runs.csv")
    expected = section.shown(found, "matrix_cpu", "cpu").tables[0]
    assert (matrix["columns"], matrix["data"]) == (expected.heads, expected.texts())
    names = " ".join(path.name for path in media.glob("images/figures/*.png"))
    assert "matrix_cpu_encoders_heatmap" in names
    assert "matrix_cpu_encoders_pareto" in names


def test_publish_sends_rows_and_closes_its_run_even_on_failure(tmp_path, monkeypatch):
    fake = FakeRun()
    arguments = {}
    monkeypatch.setattr(tracking.wandb, "init", lambda **given: arguments.update(given) or fake)
    config = {
        "name": "demo",
        "paper": "wpe",
        "seed": 0,
        "scale": {"name": "smoke"},
        "store": "/somewhere",
        "logger": {"project": "p", "entity": None, "folder": "runs"},
    }
    shared = {"experiment": "demo", "paper": "wpe", "scheme": "wpe", "scale": "smoke"}
    rows = [Row(**shared, metric="alpha", value=0.001)]
    rows += [Row(**shared, metric=m, value=0.001, suspect="marked", access="labels") for m in ("p_value", "detected")]
    merge(tmp_path / "runs.csv", rows)
    tracking.publish(config, rows, tmp_path)
    assert fake.logged["rows"].data[0][1] == "demo"
    assert "tables/wpe_smoke_verdicts" in fake.logged
    assert fake.finished
    identity = arguments["id"]
    tracking.publish(config | {"store": "/elsewhere"}, rows, tmp_path)
    assert arguments["id"] == identity, "where things lie does not name a run"
    tracking.publish(config | {"seed": 1}, rows, tmp_path)
    assert arguments["id"] != identity

    fake.finished = False
    monkeypatch.setattr(fake, "log", lambda content: (_ for _ in ()).throw(RuntimeError("network")))
    with pytest.raises(RuntimeError, match="network"):
        tracking.publish(config, rows, tmp_path)
    assert fake.finished


def test_verdict_table_counts_detections_at_alpha():
    shared = {"experiment": "demo", "paper": "wpe", "scheme": "wpe", "scale": "smoke"}
    rows = [
        Row(metric="alpha", value=0.01, **shared),
        *[
            Row(metric="p_value", value=p, suspect="marked", access="labels", downstream=d, pretrain="simclr", **shared)
            for p, d in ((0.001, "a"), (0.5, "b"))
        ],
    ]
    table = verdict_table(rows)
    assert [list(column.cells) for column in table.columns[-2:]] == [["1 of 2"], ["0.001 … 0.5"]]
    assert "0.01" in str(table.title)


def test_planning_imports_neither_lightning_nor_wandb():
    import subprocess

    code = (
        "import sys, hallmark.cli, hallmark.stages.plan; from importlib import import_module\n"
        "from pathlib import Path; from omegaconf import OmegaConf; from hallmark.composition import CONF\n"
        "for group in ('scheme', 'attack', 'survey', 'detector', 'task'):\n"
        "    for file in Path(CONF, group).glob('*.yaml'):\n"
        "        import_module(OmegaConf.load(file)['_target_'].rpartition('.')[0])\n"
        "sys.exit(any(name in sys.modules for name in ('pytorch_lightning', 'wandb', 'lightly', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
