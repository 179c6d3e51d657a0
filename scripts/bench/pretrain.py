"""Pairs a second of SimCLR: the bare training step, the same step in the suite, and two pipelines of lightly's views.

A pair is two views of one image.  All train the same network with the same loss.  Bare, suite and "lightly" take the
very same step, with the same optimiser, in bfloat16 where that is native and channels last: "lightly" only gets its
views another way, from lightly's transform behind a torch loader, so that the suite can be faster than it by no more
than the bare step is.
"lightly's example" is the whole pipeline as lightly's own SimCLR example has it: their transform and a loader, and a
plain float32 step of contiguous images, one view after the other, under pytorch_lightning's defaults.  Each starts
afresh every round and is timed after its warm-up steps.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from bench.augmentation import RECIPE, Pictures, noise
from bench.measure import Run, Spread, Stopwatch, interleave, rates, ratio, say, timed_steps
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
    """The bare step and the suite behind ``torch.compile``, whose own time is not counted; no other way is compiled."""

    bare_pairs_per_s: Spread
    suite_pairs_per_s: Spread
    suite_over_compiled_bare: Spread
    suite_over_bare: Spread
    suite_over_lightly: Spread
    suite_over_lightly_example: Spread


@dataclass(frozen=True)
class Throughput:
    """Pairs a second of the ways to train one network, and their ratios; ``compiled`` where that was asked for.

    ``suite_over_bare`` is what the suite costs beside the arithmetic of the step.  ``suite_over_lightly`` is to the
    same fast step behind lightly's transform and loader: what resident views gain, at most ``bare_over_lightly``.
    ``suite_over_lightly_example`` is to lightly's pipeline as its own example has it: what a user gains in all.
    """

    batch: int
    steps: int
    bare_pairs_per_s: Spread
    suite_pairs_per_s: Spread
    lightly_pairs_per_s: Spread
    lightly_example_pairs_per_s: Spread
    suite_over_bare: Spread
    suite_over_lightly: Spread
    bare_over_lightly: Spread
    suite_over_lightly_example: Spread
    compiled: Compiled | None


def compare(setup: Setup, repeats: int, *, compiled: bool) -> Throughput:
    """All ways in turn."""
    network = setup.network
    say(f"pretrain: {network.host.backbone}, batch {network.batch}, {network.steps} steps")
    images = noise(network.batch * network.steps, setup.size)
    pictures = Pictures(images)
    alternatives: dict[str, Callable[[], Run]] = {
        "bare": partial(bare, setup, images),
        "suite": partial(suite, setup, images),
        "lightly": partial(lightly, setup, pictures),
        "lightly's example": partial(lightly_example, setup, pictures),
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
        lightly_example_pairs_per_s=rates(runs["lightly's example"]),
        suite_over_bare=ratio(runs["suite"], runs["bare"]),
        suite_over_lightly=ratio(runs["suite"], runs["lightly"]),
        bare_over_lightly=ratio(runs["bare"], runs["lightly"]),
        suite_over_lightly_example=ratio(runs["suite"], runs["lightly's example"]),
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
        suite_over_lightly_example=ratio(suite, runs["lightly's example"]),
    )


def bare(setup: Setup, images: Tensor, *, compiled: bool = False) -> Run:
    """The step alone, on views that lie on the device already."""
    batch = images[: setup.network.batch].to(setup.device)
    views = two_views(batch, (RECIPE, RECIPE), generator=generator(0, "views"))
    return _plain_loop(setup, (views for _ in range(setup.warmup + setup.network.steps)), compiled=compiled)


def lightly(setup: Setup, pictures: Pictures) -> Run:
    """The step in a plain loop over a torch loader of lightly's views, whose workers are busy to the end."""
    cuda = setup.device.type == "cuda"
    loader = _loader(setup, pictures, pin_memory=cuda)
    return _plain_loop(setup, (torch.cat([view.to(setup.device, non_blocking=cuda) for view in p]) for p in loader))


def _loader(setup: Setup, pictures: Pictures, **options: Any) -> DataLoader[list[Tensor]]:
    """Lightly's views of one run's images, and of those that the loader prefetches.

    Without these the last steps would have the cores alone.
    """
    steps = setup.warmup + setup.network.steps + 2 * setup.workers
    return DataLoader(
        pictures,
        batch_size=setup.network.batch,
        sampler=RandomSampler(pictures, replacement=True, num_samples=setup.network.batch * steps),
        num_workers=setup.workers,
        **options,
    )


class Example(pl.LightningModule):
    """SimCLR as lightly's example for pytorch_lightning has it, around a given backbone.

    Args:
        backbone: Maps images to features.
        head: Maps features to projections.
        temperature: τ.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.criterion = NTXentLoss(temperature)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One view after the other, then the loss."""
        first, second = (self.head(self.backbone(view).flatten(start_dim=1)) for view in batch)
        loss: Tensor = self.criterion(first, second)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Their optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


def lightly_example(setup: Setup, pictures: Pictures) -> Run:
    """Lightly's example at its own settings, but for the logger, checkpoints and progress bar, which are left out."""
    network, options = setup.network, setup.recipe.options
    encoder = setup.module().encoder
    head = SimCLRProjectionHead(encoder.num_features, options["hidden"], options["projection"])
    module = Example(encoder.backbone.to(memory_format=torch.contiguous_format), head, options["temperature"])
    watch = Stopwatch(setup.warmup, setup.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if setup.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=setup.warmup + network.steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
            default_root_dir=folder,
        )
        trainer.fit(module, _loader(setup, pictures))
    return Run(network.steps * network.batch, watch.stopped - watch.started)


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
    seconds = timed_steps(batches, module.loss, optimiser, device, warmup=setup.warmup, steps=network.steps)
    return Run(network.steps * network.batch, seconds)


def suite(setup: Setup, images: Tensor, *, compiled: bool = False) -> Run:
    """Hallmark's own module, batches and trainer over two epochs: the turn between them is part of the time."""
    network = setup.network
    watch = Stopwatch(setup.warmup, setup.device)
    accelerator = "gpu" if setup.device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(accelerator=accelerator, progress=False, compile=compiled)
        trainer = LightningTrainer(settings, Path(folder))
        batches = ResidentBatches(images, batch=network.batch, seed=0)
        trainer.fit(setup.module(), batches, epochs=2, callbacks=[watch])
    return Run((2 * network.steps - setup.warmup) * network.batch, watch.stopped - watch.started)
