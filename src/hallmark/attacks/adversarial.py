"""Adversarial training: the network learns to answer rightly whatever small change its images suffer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.labelled import LABELLED_HOSTS, with_head
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core import generator as generator_for
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.optimisation import Training, require_batch


@dataclass(frozen=True)
class AdversarialTraining(Attack):
    """Madry et al. (2018): train on images that projected gradient descent made as hard as it could.

    Marks that rest on answers near a decision boundary, or on a faint pattern, are answers to small changes.  All
    layers are trained; an encoder behind a head that is probed on its features first.

    Args:
        epochs: Passes over the attacker's labelled images; 0 leaves the model as it is.
        epsilon: Most that a pixel changes, in grey levels of 255; the authors' on CIFAR-10, like the next two.
        steps: Steps of the ascent, from a random start.
        step: Length of a step, in grey levels.
        lr: Peak learning rate of the training.
        batch: Images per step of the training.
    """

    epochs: int
    epsilon: float = 8.0
    steps: int = 7
    step: float = 2.0
    lr: float = 1e-3
    batch: int = 128

    name: ClassVar[str] = "adversarial_training"
    hosts: ClassVar[frozenset[HostKind]] = LABELLED_HOSTS
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"adversarial_training epochs must be a whole number of at least 0, got {self.epochs}")
        if not 0 < self.epsilon <= 255 or self.steps < 1 or not 0 < self.step <= 255:
            raise ConfigError(
                "adversarial_training needs epsilon and step in (0, 255] grey levels and steps ≥ 1, got "
                f"{self.epsilon}, {self.step} and {self.steps}"
            )
        require_batch(self.batch, "adversarial_training")
        _ = self._training  # refuses an impossible learning rate

    @property
    def _training(self) -> Training:
        return Training(lr=self.lr)

    def work(self, images: int) -> float:
        """Each step of training is preceded by those of the attack on its images."""
        return 3.0 * images * self.epochs * (1 + self.steps)

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """Bound and steps; the learning rate where it is not the usual one."""
        lr = "" if self.lr == type(self).lr else f" lr {self.lr:g}"
        return f"epochs pgd {self.epsilon:g} levels {self.steps} steps{lr}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The hardened model.

        Raises:
            ConfigError: The attacker's labels are of other classes than the stolen classifier's.
        """
        from hallmark.supervised import train_classifier  # Lightning, which planning does without

        model = victim.weights_module()
        if not self.epochs:
            return model
        classifier, _ = with_head(model, attacker_data, trainer=trainer, generator=generator)
        seed = generator.initial_seed()
        train_classifier(
            classifier,
            attacker_data,
            trained=classifier.parameters(),
            epochs=int(self.epochs),
            batch=self.batch,
            training=self._training,
            trainer=trainer,
            seed=seed,
            change=self._harder(classifier, seed),
        )
        return model.eval()

    def _harder(self, classifier: nn.Module, seed: int) -> Callable[[Tensor, Tensor, int], Tensor]:
        def change(images: Tensor, labels: Tensor, step: int) -> Tensor:
            rng = generator_for(seed, "start", step)
            classifier.eval()  # so that BatchNorm's statistics are not those of images on the way
            try:
                return ascend(
                    classifier,
                    images,
                    labels,
                    epsilon=self.epsilon / 255,
                    steps=self.steps,
                    step=self.step / 255,
                    generator=rng,
                )
            finally:
                classifier.train()

        return change


def ascend(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient descent on minus the loss (Madry et al. 2018, eq. 2): images harder to answer rightly.

    Args:
        classifier: Maps images in [0, 1] to logits.
        images: ``(B, 3, H, W)`` in [0, 1].
        labels: ``(B,)``.
        epsilon: Most that a pixel changes.
        steps: Sign steps.
        step: Their length.
        generator: Draws the start, uniform within the bound.

    Returns:
        Images in [0, 1] within ``epsilon`` of the given ones.
    """
    start = (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
    low, high = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    changed = torch.clamp(images + epsilon * start, low, high)
    for _ in range(steps):
        with torch.enable_grad():
            changed.requires_grad_(True)
            loss = F.cross_entropy(classifier(changed).float(), labels)
            (gradient,) = torch.autograd.grad(loss, changed)
        changed = torch.clamp(changed.detach() + step * gradient.sign(), low, high)
    return changed
