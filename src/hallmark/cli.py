"""The ``hallmark`` command: one Hydra application."""

import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions reach us; we make one line of them

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hallmark.composition import CONF, fingerprinter, one_line, resolve
from hallmark.errors import BudgetExhausted, ConfigError, HallmarkError
from hallmark.training_settings import Deadline

STARTED = time.monotonic()
"""A budget covers the command, not each job of a multirun."""

STOPPED = 75
"""Exit status when the budget ended a run that the same command continues (EX_TEMPFAIL)."""


def run(config: dict[str, Any]) -> None:
    """Plan an experiment, run what is missing, write its rows.

    Raises:
        HallmarkError: Something that the user can mend.
        BudgetExhausted: The budget ran out.
    """
    from hallmark.stages.plan import plan
    from hallmark.stages.runner import duration, execute, survey
    from hallmark.stages.store import Store

    deadline = Deadline(parse_duration(config["budget"]), STARTED)
    experiment = plan(config, fingerprinter(config))
    store = Store(Path(config["store"]))
    lines = survey(experiment.stages, store)
    missing = [line for line in lines if not line.hit]
    seed, scale = config["seed"], config["scale"]["name"]
    print(
        f"{config['name']} seed={seed} scale={scale}: {len(lines)} stages, {len(lines) - len(missing)} done, "
        f"{len(missing)} to run, about {duration(sum(line.seconds for line in missing))}",
        flush=True,
    )
    if config["plan"]:
        for line in lines:
            state = "hit " if line.hit else "miss"
            cost = "" if line.hit else f"  ~{duration(line.seconds)}"
            print(f"  {state} {line.stage.key[:12]} {line.stage.kind:8} {line.stage.label}{cost}")
        return
    if missing:
        from hallmark.session import bench_for  # torch and Lightning; a finished experiment needs neither

        bench = bench_for(config, store, deadline)
        execute(lines, store, bench.run, deadline, lambda text: print(text, flush=True))
    from hallmark.stages.record import record

    results = Path(config["results"])
    found, changed = record(experiment, store, results)
    if missing:
        from rich.console import Console

        from hallmark.report.console import verdict_table

        Console().print(verdict_table(found))
        if config["logger"]["kind"] == "wandb":
            from hallmark.tracking import publish

            publish(config, found, sorted((results / "figures").glob("*.png")))
    print(f"{len(found)} rows in {results / 'runs.csv'}, {changed} of them new or changed; hallmark-report shows them")


NAMELESS = frozenset(
    {
        *("experiment", "scale", "seed", "name"),
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
    names = {word.lstrip("+~").split("=")[0].split("@")[0]: word for word in overrides}
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
        plain = resolve(config)
        check_name(plain, HydraConfig.get().overrides.task)
        run(plain)
    except BudgetExhausted as stop:
        print(stop)
        sys.exit(STOPPED)
    except HallmarkError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point: one line and exit status 2 for what the user can mend, 75 when a budget ended the run."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `hallmark --plan | head` is no error
    sys.argv = ["plan=true" if word == "--plan" else word for word in sys.argv]
    if not CONF.is_dir():
        _fail(f"the configuration folder {CONF} is missing; install with pip install -e from a clone")
    try:
        _application()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(one_line(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
