"""Strong weight decay, which forgets what training does not renew, then recovery."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.attacks.labelled import LABELLED_HOSTS, with_head
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.optimisation import Training, require_batch


@dataclass(frozen=True)
class Regularise(Attack):
    """The regularisation attack (Lukas et al. 2022, after Shafieinejad et al. 2021): train under a strong L2 penalty.

    All layers are trained on the attacker's labelled images, by ``sgd``, whose weight decay is an L2 penalty; then
    again without the strong penalty, to win back what it cost.

    Args:
        decay: Weight of the penalty: ``decay · w`` is added to the gradient.  0 leaves the model as it is.
        epochs: Passes over the images under it.
        recovery_epochs: Passes afterwards under the usual 0.0005; 0 for none.
        lr: Peak learning rate of both.
        batch: Images per step.
    """

    decay: float
    epochs: int = 5
    recovery_epochs: int = 5
    lr: float = 0.01
    batch: int = 128

    name: ClassVar[str] = "regularise"
    hosts: ClassVar[frozenset[HostKind]] = LABELLED_HOSTS
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise ConfigError(f"regularise decay must be a finite number of at least 0, got {self.decay}")
        if self.epochs < 1 or self.recovery_epochs < 0:
            raise ConfigError(
                f"regularise needs epochs ≥ 1 and recovery_epochs ≥ 0, got {self.epochs} and {self.recovery_epochs}"
            )
        require_batch(self.batch, "regularise")
        _ = self._phases  # refuses an impossible learning rate

    @property
    def _phases(self) -> list[tuple[int, Training]]:
        """Epochs and schedule of both."""
        return [
            (self.epochs, Training("sgd", self.lr, self.decay)),
            (self.recovery_epochs, Training("sgd", self.lr)),
        ]

    def work(self, images: int) -> float:
        """Both parts."""
        return 3.0 * images * (self.epochs + self.recovery_epochs)

    @property
    def strength(self) -> float:
        """Weight of the penalty."""
        return self.decay

    @property
    def unit(self) -> str:
        """How long, and what follows; the learning rate where it is not the usual one."""
        lr = "" if self.lr == type(self).lr else f" lr {self.lr:g}"
        return f"weight decay {self.epochs} epochs then {self.recovery_epochs} without{lr}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The recovered model; an encoder keeps one head through both phases.

        Raises:
            ConfigError: The attacker's labels are of other classes than the stolen classifier's.
        """
        from hallmark.supervised import train_classifier  # Lightning, which planning does without

        model = victim.weights_module()
        if not self.decay:
            return model
        classifier, _ = with_head(model, attacker_data, trainer=trainer, generator=generator)
        for phase, (epochs, training) in enumerate(self._phases):
            if epochs:
                train_classifier(
                    classifier,
                    attacker_data,
                    trained=classifier.parameters(),
                    epochs=epochs,
                    batch=self.batch,
                    training=training,
                    trainer=trainer,
                    seed=derive_seed(generator.initial_seed(), "phase", phase),
                )
        return model.eval()
