import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MAY_DIFFER = {"wall_s", "commit"}


def run_killed(folder: Path, kills: int) -> tuple[list[dict[str, str]], str]:
    """Rows of the experiment, without what measures time, and what the driver printed."""
    command = [sys.executable, str(HERE / "kill_and_resume.py"), str(folder / "store"), str(folder / "results")]
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(kills), "7"], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    with (folder / "results" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = [row["metric"] == "seconds" for row in rows]
    for row, is_time in zip(rows, timed, strict=True):
        for column in MAY_DIFFER | ({"value"} if is_time else set()):
            row[column] = ""
    return rows, done.stdout


@pytest.mark.slow
def test_rows_after_twenty_kills_equal_those_of_an_uninterrupted_run(tmp_path):
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    calm, _ = run_killed(tmp_path / "calm", kills=0)
    killed, printed = run_killed(tmp_path / "killed", kills=20)
    assert "leftovers=0" in printed
    assert int(printed.split("killed=")[1].split()[0]) >= 5, "kills came too late to interrupt anything"
    assert len(calm) > 50
    assert killed == calm
