"""The ``hallmark`` command: one Hydra application."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us; we make one line of them

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hallmark.composition import CONF, fingerprinter, one_line, overridden, parts, resolve
from hallmark.errors import BudgetExhausted, ConfigError, HallmarkError
from hallmark.training_settings import Deadline

if TYPE_CHECKING:
    from hallmark.stages.experiment import Experiment
    from hallmark.stages.runner import Line
    from hallmark.stages.store import Store

STARTED = time.monotonic()
"""A budget covers the command, not each job of a multirun."""

STOPPED = 75
"""Exit status when the budget ended a run that the same command continues (EX_TEMPFAIL)."""


def run(config: dict[str, Any], parts: Sequence[dict[str, Any]] = ()) -> None:
    """Plan an experiment, run what is missing, write its rows.

    Args:
        config: The resolved configuration.
        parts: Configurations of the experiments that run in its stead, if it has parts; all are planned before the
            first one runs, and the budget covers all.

    Raises:
        HallmarkError: Something that the user can mend.
        BudgetExhausted: The budget ran out.
    """
    from hallmark.stages.runner import survey
    from hallmark.stages.store import Store

    deadline = Deadline(parse_duration(config["budget"]), STARTED)
    experiments = [_plan(part, f"{part['name']}: ") for part in parts] or [_plan(config)]
    store = Store(Path(config["store"]))
    lines = survey([stage for experiment in experiments for stage in experiment.stages], store)
    of_stage = {line.stage.key: line for line in lines}
    planned = [(experiment, [of_stage[stage.key] for stage in experiment.stages]) for experiment in experiments]
    for experiment, own in planned:
        print(f"{_headline(experiment.config)}: {_outline(own)}", flush=True)
        if config["plan"]:
            _list(experiment, own)
    if parts:
        print(f"{_headline(config)}, {len(parts)} parts in all: {_outline(list(of_stage.values()))}", flush=True)
    for experiment, own in planned if not config["plan"] else ():
        _carry_out(experiment, own, store, deadline)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"results={folder} cannot be made ({error.strerror}); name a folder you may write") from None


def _plan(config: dict[str, Any], about: str = "") -> "Experiment":
    from hallmark.stages.plan import plan

    try:
        return plan(config, fingerprinter(config))
    except ConfigError as error:
        raise ConfigError(f"{about}{error}") from None


def _headline(config: Mapping[str, Any]) -> str:
    return f"{config['name']} seed={config['seed']} scale={config['scale']['name']}"


def _outline(lines: Sequence["Line"]) -> str:
    from hallmark.stages.runner import duration

    missing = [line for line in lines if not line.hit]
    return (
        f"{len(lines)} stages, {len(lines) - len(missing)} done, {len(missing)} to run, "
        f"about {duration(sum(line.seconds for line in missing))}"
    )


def _list(experiment: "Experiment", lines: Iterable["Line"]) -> None:
    """Every stage, and every pair that has none."""
    from hallmark.stages.runner import duration

    for line in lines:
        state = "hit " if line.hit else "miss"
        cost = "" if line.hit else f"  ~{duration(line.seconds)}"
        print(f"  {state} {line.stage.key[:12]} {line.stage.kind:8} {line.stage.label}{cost}")
    for cell in experiment.unfit:
        attack = "" if cell.attack == "none" else f"{cell.attack} on "
        print(f"  n/a  {attack}{cell.mark.label}: {cell.reason}")


def _carry_out(experiment: "Experiment", lines: Sequence["Line"], store: "Store", deadline: Deadline) -> None:
    """Run what is missing of an experiment, and write its rows."""
    from hallmark.stages.record import record
    from hallmark.stages.runner import execute

    config = dict(experiment.config)
    results = Path(config["results"])
    missing = any(not line.hit for line in lines)
    if missing:
        from hallmark.session import bench_for  # torch and Lightning; a finished experiment needs neither

        bench = bench_for(config, store, deadline)
        _make(results)  # before anything runs for hours
        execute(lines, store, bench.run, deadline, lambda text: print(text, flush=True))
    found, changed = record(experiment, store, results)
    if missing:
        from rich.console import Console

        from hallmark.report.console import verdict_table

        Console().print(verdict_table(found))
        if config["logger"]["kind"] == "wandb":
            from hallmark.tracking import publish

            publish(config, found, results)
    print(f"{len(found)} rows in {results / 'runs.csv'}, {changed} of them new or changed; hallmark-report shows them")


NAMELESS = frozenset(
    {
        *("experiment", "parts", "scale", "seed", "name"),
        *("trainer", "logger", "store", "results", "data_root", "download", "budget", "plan", "hydra/launcher"),
    }
)
"""What may be set without the experiment becoming another one; ``trainer.x`` and ``logger.x`` count as well."""


def check_name(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse overrides that change an experiment but not its name, in the results folder that holds the record.

    Args:
        config: The resolved configuration.
        overrides: What the command line said.

    Raises:
        ConfigError: The rows of the experiment as its file has it would be replaced by those of another.
    """
    names = {overridden(word): word for word in overrides}
    free = (*NAMELESS, *(name for name in names if name.startswith(("trainer.", "logger."))))
    changes = [word for name, word in names.items() if name not in free]
    if changes and "name" not in names and "results" not in names and not config["plan"]:
        raise ConfigError(
            f"{', '.join(changes)} makes another experiment than {config['name']}, whose rows it would replace; "
            "give it a name of its own (name=...) or another folder (results=...)"
        )


def parse_duration(text: str | int | float | None) -> float | None:
    """Seconds of a budget such as ``90s``, ``9m``, ``1.5h`` or a plain number of seconds.

    Raises:
        ConfigError: It is none of these.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(text).strip())
    if not match:
        raise ConfigError(f"budget {text!r} is no duration; write e.g. 90s, 9m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _application(config: DictConfig) -> None:
    try:
        plain, overrides = resolve(config), list(HydraConfig.get().overrides.task)
        check_name(plain, overrides)
        run(plain, parts(plain, overrides) if plain["parts"] else ())
    except (BudgetExhausted, HallmarkError) as stop:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # perhaps in a process of its own, from which the launcher brings it home
        _end(stop)


def _end(stop: BudgetExhausted | HallmarkError) -> NoReturn:
    if isinstance(stop, HallmarkError):
        _fail(str(stop))
    print(stop)
    sys.exit(STOPPED)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _check_dashes(words: Sequence[str]) -> None:
    """Refuse ``-plan``: Hydra would read it as ``-p lan``, a package, and start the run."""
    for word in words:
        if re.match(r"-[a-z]{2}", word) and word not in ("-cp", "-cn", "-cd"):
            _fail(f"unknown option {word}; long options have two dashes, such as --plan")


def main() -> None:
    """Entry point: one line and exit status 2 for what the user can mend, 75 when a budget ended the run."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `hallmark --plan | head` is no error
    _check_dashes(sys.argv[1:])
    sys.argv = ["plan=true" if word == "--plan" else word for word in sys.argv]
    if not CONF.is_dir():
        _fail(f"the configuration folder {CONF} is missing; install with pip install -e from a clone")
    try:
        _application()
    except (BudgetExhausted, HallmarkError) as stop:
        _end(stop)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(one_line(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
