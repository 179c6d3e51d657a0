"""Whether resident views train as good an encoder as lightly's pipeline: kNN accuracy after equally many epochs.

Both train the same SimCLR network from the same weights with the same loss, optimiser and schedule, in bfloat16 where
that is native.  One gets the suite's resident batches and views under its own trainer, the other shuffled batches of
lightly's transform from a torch loader in a plain loop.  Orders and views are drawn by each in its own way, so a pair
of runs of one seed shares its initial weights and nothing more.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.augmentation import RECIPE, Pictures
from bench.measure import Run, interleave, measured, say
from hallmark.core.random import derive_seed
from hallmark.data.catalogue import load
from hallmark.data.images import ImageSet
from hallmark.errors import DataError
from hallmark.precision import fast
from hallmark.pretrain.base import build_optimiser
from hallmark.pretrain.recipe import HostRecipe, Recipe
from hallmark.pretrain.train import build_module, pretrain
from hallmark.tasks.features import encode
from hallmark.tasks.probe import nearest_labels
from hallmark.training import LightningTrainer
from hallmark.training_settings import TrainerSettings

CPU = torch.device("cpu")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Scene:
    """What is trained, and on what.

    Attributes:
        host: Architecture.
        train: Images that the encoder is trained on; with their labels they are the kNN's bank.
        test: Images whose labels the kNN tells.
        batch: Pairs a step.
        epochs: Passes over the images.
        workers: Processes of lightly's loader.
    """

    host: HostRecipe
    train: ImageSet
    test: ImageSet
    batch: int
    epochs: int
    workers: int

    @property
    def recipe(self) -> Recipe:
        """SimCLR as ``conf/pretrain/simclr.yaml`` has it."""
        options = {"temperature": 0.5, "hidden": 512, "projection": 128}
        return Recipe("simclr", self.epochs, self.batch, options, first_view=RECIPE, second_view=RECIPE)

    def accuracy(self, encoder: nn.Module) -> float:
        """Share of test images whose label the 20 nearest training images tell."""
        bank, queries = encode(encoder.eval(), self.train.images), encode(encoder, self.test.images)
        told = nearest_labels(queries, bank, self.train.labels, self.train.classes, k=20, temperature=0.1)
        return float((told == self.test.labels).float().mean())


def pictures(root: Path | None, images: int, size: int) -> tuple[ImageSet, ImageSet]:
    """Training images and half as many to test on: CIFAR-10 where it lies under ``root``, else drawn ones."""
    for name in ("cifar10", "procedural"):
        try:
            counts = {"train": images, "test": max(1, images // 2)}
            train, test = (load(name, part, root=root, size=size, limit=count) for part, count in counts.items())
            return train, test
        except DataError as error:
            say(f"parity: {error}")
    raise AssertionError("drawn images need no files")


@dataclass(frozen=True)
class Parity:
    """kNN accuracies by seed, and the suite's minus lightly's.

    ``low`` and ``high`` bound the mean difference with ``confidence``, by Student's t over the seeds (nothing can be
    said of a single seed, so they are null); ``equal`` says whether 0 lies between them.  ``untrained_accuracies`` are
    those of the initial weights: both must be well above them, or equality means nothing.
    """

    data: str
    images: int
    test_images: int
    batch: int
    epochs: int
    seeds: int
    suite_accuracies: tuple[float, ...]
    lightly_accuracies: tuple[float, ...]
    untrained_accuracies: tuple[float, ...]
    differences: tuple[float, ...]
    mean_difference: float
    confidence: float
    low: float | None
    high: float | None
    equal: bool | None
    suite_seconds: float
    lightly_seconds: float


def compare(scene: Scene, seeds: int) -> Parity:
    """Both pipelines in turn, seed by seed; the seconds are means over them."""
    say(f"parity: {len(scene.train)} images of {scene.train.name}, {scene.epochs} epochs, {seeds} seeds")
    pairs = scene.batch * scene.epochs * (len(scene.train) // scene.batch)
    ways = {"suite": suite, "lightly": lightly}
    alternatives: dict[str, Callable[[], Run]] = {
        name: partial(measured, partial(_next, partial(way, scene), iter(range(seeds))), pairs, CPU)
        for name, way in ways.items()
    }
    runs = interleave(alternatives, seeds)
    ours, theirs = ([scene.accuracy(run.result) for run in runs[name]] for name in ways)
    untrained = [scene.accuracy(build_module(scene.host, scene.recipe, seed=seed).encoder) for seed in range(seeds)]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high = interval(differences) if seeds > 1 else (None, None)
    return Parity(
        data=scene.train.name,
        images=len(scene.train),
        test_images=len(scene.test),
        batch=scene.batch,
        epochs=scene.epochs,
        seeds=seeds,
        suite_accuracies=tuple(ours),
        lightly_accuracies=tuple(theirs),
        untrained_accuracies=tuple(untrained),
        differences=tuple(differences),
        mean_difference=statistics.mean(differences),
        confidence=CONFIDENCE,
        low=low,
        high=high,
        equal=None if low is None or high is None else low <= 0 <= high,
        suite_seconds=statistics.mean(run.seconds for run in runs["suite"]),
        lightly_seconds=statistics.mean(run.seconds for run in runs["lightly"]),
    )


def interval(differences: list[float]) -> tuple[float, float]:
    """Student's t interval of the mean of two or more paired differences."""
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences)
    middle = statistics.mean(differences)
    return middle - float(half), middle + float(half)


def _next(train: Callable[[int], nn.Module], seeds: Iterator[int]) -> nn.Module:
    return train(next(seeds))


def suite(scene: Scene, seed: int) -> nn.Module:
    """The suite's own pretraining."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = LightningTrainer(TrainerSettings(progress=False), Path(folder))
        return pretrain(scene.host, scene.recipe, scene.train.images, trainer=trainer, seed=seed)


def lightly(scene: Scene, seed: int) -> nn.Module:
    """A plain loop over shuffled batches of lightly's views."""
    module = build_module(scene.host, scene.recipe, seed=seed).train()
    loader: DataLoader[list[Tensor]] = DataLoader(
        Pictures(scene.train.images),  # type: ignore[arg-type]
        batch_size=scene.batch,
        shuffle=True,
        drop_last=True,
        num_workers=scene.workers,
        generator=torch.Generator().manual_seed(derive_seed(seed, "lightly")),  # workers are seeded from it, too
    )
    each = len(loader)
    built = build_optimiser(
        scene.recipe.optimisation,
        module.trained(),
        batch=scene.batch,
        steps=scene.epochs * each,
        steps_per_epoch=each,
    )
    optimiser, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for _ in range(scene.epochs):
        for views in loader:
            with fast(torch.device("cpu")):
                loss = module.loss(torch.cat(views))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    return module.encoder
