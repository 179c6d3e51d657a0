"""What is shown while an encoder trains: kNN and linear-probe accuracy.  Nothing here reaches the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from hallmark.core import generator
from hallmark.core.scheme import Images
from hallmark.tasks.features import encode
from hallmark.tasks.heads import HeadRecipe, train_head
from hallmark.tasks.probe import nearest_labels


class OnlineEvaluation(Callback):
    """Logs ``knn_accuracy`` and ``probe_accuracy`` on part of the owner's images after every few epochs.

    Args:
        data: Labelled images; four fifths of at most ``limit`` of them are the bank, the rest the queries.
        limit: Images looked at.
        checks: About how many times in a run.
    """

    def __init__(self, data: Images, *, limit: int = 2000, checks: int = 5) -> None:
        rows = torch.randperm(len(data), generator=generator(0, "monitor"))[:limit]
        bank = int(0.8 * len(rows))
        self.images, self.labels = data.images[rows], data.labels[rows]
        self.classes = data.classes
        self.bank = bank
        self.checks = checks

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, on rank zero, after every ``1/checks`` of the epochs."""
        every = max(1, (trainer.max_epochs or 1) // self.checks)
        encoder: Any = pl_module.encoder
        if trainer.is_global_zero and (trainer.current_epoch + 1) % every == 0:
            figures = {"knn_accuracy": self.measure(encoder), "probe_accuracy": self.probe(encoder)}
            # rank_zero_only: other ranks do not measure, so nothing may wait for them
            pl_module.log_dict(figures, prog_bar=True, rank_zero_only=True, sync_dist=False)

    def measure(self, encoder: nn.Module) -> float:
        """Accuracy of 20 nearest neighbours."""
        features = encode(encoder, self.images)
        answers = nearest_labels(
            features[self.bank :], features[: self.bank], self.labels[: self.bank], self.classes, k=20, temperature=0.1
        )
        return float((answers == self.labels[self.bank :]).float().mean())

    def probe(self, encoder: nn.Module) -> float:
        """Accuracy of a short linear probe."""
        features = encode(encoder, self.images)
        recipe = HeadRecipe(rates=(1e-2,), epochs=10, batch=256)
        head = train_head(
            features[: self.bank], self.labels[: self.bank], self.classes, recipe, generator=generator(0, "monitor")
        )
        with torch.no_grad():
            return float((head(features[self.bank :]).argmax(1) == self.labels[self.bank :]).float().mean())
