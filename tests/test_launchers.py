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
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_joblib_runs_seeds_side_by_side_on_one_store(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = launch(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "results" / "runs.csv", keep_default_na=False)
    assert set(rows["seed"]) == {0, 1}
    assert set(rows["experiment"]) == {"matrix/images"}
    assert rows.groupby("seed").size().nunique() == 1


def test_submitit_runs_a_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = launch(tmp_path, "submitit_local", "seed=3", "plan=true")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "jobs" / ".submitit").rglob("*_log.out")
    assert "matrix seed=3 scale=smoke, 1 parts in all" in log.read_text()


def test_what_ends_a_job_elsewhere_ends_the_command_in_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = launch(tmp_path, "submitit_local", "seed=3", "calibration.decoys=9")
    assert done.returncode == 2
    *which, line = done.stderr.strip().splitlines()
    assert "seed=3" in "".join(which)  # Hydra says which job it was
    assert line.startswith("error: matrix/images: with calibration.decoys=9 no p-value can fall below 0.1")
    assert "Traceback" not in done.stderr
