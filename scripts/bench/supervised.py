"""Images a second of supervised training: the bare step, and the same step in the suite on resident data."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.augmentation import noise
from bench.measure import Run, Spread, Stopwatch, interleave, rates, ratio, say, timed_steps
from hallmark.core.random import generator
from hallmark.data.augment import apply, draw
from hallmark.data.resident import ResidentBatches
from hallmark.optimisation import Training
from hallmark.pretrain.hosts import fresh_classifier
from hallmark.pretrain.recipe import CROP_AND_FLIP, HostRecipe
from hallmark.supervised import Supervised
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CLASSES = 10
TRAINING = Training(optimiser="sgd", lr=0.1, weight_decay=5e-4, schedule="steps")
"""As ``conf/pretrain/supervised.yaml`` has it."""


@dataclass(frozen=True)
class Setup:
    """One classifier on one machine.

    Attributes:
        host: Architecture; the default is the host of the ``uchida`` experiments.
        batch: Images a step.
        steps: Steps that are timed, and batches of an epoch of the suite.
        warmup: Steps before the clock starts, at most ``steps``.
        size: Side of the images.
        device: Where training runs.
    """

    host: HostRecipe
    batch: int
    steps: int
    warmup: int
    size: int
    device: torch.device

    def module(self) -> Supervised:
        """A fresh classifier."""
        classifier = fresh_classifier(self.host, CLASSES, seed=0)
        return Supervised(classifier, classifier.parameters(), training=TRAINING, view=CROP_AND_FLIP, seed=0)


@dataclass(frozen=True)
class Throughput:
    """Images a second, and the suite's over those of forward, backward and update alone."""

    bare_images_per_s: Spread
    suite_images_per_s: Spread
    suite_over_bare: Spread


@dataclass(frozen=True)
class Supervision:
    """Both ways; ``compiled`` is behind ``torch.compile``, whose own time is not counted, where that was asked for."""

    backbone: str
    width: int | None
    batch: int
    steps: int
    eager: Throughput
    compiled: Throughput | None


def compare(setup: Setup, repeats: int, *, compiled: bool) -> Supervision:
    """All ways in turn."""
    say(f"supervised: {setup.host.backbone}, batch {setup.batch}, {setup.steps} steps")
    images = noise(setup.batch * setup.steps, setup.size)
    labels = torch.randint(0, CLASSES, (len(images),), generator=generator(0, "labels"))
    alternatives: dict[str, Callable[[], Run]] = {}
    for what in ("", ", compiled") if compiled else ("",):
        for name, way in (("bare", bare), ("suite", suite)):
            alternatives[name + what] = partial(way, setup, images, labels, compiled=bool(what))
    runs = interleave(alternatives, repeats)
    return Supervision(
        backbone=setup.host.backbone,
        width=setup.host.width,
        batch=setup.batch,
        steps=setup.steps,
        eager=_throughput(runs, ""),
        compiled=_throughput(runs, ", compiled") if compiled else None,
    )


def _throughput(runs: dict[str, list[Run]], what: str) -> Throughput:
    bare, suite = runs[f"bare{what}"], runs[f"suite{what}"]
    return Throughput(rates(bare), rates(suite), ratio(suite, bare))


def bare(setup: Setup, images: Tensor, labels: Tensor, *, compiled: bool) -> Run:
    """Forward, backward and update without Lightning, on views of one batch that lie on the device already."""
    device = setup.device
    drawn = draw(CROP_AND_FLIP, setup.batch, (setup.size, setup.size), generator=generator(0, "views"))
    views, answers = apply(images[: setup.batch], drawn).to(device), labels[: setup.batch].to(device)
    classifier = setup.module().classifier.to(device).train()
    if compiled:
        torch.compiler.reset()
        classifier.compile()
    optimiser = TRAINING.optimiser_for(classifier.parameters(), 100)["optimizer"]
    seconds = timed_steps(
        repeat(views),
        lambda images: F.cross_entropy(classifier(images).float(), answers),
        optimiser,
        device,
        warmup=setup.warmup,
        steps=setup.steps,
    )
    return Run(setup.steps * setup.batch, seconds)


def suite(setup: Setup, images: Tensor, labels: Tensor, *, compiled: bool) -> Run:
    """Hallmark's own module, batches and trainer over two epochs: the turn between them is part of the time."""
    watch = Stopwatch(setup.warmup, setup.device)
    settings = TrainerSettings(accelerator="gpu" if setup.device.type == "cuda" else "cpu", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = LightningTrainer(replace(settings, compile=compiled), Path(folder))
        batches = ResidentBatches(images, labels=labels, batch=setup.batch, seed=0)
        trainer.fit(setup.module(), batches, epochs=2, callbacks=[watch])
    return Run((2 * setup.steps - setup.warmup) * setup.batch, watch.stopped - watch.started)
