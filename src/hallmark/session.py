"""Everything one command holds while stages run."""

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from hallmark.components import build
from hallmark.data.described import DataFolder
from hallmark.errors import ConfigError, allowed
from hallmark.stages.graph import Stage
from hallmark.stages.store import Store
from hallmark.stages.work import Bench, run
from hallmark.training_settings import Deadline, TrainerSettings


@dataclass(frozen=True)
class Session:
    """A bench, and whether wandb runs have to be closed after each stage."""

    bench: Bench
    wandb: bool

    def run(self, stage: Stage, folder: Path) -> None:
        """Run one stage; its wandb run is closed whatever happens, so that none leaks into the next stage."""
        try:
            run(stage, folder, self.bench)
        finally:
            if self.wandb:
                import wandb

                wandb.finish()


def bench_for(config: dict[str, Any], store: Store, deadline: Deadline) -> Session:
    """What the stages of one experiment need.

    Raises:
        ConfigError: The trainer or logger is misconfigured, or asks for an accelerator that is not there.
    """
    settings = build(TrainerSettings, config["trainer"], "trainer")
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu needs a CUDA device and torch sees none; use trainer=cpu")
    bench = Bench(
        data=DataFolder(Path(config["data_root"]) if config["data_root"] else None, config["download"]),
        settings=settings,
        deadline=deadline,
        open=store.open,
        logger=_loggers(config),
        device=torch.device("cuda" if settings.accelerator == "gpu" else "cpu"),
        machine=_machine(settings),
        commit=_commit(),
    )
    return Session(bench, config["logger"]["kind"] == "wandb")


def _loggers(config: dict[str, Any]) -> Callable[[Stage], Logger | None]:
    logger = config["logger"]
    kind = logger["kind"]
    if kind not in ("none", "csv", "wandb"):
        raise ConfigError(allowed(kind, ("none", "csv", "wandb"), "logger kind"))

    def make(stage: Stage) -> Logger | None:
        if kind == "none" or stage.kind in ("verify", "transfer", "survey"):
            return None
        if kind == "csv":
            return CSVLogger(logger["folder"], name=stage.kind, version=stage.key[:12])
        return WandbLogger(
            project=logger["project"],
            entity=logger["entity"],
            save_dir=logger["folder"],
            group=config["name"],
            job_type=stage.kind,
            name=stage.label,
            id=stage.key[:16],  # a resumed stage goes on in its own run
            resume="allow",
            config=stage.identity,
        )

    return make


def _machine(settings: TrainerSettings) -> str:
    if settings.accelerator == "gpu":
        return f"{settings.devices}x {torch.cuda.get_device_name()}"
    return f"cpu {platform.machine()} {torch.get_num_threads()} threads"


def _commit() -> str:
    """Short hash of the checkout, with a plus where it has changes; empty outside one."""
    where = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=where, capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "src", "conf"],
            cwd=where.parents[1], capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
