"""Training under Lightning: the one place where machines, precision, checkpoints and time budgets are known."""

import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from torch.multiprocessing import ProcessRaisedException

from hallmark.data.resident import ResidentBatches
from hallmark.errors import BudgetExhausted, StoreError, TrainingError
from hallmark.training_settings import Deadline, TrainerSettings

# Lightning announces accelerators, loggers and every normal end; the runner says what people need to know
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning")

_SECONDS = "hallmark_seconds"


class LightningTrainer:
    """The :class:`hallmark.core.Trainer` of stages: every ``fit`` resumes from its own checkpoint.

    Args:
        settings: Machine, precision and progress.
        folder: Where checkpoints go; one subfolder for each ``fit``, in order.
        deadline: The time budget.
        logger: A Lightning logger, or None.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        folder: Path,
        *,
        deadline: Deadline | None = None,
        logger: Logger | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.deadline = deadline or Deadline()
        self.logger = logger
        self.resumed_s = 0.0
        """Seconds of training that checkpoints brought along from earlier, interrupted runs."""
        self._fits = 0

    def fit(
        self, module: torch.nn.Module, batches: Iterable[Any], *, epochs: int, callbacks: Iterable[Callback] = ()
    ) -> None:
        """Train a LightningModule in place over ``epochs`` passes, watched by further callbacks.

        Where the settings ask for it, the modules in its attribute ``hot`` are compiled meanwhile.

        Raises:
            TrainingError: The loss is not finite.
            BudgetExhausted: The budget is spent; a checkpoint was written.
        """
        if not isinstance(module, pl.LightningModule):
            raise TypeError(f"fit trains LightningModules, got {type(module).__name__}")
        checkpoint = self.folder / f"fit-{self._fits}.ckpt"
        self._fits += 1
        earlier = _seconds_in(checkpoint) if checkpoint.exists() else 0.0
        self.resumed_s += earlier
        guard = _CheckpointAndBudget(checkpoint, self.settings.checkpoint_every_s, self.deadline, earlier)
        bar = [_Bar(refresh_rate=10)] if self.settings.progress else []
        trainer = pl.Trainer(
            accelerator=self.settings.accelerator,
            devices=self.settings.devices,
            strategy="ddp_spawn" if self.settings.devices > 1 else "auto",
            precision=self.settings.precision,  # type: ignore[arg-type]
            max_epochs=epochs,
            logger=self.logger or False,
            callbacks=[*callbacks, guard, *bar],
            enable_checkpointing=False,  # the guard writes atomically; ModelCheckpoint does not
            enable_model_summary=False,
            enable_progress_bar=bool(bar),
            use_distributed_sampler=False,  # resident batches share themselves out
            log_every_n_steps=20,
            default_root_dir=str(self.folder),
        )
        hot = getattr(module, "hot", ()) if self.settings.compile else ()
        if hot:
            torch.compiler.reset()  # earlier networks count against its limit of recompilations
        for part in hot:
            part.compile()  # in place: names of parameters stay
        try:
            trainer.fit(module, batches, ckpt_path=str(checkpoint) if checkpoint.exists() else None, weights_only=True)
        except ProcessRaisedException as error:
            raise _raised_by_a_rank(error) from None
        finally:
            for part in hot:
                part._compiled_call_impl = None  # torch offers no way back
        module.to("cpu")


class _CheckpointAndBudget(Callback):
    """Writes a checkpoint at the end of an epoch, stops on an exhausted budget, refuses a loss that is not finite."""

    def __init__(self, path: Path, every_s: float, deadline: Deadline, earlier_s: float) -> None:
        self.path = path
        self.every_s = every_s
        self.deadline = deadline
        self.earlier_s = earlier_s
        self.started = self.saved_at = time.monotonic()
        self.epoch_start = self.saved_at

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches: Any = trainer.train_dataloader
        if isinstance(batches, ResidentBatches):
            batches.place(pl_module.device, rank=trainer.global_rank, world=trainer.world_size)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_start = time.monotonic()
        batches: Any = trainer.train_dataloader
        if isinstance(batches, ResidentBatches):
            batches.set_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # one host synchronisation every 50 steps finds a divergence early without stalling an accelerator
        if batch_idx % 50 == 0:
            _check_finite(outputs, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check_finite(trainer.callback_metrics, trainer.current_epoch)
        now = time.monotonic()
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = last or now - self.saved_at >= self.every_s
        spent = None
        try:
            self.deadline.check(needed=0.0 if last else now - self.epoch_start)
        except BudgetExhausted as error:
            spent = error
        # clocks differ between ranks, and one that saved or stopped alone would wait for the others: rank zero decides
        due, spent = trainer.strategy.broadcast((due, spent))
        if due or spent is not None:
            self._save(trainer)
        if spent is not None:
            raise spent

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_SECONDS] = self.earlier_s + time.monotonic() - self.started

    def _save(self, trainer: pl.Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        trainer.save_checkpoint(temporary)  # every rank must call it; rank zero writes
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        self.saved_at = time.monotonic()


def _raised_by_a_rank(error: ProcessRaisedException) -> Exception:
    """The user-facing error that ended a rank, of which its last line of text is all that arrives; else the error."""
    name, _, message = str(error).strip().splitlines()[-1].partition(": ")
    for kind in (BudgetExhausted, TrainingError):
        if name == f"{kind.__module__}.{kind.__qualname__}":
            return kind(message)
    return error


def _seconds_in(checkpoint: Path) -> float:
    """Seconds of training behind a checkpoint.

    Raises:
        StoreError: It is damaged or holds more than tensors and plain values.
    """
    try:
        return float(torch.load(checkpoint, map_location="cpu", weights_only=True)[_SECONDS])
    except Exception as error:  # noqa: BLE001 - torch raises half a dozen unrelated types for a bad file
        line = str(error).splitlines()[0]
        raise StoreError(f"{checkpoint} cannot be resumed from ({line}); it is removed, run again") from None


def _check_finite(metrics: Any, epoch: int) -> None:
    loss = metrics.get("loss") if isinstance(metrics, Mapping) else metrics
    if isinstance(loss, torch.Tensor) and not bool(torch.isfinite(loss).all()):
        raise TrainingError(
            f"the loss became {float(loss)} in epoch {epoch}; lower the learning rate or set trainer.precision=32-true"
        )


class _Bar(TQDMProgressBar):
    """Lightning's bar without the version counter, which says nothing here."""

    def get_metrics(self, trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, model)
        items.pop("v_num", None)
        return items
