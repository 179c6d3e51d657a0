"""Pairs a second of SimCLR: the bare training step, the same step in the suite, and the step behind lightly's views.

A pair is two views of one image.  All train the same network with the same loss and optimiser, in bfloat16 and
channels last.  Each starts afresh every round and is timed after its warm-up steps.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from bench.augmentation import RECIPE, Pictures, noise
from bench.measure import Run, Spread, clock, interleave, rates, ratio, say
from hallmark.core.random import generator
from hallmark.data.augment import two_views
from hallmark.data.resident import ResidentBatches
from hallmark.pretrain.base import ContrastiveModule, build_optimiser
from hallmark.pretrain.recipe import HostRecipe, Recipe
from hallmark.pretrain.train import build_module
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings


@dataclass(frozen=True)
class Network:
    """What is trained, and for how long.

    Attributes:
        host: Architecture.
        batch: Pairs a step.
        steps: Steps that are timed, and batches of an epoch of the suite.
    """

    host: HostRecipe
    batch: int
    steps: int


NETWORKS = {
    "resnet_small": Network(HostRecipe("resnet_small", 16), batch=256, steps=20),
    "resnet18": Network(HostRecipe("resnet18"), batch=128, steps=6),
}


@dataclass(frozen=True)
class Setup:
    """One network on one machine.

    Attributes:
        network: See :class:`Network`.
        size: Side of the images.
        warmup: Steps before the clock starts, at most ``network.steps``.
        workers: Worker processes of lightly's loader.
        device: Where training runs.
    """

    network: Network
    size: int
    warmup: int
    workers: int
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        """SimCLR as ``conf/pretrain/simclr.yaml`` has it."""
        options = {"temperature": 0.5, "hidden": 512, "projection": 128}
        return Recipe("simclr", 2, self.network.batch, options, first_view=RECIPE, second_view=RECIPE)

    def module(self) -> ContrastiveModule:
        """A fresh network."""
        return build_module(self.network.host, self.recipe, seed=0)


@dataclass(frozen=True)
class Compiled:
    """The bare step and the suite behind ``torch.compile``, whose own time is not counted."""

    bare_pairs_per_s: Spread
    suite_pairs_per_s: Spread
    suite_over_compiled_bare: Spread
    suite_over_bare: Spread
    suite_over_lightly: Spread


@dataclass(frozen=True)
class Throughput:
    """Pairs a second of the ways to train one network, and their ratios; ``compiled`` where that was asked for."""

    batch: int
    steps: int
    bare_pairs_per_s: Spread
    suite_pairs_per_s: Spread
    lightly_pairs_per_s: Spread
    suite_over_bare: Spread
    suite_over_lightly: Spread
    compiled: Compiled | None


def compare(setup: Setup, repeats: int, *, compiled: bool) -> Throughput:
    """All ways in turn."""
    network = setup.network
    say(f"pretrain: {network.host.backbone}, batch {network.batch}, {network.steps} steps")
    images = noise(network.batch * network.steps, setup.size)
    alternatives: dict[str, Callable[[], Run]] = {
        "bare": partial(bare, setup, images),
        "suite": partial(suite, setup, images),
        "lightly": partial(lightly, setup, Pictures(images)),
    }
    if compiled:
        alternatives["bare, compiled"] = partial(bare, setup, images, compiled=True)
        alternatives["suite, compiled"] = partial(suite, setup, images, compiled=True)
    runs = interleave(alternatives, repeats)
    return Throughput(
        batch=network.batch,
        steps=network.steps,
        bare_pairs_per_s=rates(runs["bare"]),
        suite_pairs_per_s=rates(runs["suite"]),
        lightly_pairs_per_s=rates(runs["lightly"]),
        suite_over_bare=ratio(runs["suite"], runs["bare"]),
        suite_over_lightly=ratio(runs["suite"], runs["lightly"]),
        compiled=_compiled(runs) if compiled else None,
    )


def _compiled(runs: dict[str, list[Run]]) -> Compiled:
    suite, bare = runs["suite, compiled"], runs["bare, compiled"]
    return Compiled(
        bare_pairs_per_s=rates(bare),
        suite_pairs_per_s=rates(suite),
        suite_over_compiled_bare=ratio(suite, bare),
        suite_over_bare=ratio(suite, runs["bare"]),
        suite_over_lightly=ratio(suite, runs["lightly"]),
    )


def bare(setup: Setup, images: Tensor, *, compiled: bool = False) -> Run:
    """The step alone, on views that lie on the device already."""
    batch = images[: setup.network.batch].to(setup.device)
    views = two_views(batch, (RECIPE, RECIPE), generator=generator(0, "views"))
    return _plain_loop(setup, (views for _ in range(setup.warmup + setup.network.steps)), compiled=compiled)


def lightly(setup: Setup, pictures: Pictures) -> Run:
    """The step in a plain loop over a torch loader of lightly's views, whose workers are busy to the end."""
    cuda = setup.device.type == "cuda"
    ahead = 2 * setup.workers  # batches a loader prefetches; without them the last steps would have the cores alone
    steps = setup.warmup + setup.network.steps + ahead
    loader = DataLoader(
        pictures,
        batch_size=setup.network.batch,
        sampler=RandomSampler(pictures, replacement=True, num_samples=setup.network.batch * steps),
        num_workers=setup.workers,
        pin_memory=cuda,
    )
    return _plain_loop(setup, (torch.cat([view.to(setup.device, non_blocking=cuda) for view in p]) for p in loader))


def _plain_loop(setup: Setup, batches: Iterable[Tensor], *, compiled: bool = False) -> Run:
    """Forward, backward and update without Lightning, timed from the end of the warm-up."""
    network, device = setup.network, setup.device
    module = setup.module().to(device).train()
    if compiled:
        torch.compiler.reset()
        for part in module.hot:
            part.compile()
    optimiser = build_optimiser(
        setup.recipe.optimisation, module.trained(), batch=network.batch, steps=100, steps_per_epoch=10
    )["optimizer"]
    started = clock(device)
    for step, views in enumerate(islice(batches, setup.warmup + network.steps), start=1):
        with torch.autocast(device.type, torch.bfloat16):
            loss = module.loss(views)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step == setup.warmup:
            started = clock(device)
    return Run(network.steps * network.batch, clock(device) - started)


def suite(setup: Setup, images: Tensor, *, compiled: bool = False) -> Run:
    """Hallmark's own module, batches and trainer over two epochs: the turn between them is part of the time."""
    network = setup.network
    watch = _Stopwatch(setup.warmup, setup.device)
    accelerator = "gpu" if setup.device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(accelerator=accelerator, progress=False, compile=compiled)
        trainer = LightningTrainer(settings, Path(folder))
        batches = ResidentBatches(images, batch=network.batch, seed=0)
        trainer.fit(setup.module(), batches, epochs=2, callbacks=[watch])
    return Run((2 * network.steps - setup.warmup) * network.batch, watch.stopped - watch.started)


class _Stopwatch(Callback):
    """Runs from the end of the warm-up steps to the end of the last epoch, before the trainer's final checkpoint."""

    def __init__(self, warmup: int, device: torch.device) -> None:
        self.warmup = warmup
        self.device = device
        self.started = self.stopped = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 0 and batch_idx + 1 == self.warmup:
            self.started = clock(self.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stopped = clock(self.device)
