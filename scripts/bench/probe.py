"""Linear probes: all learning rates of a task as one batched problem against one torch optimiser after another.

One after another they are trained in two ways: on features in memory, by index, and behind torch's DataLoader over a
TensorDataset, as probes are commonly trained.  Initial weights, optimiser and schedule are the same in all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bench.measure import Run, Spread, interleave, measured, ratio, say, seconds
from hallmark.core.random import generator
from hallmark.tasks.heads import HeadRecipe, train_head

CPU = torch.device("cpu")
"""Probes are trained on cached features, which the suite keeps on the CPU whatever device encoded them."""


@dataclass(frozen=True)
class Task:
    """Features ``(N, D)`` with labels ``(N,)``, to train and to test on."""

    seed: int
    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor

    def accuracy(self, head: nn.Module) -> float:
        """Top-1 accuracy on the test features."""
        with torch.no_grad():
            return int((head(self.test_features).argmax(1) == self.test_labels).sum()) / len(self.test_labels)


@dataclass(frozen=True)
class Probes:
    """Seconds for all probes each way; ``speed_up`` is one by one over batched, ``speed_up_over_loader`` with a loader.

    The accuracies are of each task's best head, chosen on its held-out features.  ``largest_difference`` is between
    batched and one by one, which see the same batches, ``mean_difference_to_loader`` between the means over tasks of
    batched and with a loader, which draws its own.
    """

    tasks: int
    rates: tuple[float, ...]
    features: int
    images: int
    classes: int
    batched_seconds: Spread
    one_by_one_seconds: Spread
    loader_seconds: Spread
    speed_up: Spread
    speed_up_over_loader: Spread
    batched_accuracies: tuple[float, ...]
    one_by_one_accuracies: tuple[float, ...]
    loader_accuracies: tuple[float, ...]
    largest_difference: float
    mean_difference_to_loader: float


def compare(*, tasks: int, recipe: HeadRecipe, features: int, images: int, classes: int, repeats: int) -> Probes:
    """Every rate of ``recipe`` on each of ``tasks`` Gaussian mixtures."""
    say(f"probe: {tasks} tasks x {len(recipe.rates)} rates, {images} features of {features} dimensions")
    given = [mixture(seed, features, images, classes) for seed in range(tasks)]
    count = tasks * len(recipe.rates)
    alternatives: dict[str, Callable[[], Run]] = {
        name: partial(measured, partial(_all, train, given, classes, recipe), count, CPU)
        for name, train in (("batched", batched), ("one by one", one_by_one), ("with a loader", with_a_loader))
    }
    runs = interleave(alternatives, repeats)
    together, apart, loaded = runs["batched"], runs["one by one"], runs["with a loader"]
    differences = [abs(a - b) for a, b in zip(together[0].result, apart[0].result, strict=True)]
    return Probes(
        tasks=tasks,
        rates=recipe.rates,
        features=features,
        images=images,
        classes=classes,
        batched_seconds=seconds(together),
        one_by_one_seconds=seconds(apart),
        loader_seconds=seconds(loaded),
        speed_up=ratio(together, apart),
        speed_up_over_loader=ratio(together, loaded),
        batched_accuracies=together[0].result,
        one_by_one_accuracies=apart[0].result,
        loader_accuracies=loaded[0].result,
        largest_difference=max(differences),
        mean_difference_to_loader=abs(mean(together[0].result) - mean(loaded[0].result)),
    )


def mixture(seed: int, features: int, images: int, classes: int) -> Task:
    """One Gaussian a class, near enough to one another that no probe is perfect; a fifth is for testing."""
    rng = generator(seed, "mixture")
    centres = torch.randn(classes, features, generator=rng) * 2.5 / features**0.5
    labels = torch.randint(0, classes, (images + images // 4,), generator=rng)
    points = centres[labels] + torch.randn(len(labels), features, generator=rng)
    return Task(seed, points[:images], labels[:images], points[images:], labels[images:])


Train = Callable[[Task, int, HeadRecipe], nn.Module]


def _all(train: Train, tasks: Sequence[Task], classes: int, recipe: HeadRecipe) -> tuple[float, ...]:
    return tuple(task.accuracy(train(task, classes, recipe)) for task in tasks)


def batched(task: Task, classes: int, recipe: HeadRecipe) -> nn.Module:
    """The suite's way: one problem for all rates."""
    return train_head(task.features, task.labels, classes, recipe, generator=generator(task.seed, "head"))


def one_by_one(task: Task, classes: int, recipe: HeadRecipe) -> nn.Module:
    """The same linear heads, draws and schedule, each by its own optimiser; the best on the held-out features."""
    return _best(task, classes, recipe, _by_index)


def with_a_loader(task: Task, classes: int, recipe: HeadRecipe) -> nn.Module:
    """The same heads and schedule, each by its own optimiser, its batches put together by torch's DataLoader."""
    return _best(task, classes, recipe, _by_loader)


Epoch = Iterable[tuple[Tensor, Tensor]]
Epochs = Callable[[Tensor, Tensor, int, torch.Generator], Callable[[], Epoch]]
"""From training features, labels, batch size and generator to what makes each epoch's batches."""


def _by_index(x: Tensor, y: Tensor, batch: int, rng: torch.Generator) -> Callable[[], Epoch]:
    def epoch() -> Epoch:
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // batch * batch].view(-1, batch):
            yield x[rows], y[rows]

    return epoch


def _by_loader(x: Tensor, y: Tensor, batch: int, rng: torch.Generator) -> Callable[[], Epoch]:
    loader = DataLoader(TensorDataset(x, y), batch, shuffle=True, drop_last=True, generator=rng)
    return lambda: loader


def _best(task: Task, classes: int, recipe: HeadRecipe, epochs: Epochs) -> nn.Module:
    trained = [_one(task, classes, recipe, rate, epochs) for rate in recipe.rates]
    return max(trained, key=lambda pair: pair[0])[1]


def _one(task: Task, classes: int, recipe: HeadRecipe, rate: float, epochs: Epochs) -> tuple[float, nn.Module]:
    """One head and its accuracy on the held-out features."""
    rng = generator(task.seed, "head")
    centre, std = task.features.mean(0), task.features.std(0)
    order = torch.randperm(len(task.features), generator=rng)
    held, train = order.tensor_split([max(1, int(recipe.held_out * len(order)))])
    x, y = (task.features[train] - centre) / std, task.labels[train]
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(x.shape[1], classes, generator=rng).T * 0.1 * (2 / x.shape[1]) ** 0.5)
        head.bias.zero_()
    batch = min(recipe.batch, len(x))
    optimiser = torch.optim.Adam(
        head.parameters(), rate, weight_decay=recipe.weight_decay, decoupled_weight_decay=True, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * (len(x) // batch))
    epoch = epochs(x, y, batch, rng)
    for _ in range(recipe.epochs):
        for features, labels in epoch():
            optimiser.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        correct = int((head((task.features[held] - centre) / std).argmax(1) == task.labels[held]).sum())
    return correct / len(held), _Standardised(head, centre, std)


class _Standardised(nn.Module):
    """A head on standardised features, as a head on raw ones."""

    def __init__(self, head: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.head, self.mean, self.std = head, mean, std

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head((features - self.mean) / self.std)
        return logits
