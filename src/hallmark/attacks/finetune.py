"""Fine-tuning on the attacker's labelled images."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hallmark.components import NEUTRAL
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.layers import reinitialise
from hallmark.optimisation import Training, require_batch

SCOPES = ("all", "last")


@dataclass(frozen=True)
class FineTuneAttack(Attack):
    """FTLL, FTAL, RTLL and RTAL (Uchida 2017; Adi 2018), by ``scope`` and ``reinitialise``.

    For a classifier the last layer is its head; for an encoder, which has none, it is the last stage.

    Args:
        epochs: Passes over the attacker's images.
        scope: ``last`` trains the last layer, ``all`` every layer.
        reinitialise: Whether the last layer starts from fresh weights.
        lr: Peak learning rate.
        batch: Images per step.
        weight_decay: See :class:`hallmark.optimisation.Training`, as for the next two.
        optimiser: ``adamw`` or ``sgd``.
        schedule: ``cosine`` or ``steps``.
    """

    epochs: int
    scope: str = "all"
    reinitialise: bool = False
    lr: float = 1e-3
    batch: int = 128
    weight_decay: float = 5e-4
    optimiser: str = field(default="adamw", metadata=NEUTRAL)
    schedule: str = field(default="cosine", metadata=NEUTRAL)

    name: ClassVar[str] = "finetune"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(allowed(self.scope, SCOPES, "finetune scope"))
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"finetune epochs must be a whole number of at least 0, got {self.epochs}")
        require_batch(self.batch, "finetune")
        _ = self._training  # refuses what it does not know

    @property
    def _training(self) -> Training:
        return Training(self.optimiser, self.lr, self.weight_decay, self.schedule)

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """Scope, whether the last layer was re-initialised, and what is unusual about optimiser and learning rate."""
        unusual = [] if self.optimiser == type(self).optimiser else [self.optimiser]
        unusual += [] if self.lr == type(self).lr else [f"lr {self.lr:g}"]
        return " ".join([f"epochs {self.scope}", *(["reinitialised"] if self.reinitialise else []), *unusual])

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The fine-tuned model."""
        from hallmark.attacks.labelled import with_head  # Lightning is needed here alone
        from hallmark.supervised import train_classifier

        model = victim.weights_module()
        if not self.epochs:
            return model
        classifier, last = with_head(model, attacker_data, trainer=trainer, generator=generator)
        if self.reinitialise:
            reinitialise(last, generator=generator)
        kept = [] if self.scope == "all" else [m for m in model.modules() if not any(m is x for x in last.modules())]
        parameters = list(classifier.parameters()) if self.scope == "all" else list(last.parameters())
        if self.scope == "last" and model is not classifier:  # an encoder's own head trains along
            parameters += list(classifier.head.parameters())  # type: ignore[union-attr]
        train_classifier(
            classifier,
            attacker_data,
            trained=parameters,
            epochs=int(self.epochs),
            batch=self.batch,
            training=self._training,
            trainer=trainer,
            seed=generator.initial_seed(),
            frozen=[m for m in kept if not list(m.children())],
        )
        return model.eval()
