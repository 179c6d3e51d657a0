"""A verdict on a suspect, from exact p-values of its weights and of its answers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.command.options import ABSENT, FOUND
from hallmark.schemes.stain_lock.guarantees import combined


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def told(self) -> str:
        """Seconds on the wall and of all cores together: the first depends on who else is using the machine."""
        return f"{time.perf_counter() - self._wall:.3g} s, {time.process_time() - self._cpu:.3g} CPU s"


@dataclass(frozen=True)
class Verdict:
    """What was read from a suspect.

    Args:
        surprises: −ln p of each neuron, by what it was read from: ``weights``, ``answers``.
        responses: What each neuron answers to its picture before the activation.
        expected: Δ.
    """

    surprises: Mapping[str, Sequence[float]]
    responses: Sequence[float]
    expected: float

    @property
    def tests(self) -> dict[str, float]:
        """Ln p over all neurons (Fisher), by what it was read from."""
        return {name: combined(values) for name, values in self.surprises.items()}

    @property
    def log_p(self) -> float:
        """Ln of the p-value of the least of these, times their number (Bonferroni)."""
        return min(0.0, min(self.tests.values()) + math.log(len(self.tests)))


def require_alpha(alpha: float) -> None:
    """Refuse an α that is none."""
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha must lie in (0, 1), got {alpha}")


def show(verdict: Verdict, alpha: float, started: Clock) -> int:
    """Print a verdict.

    Args:
        verdict: The verdict.
        alpha: α.
        started: When the work began.

    Returns:
        The exit status.
    """
    taken = started.told()
    table = Table()
    for name in ("neuron", *(f"p, {name}" for name in verdict.surprises), "response", "expected"):
        table.add_column(name, justify="right")
    for k, response in enumerate(verdict.responses):
        values = [p_text(-values[k]) for values in verdict.surprises.values()]
        table.add_row(str(k + 1), *values, f"{response:.4g}", f"{verdict.expected:.4g}")
    detected = verdict.log_p <= math.log(alpha)
    console = Console(highlight=False)
    console.print(table)
    for name, log_p in verdict.tests.items():
        console.print(f"statistic, {name}: {sum(verdict.surprises[name]):.6g} = Σ −ln p; exact p {p_text(log_p)}")
    answer = "[bold green]DETECTED[/]" if detected else "[bold red]NOT DETECTED[/]"
    console.print(f"{answer}: p = {p_text(verdict.log_p)}, α = {alpha:g} ({taken})")
    return FOUND if detected else ABSENT


def p_text(log_p: float) -> str:
    """A p-value from its logarithm, also one below the smallest float."""
    return f"{math.exp(log_p):.3g}" if log_p > -600 else f"10^{log_p / math.log(10):.0f}"
