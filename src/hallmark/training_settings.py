"""How to train, as plain values; kept apart from Lightning so that planning stays quick."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from hallmark.errors import BudgetExhausted, ConfigError, allowed
from hallmark.precision import AUTO, FULL, HALF, chosen

ACCELERATORS = ("cpu", "gpu")
PRECISIONS = (AUTO, HALF, "16-mixed", FULL)


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; mirrors ``conf/trainer``.

    Args:
        accelerator: ``cpu`` or ``gpu``.
        devices: Number of devices; more than one train by DDP, one process each.
        precision: Lightning precision, e.g. ``bf16-mixed`` or ``32-true``; ``auto`` becomes the first where the machine
            computes in bfloat16 itself, else the second, and results are those of the precision it became.
        checkpoint_every_s: Least seconds between two checkpoints; they are written at the end of an epoch.
        progress: Whether to draw progress bars.
        compile: Whether torch.compile makes the networks that a step spends its time in faster; it costs half a minute
            once and needs a C++ compiler.
        resident_gib: Most memory for the images of one split, in GiB.  A folder of image files that needs more is read
            while networks train; the batches are the same.
        workers: Processes that read such files ahead, on each device; 0 for none.
    """

    accelerator: str = "cpu"
    devices: int = 1
    precision: str = AUTO
    checkpoint_every_s: float = 20.0
    progress: bool = True
    compile: bool = False
    resident_gib: float = 32.0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(allowed(self.precision, PRECISIONS, "trainer.precision"))
        if self.accelerator not in ACCELERATORS:
            raise ConfigError(allowed(self.accelerator, ACCELERATORS, "trainer.accelerator"))
        if self.precision == AUTO:
            object.__setattr__(self, "precision", chosen(self.accelerator))
        if self.devices < 1:
            raise ConfigError(f"trainer.devices must be at least 1, got {self.devices}")
        if not 0 <= self.resident_gib < math.inf or self.workers < 0:
            raise ConfigError(
                "trainer.resident_gib and trainer.workers must be at least 0 and finite, "
                f"got {self.resident_gib} and {self.workers}"
            )

    def single(self) -> "TrainerSettings":
        """The same machine, one device: only pretraining is spread over many."""
        return replace(self, devices=1)

    def semantic(self) -> dict[str, Any]:
        """The part that can change a result, for the identity of a stage."""
        compiled = {"compile": True} if self.compile else {}  # other kernels round otherwise
        return {"precision": self.precision, "world": self.devices, "accelerator": self.accelerator, **compiled}


@dataclass
class Deadline:
    """A time budget shared by everything one command does.

    Args:
        seconds: Budget, or None for no limit.
        start: When it began, by ``time.monotonic()``.
    """

    seconds: float | None = None
    start: float = field(default_factory=time.monotonic)

    def check(self, needed: float = 0.0) -> None:
        """Raise BudgetExhausted when less than ``needed`` seconds are left."""
        if self.seconds is not None and time.monotonic() - self.start + needed > self.seconds:
            raise BudgetExhausted(f"the budget of {self.seconds:.0f} s is spent; run the same command to go on")
