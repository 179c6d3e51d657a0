"""Neural Cleanse: the trigger of the class that is suspiciously easy to reach, found and unlearnt."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.labelled import LABELLED_HOSTS, with_head
from hallmark.attacks.sample import draw_images
from hallmark.attacks.triggers import Trigger, smallest_trigger
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.models.inference import Answering
from hallmark.optimisation import Training, require_batch

CONSISTENT = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


@dataclass(frozen=True)
class NeuralCleanse(Attack):
    """Wang et al. (2019): seek the smallest trigger to each class, and unlearn those that are far too small.

    A class is suspicious if the L1 norm of its mask lies more than ``index`` deviations (1.4826 times the median
    absolute deviation over classes) below the median.  Then the network is trained on the attacker's images, of which
    a share bears one of the suspicious classes' triggers and keeps its right label.  Where no class is suspicious,
    there is nothing to unlearn and the model stays as it is.  An encoder is looked at through a head that is probed on
    its features, and trained behind it.

    Args:
        epochs: Passes over the images to unlearn; 0 leaves the model as it is.
        index: Deviations from which a class is suspicious; the authors'.
        steps: Steps of the search for each trigger.
        images: The attacker's images that triggers are sought on.
        success: Share of them that a trigger has to bring to its class.
        share: Share of the images that are stamped while unlearning; the authors'.
        search_lr: Learning rate of the search.
        lr: Peak learning rate of the training.
        batch: Images per step of the training.
    """

    epochs: int
    index: float = 2.0
    steps: int = 200
    images: int = 128
    success: float = 0.99
    share: float = 0.2
    search_lr: float = 0.1
    lr: float = 1e-3
    batch: int = 128

    name: ClassVar[str] = "neural_cleanse"
    hosts: ClassVar[frozenset[HostKind]] = LABELLED_HOSTS
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"neural_cleanse epochs must be a whole number of at least 0, got {self.epochs}")
        if not 0 <= self.index < math.inf or min(self.steps, self.images) < 1 or not self.search_lr > 0:
            raise ConfigError(
                "neural_cleanse needs a finite index ≥ 0, steps and images ≥ 1 and search_lr > 0, got "
                f"{self.index}, {self.steps}, {self.images} and {self.search_lr}"
            )
        if not (0 < self.success <= 1 and 0 < self.share <= 1):
            raise ConfigError(
                f"neural_cleanse success and share must lie in (0, 1], got {self.success} and {self.share}"
            )
        require_batch(self.batch, "neural_cleanse")
        _ = self._training  # refuses an impossible learning rate

    @property
    def _training(self) -> Training:
        return Training(lr=self.lr)

    def work(self, images: int) -> float:
        """The searches for ten classes, and the unlearning that may follow."""
        return 3.0 * (images * self.epochs + 10 * self.steps * self.images)

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """How long triggers were sought, on what, and when a class is suspicious."""
        return f"epochs triggers of {self.steps} steps on {self.images} images index {self.index:g}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model without its triggers.

        Raises:
            ConfigError: The attacker has fewer images, or labels of other classes than the stolen classifier's.
        """
        from hallmark.supervised import train_classifier  # Lightning, which planning does without

        model = victim.weights_module()
        if not self.epochs:
            return model
        rows = draw_images(attacker_data, self.images, "neural_cleanse.images", generator=generator)
        classifier, _ = with_head(model, attacker_data, trainer=trainer, generator=generator)
        seed = generator.initial_seed()
        shown = attacker_data.images[rows].to(victim.device).float() / 255
        triggers = self.seek(classifier, shown, attacker_data.classes, seed)
        found = [triggers[place] for place in suspicious(sizes(triggers), self.index)]
        if found:
            train_classifier(
                classifier,
                attacker_data,
                trained=classifier.parameters(),
                epochs=int(self.epochs),
                batch=self.batch,
                training=self._training,
                trainer=trainer,
                seed=seed,
                change=stamping([t for t in found if t is not None], self.share, derive_seed(seed, "stamp")),
            )
        return model.eval()

    def seek(self, classifier: nn.Module, images: Tensor, classes: int, seed: int) -> list[Trigger | None]:
        """The smallest trigger found to each class, or None where none was.

        Args:
            classifier: Maps images in [0, 1] to logits.
            images: ``(B, 3, H, W)`` in [0, 1].
            classes: Number of classes.
            seed: Seeds where each search starts.
        """
        answering = Answering(classifier)

        def to(target: int) -> Callable[[Tensor], tuple[Tensor, bool]]:
            labels = torch.full((len(images),), target, device=images.device)

            def effect(stamped: Tensor) -> tuple[Tensor, bool]:
                logits = answering(stamped).float()
                share = (logits.argmax(1) == target).float().mean().item()
                return -F.cross_entropy(logits, labels), share >= self.success

            return effect

        return [
            smallest_trigger(
                to(target),
                images,
                steps=self.steps,
                lr=self.search_lr,
                generator=generator_for(seed, "trigger", target),
            )
            for target in range(classes)
        ]


def sizes(triggers: Sequence[Trigger | None]) -> list[float]:
    """Means of the masks; 1, the whole image, where there is no trigger."""
    return [1.0 if trigger is None else trigger.size for trigger in triggers]


def suspicious(found: Sequence[float], index: float) -> list[int]:
    """Places of numbers more than ``index`` consistent median absolute deviations below the median, smallest first."""
    values = torch.tensor(found, dtype=torch.float64)
    below = values.quantile(0.5) - values
    deviation = CONSISTENT * below.abs().quantile(0.5)
    return [place for place in values.argsort().tolist() if below[place] > index * deviation and below[place] > 0]


def stamping(triggers: Sequence[Trigger], share: float, seed: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """What stamps a share of a batch's images, each with one of the triggers; of the seed and the step alone."""

    def change(images: Tensor, labels: Tensor, step: int) -> Tensor:
        rng = generator_for(seed, "batch", step)
        rows = torch.randperm(len(images), generator=rng)[: round(share * len(images))]
        which = torch.randint(len(triggers), (len(rows),), generator=rng)
        stamped = images.clone()
        for number, trigger in enumerate(triggers):
            mine = rows[which == number].to(images.device)
            laid = Trigger(trigger.mask.to(images.device), trigger.pattern.to(images.device))
            stamped[mine] = laid.stamp(images[mine])
        return stamped

    return change
