"""One clock, one order of runs and one way to sum them up, shared by every benchmark."""

import ctypes
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from hallmark.precision import chosen, fast

PACKAGES = ("hallmark", "torchvision", "pytorch-lightning", "lightly")


@dataclass(frozen=True)
class Run:
    """One run of one alternative.

    Attributes:
        units: Things done, in the benchmark's own unit.
        seconds: Wall time.
        peak_mib: Most memory held at any time beyond what was held at the start, in MiB.
        result: Whatever the work returned.
    """

    units: float
    seconds: float
    peak_mib: float = 0.0
    result: Any = None

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some rounds, and the rounds themselves in order."""

    median: float
    min: float
    max: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up; six significant digits are kept."""
        rounds = tuple(float(f"{value:.6g}") for value in values)
        return cls(statistics.median(rounds), min(rounds), max(rounds), rounds)


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    cpu: str
    cores: int
    threads: int
    device: str
    precision: str
    python: str
    packages: Mapping[str, str]

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """This machine, with the threads and the device in use."""
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            precision=chosen("gpu" if device.type == "cuda" else "cpu"),
            python=platform.python_version(),
            packages={"torch": str(torch.__version__)} | {name: version(name) for name in PACKAGES},
        )


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def clock(device: torch.device) -> float:
    """Seconds on a clock that is read only once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed_steps(
    batches: Iterable[torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    *,
    warmup: int,
    steps: int,
) -> float:
    """Seconds of ``steps`` times forward (bfloat16 if native), backward and update, after ``warmup`` untimed ones."""
    started = clock(device)
    for step, batch in enumerate(islice(batches, warmup + steps), start=1):
        with fast(device):
            loss = loss_of(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step == warmup:
            started = clock(device)
    return clock(device) - started


def measured(work: Callable[[], Any], units: float, device: torch.device) -> Run:
    """Do the work once and say how long it took and how much memory, the device's own if it has one."""
    before = _restart_peak(device)
    started = clock(device)
    result = work()
    seconds = clock(device) - started
    return Run(units, seconds, round(_peak(device) - before, 1), result)


def interleave(alternatives: Mapping[str, Callable[[], Run]], repeats: int) -> dict[str, list[Run]]:
    """Run the alternatives in turn, A B C A B C ..., so that a change of the machine's pace meets all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in alternatives}
    for number in range(1, repeats + 1):
        for name, alternative in alternatives.items():
            run = alternative()
            say(f"  round {number}/{repeats}  {name}: {run.seconds:.3g} s, {run.rate:.4g}/s")
            runs[name].append(run)
    return runs


def rates(runs: Sequence[Run]) -> Spread:
    """Units a second over all rounds."""
    return Spread.of([run.rate for run in runs])


def seconds(runs: Sequence[Run]) -> Spread:
    """Seconds over all rounds."""
    return Spread.of([run.seconds for run in runs])


def ratio(top: Sequence[Run], bottom: Sequence[Run]) -> Spread:
    """Rates of ``top`` over those of ``bottom``, round by round: the two runs of a round lie close in time."""
    return Spread.of([one.rate / other.rate for one, other in zip(top, bottom, strict=True)])


def peak(runs: Sequence[Run]) -> float:
    """Most memory of any round, in MiB."""
    return max(run.peak_mib for run in runs)


class Stopwatch(Callback):
    """Runs from the end of a Lightning run's warm-up steps to the end of its last epoch, before its final checkpoint.

    Args:
        warmup: Steps of the first epoch before the clock starts.
        device: Where training runs.
    """

    def __init__(self, warmup: int, device: torch.device) -> None:
        self.warmup = warmup
        self.device = device
        self.started = self.stopped = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start, once warm."""
        if trainer.current_epoch == 0 and batch_idx + 1 == self.warmup:
            self.started = clock(self.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, until the next epoch ends."""
        self.stopped = clock(self.device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _restart_peak(device: torch.device) -> float:
    """Begin a new high-water mark; MiB in use now.  Where the kernel keeps the old mark, only growth past it counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError, AttributeError):  # freed memory that malloc keeps would hide what is taken next
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: torch.device) -> float:
    """High-water mark in MiB: of the device's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
