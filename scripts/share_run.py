"""Run one command in several processes on one store, and check that they did every stage between them, each once.

    python scripts/share_run.py hallmark -m experiment=matrix scale=smoke

Everything happens in a temporary folder, which is both working folder and store and is removed in the end.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

Name = tuple[str, str]
"""Kind and label of a stage, which tell it from all others of a plan."""
Parts = Mapping[str, Mapping[Name, str]]
"""By experiment the first twelve digits of each stage's key."""
EMBED = "embed"

_HEAD = re.compile(r"(\S+) seed=\d+ scale=\w+: ")
_PLANNED = re.compile(r"  (?:hit |miss) (\w{12}) (\w+) +(.*?)(?:  ~[^~]*)?$")
_BEGUN = re.compile(r"\[\d+/\d+\] (\w+) +(.*) \(about [^()]*\)$")
_ENDED = re.compile(r"        took ")


def planned(text: str) -> dict[str, dict[Name, str]]:
    """What ``--plan`` lists, by experiment."""
    found: dict[str, dict[Name, str]] = {}
    experiment = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            experiment = head[1]
        elif stage := _PLANNED.match(line):
            found.setdefault(experiment, {})[stage[2], stage[3]] = stage[1]
    return found


def done(text: str) -> list[Name]:
    """The stages that a process says it has done, in order."""
    found, begun = [], None
    for line in text.splitlines():
        if start := _BEGUN.search(line):
            begun = start[1], start[2]
        elif _ENDED.match(line) and begun:
            found.append(begun)
            begun = None
    return found


def faults(plan: Parts, logs: Sequence[str], stored: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """What is not as it should be; empty if all is well.

    Args:
        plan: Of :func:`planned`.
        logs: What each process printed.
        stored: Keys of the finished stages in the store.
        rows: The result rows.
    """
    keys = {name: key for part in plan.values() for name, key in part.items()}
    shares = [done(log) for log in logs]
    times = Counter(name for share in shares for name in share)
    wrong = [f"process {i} did no stage" for i, share in enumerate(shares) if not share]
    wrong += [f"{name} was done {count} times" for name, count in times.items() if count > 1]
    wrong += [f"{name} was planned and by no process done" for name in keys.keys() - times.keys()]
    wrong += [f"{name} was done and is in no plan" for name in times.keys() - keys.keys()]
    if sorted(key[:12] for key in stored) != sorted(set(keys.values())):
        wrong.append(f"the store holds {len(stored)} stages, not the {len(set(keys.values()))} that were planned")
    for experiment, part in plan.items():
        mine = rows[(rows["experiment"] == experiment) & (rows["metric"] == "p_value") & (rows["suspect"] == "marked")]
        schemes = {label.split()[0] for kind, label in part if kind == EMBED}
        for state, verdicts in {
            "unattacked": mine[mine["attack"] == "none"],
            "attacked": mine[mine["attack"] != "none"],
        }.items():
            wrong += [f"{experiment} has no verdict on {s} {state}" for s in schemes - set(verdicts["scheme"])]
    return wrong if plan else ["nothing was planned"]


def share(command: Sequence[str], folder: Path, processes: int) -> list[str]:
    """Run a command in several processes at once, and return what each printed.

    Raises:
        SystemExit: One of them failed; its output is shown.
    """
    environment = os.environ | {"HALLMARK_STORE": str(folder / "store"), "HALLMARK_PROGRESS": "false"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    logs = [folder / f"process {i}.log" for i in range(processes)]
    running = []
    for log in logs:
        with log.open("w") as output:
            running.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output))
    codes = [process.wait() for process in running]
    texts = [log.read_text(encoding="utf-8") for log in logs]
    for code, text in zip(codes, texts, strict=True):
        if code:
            sys.exit(f"{text[-4000:]}\n{' '.join(command)} ended with status {code}")
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, run, check, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="hallmark and its arguments")
    options = parser.parse_args(arguments)
    program, *words = options.command
    command = [str(Path(program).absolute()) if os.sep in program else program, *words]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (listed,) = share([command[0], *(word for word in words if word != "-m"), "--plan"], folder, 1)
        plan = planned(listed)
        started = time.monotonic()
        logs = share(command, folder, options.processes)
        seconds = time.monotonic() - started
        stored = [path.parent.name for path in (folder / "store" / "objects").glob("*/manifest.json")]
        rows = pd.read_csv(folder / "results" / "runs.csv", keep_default_na=False)
        wrong = faults(plan, logs, stored, rows)
    shares = " + ".join(str(len(done(log))) for log in logs)
    print(f"{' '.join(words)}: {len(stored)} stages, {shares} by process, {len(rows)} rows, {seconds:.0f} s")
    if wrong:
        sys.exit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
