"""Jobs side by side, by Hydra's joblib launcher and by submitit's on the local machine, of experiments with parts."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from smoke import reduced

pytestmark = pytest.mark.slow
MAIN = "from hallmark.cli import main; main()"  # as the installed command calls it


def launch(folder: Path, launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A multirun in a process of its own, by a launcher, of an experiment that takes seconds."""
    where = [f"store={folder / 'store'}", f"results={folder / 'results'}", f"hydra.sweep.dir={folder / 'jobs'}"]
    command = [sys.executable, "-c", MAIN, "-m", f"hydra/launcher={launcher}", *reduced(), *where, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def found(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results" / "runs.csv", keep_default_na=False)


def test_joblib_runs_seeds_side_by_side_on_one_store(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = launch(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    assert done.returncode == 0, done.stderr
    rows = found(tmp_path)
    assert set(rows["seed"]) == {0, 1}
    assert set(rows["experiment"]) == {"matrix/images"}
    assert rows.groupby("seed").size().nunique() == 1


def test_submitit_runs_a_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = launch(tmp_path, "submitit_local", "seed=3")
    assert done.returncode == 0, done.stderr
    assert set(found(tmp_path)["seed"]) == {3}
    (log,) = (tmp_path / "jobs" / ".submitit").rglob("*_log.out")
    assert "rows in" in log.read_text()
