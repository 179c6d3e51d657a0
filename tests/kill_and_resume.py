"""Run one experiment in forked children that are killed at random moments, until one of them finishes.

usage: python kill_and_resume.py STORE RESULTS KILLS SEED    (no kills: the uninterrupted run)

Forking from a process that has imported everything, but computed nothing, makes each attempt start at once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import hallmark.session  # noqa: F401 - imports Lightning before the first fork
from hallmark.cli import run
from hallmark.composition import compose
from smoke import TINY


def attempt(store: str, results: str) -> int:
    """Fork a child that runs the experiment; return its process id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            run(compose([*TINY, f"store={store}", f"results={results}"]))
            code = 0
        finally:
            os._exit(code)
    return child


def main() -> None:
    """Kill, and in the end let it finish."""
    store, results, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    moments = random.Random(seed)
    survived = 0
    for _ in range(kills):
        child = attempt(store, results)
        time.sleep(moments.uniform(0.1, 1.2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        survived += os.WIFEXITED(status)
    child = attempt(store, results)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit("the last, undisturbed attempt failed")
    leftovers = list(Path(store, "work").glob("*")) if Path(store, "work").exists() else []
    print(f"killed={kills - survived} leftovers={len(leftovers)}")


if __name__ == "__main__":
    main()
