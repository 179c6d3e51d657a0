"""Fine-tuning on the attacker's labelled images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed

SCOPES = ("all", "last")


@dataclass(frozen=True)
class FineTuneAttack(Attack):
    """FTLL, FTAL, RTLL and RTAL (Uchida 2017; Adi 2018), by ``scope`` and ``reinitialise``.

    For a classifier the last layer is its head; for an encoder, which has none, it is the last stage.

    Args:
        epochs: Passes over the attacker's images.
        scope: ``last`` trains the last layer, ``all`` every layer.
        reinitialise: Whether the last layer starts from fresh weights.
        lr: Peak learning rate of AdamW.
        batch: Images per step.
        weight_decay: Decoupled weight decay.
    """

    epochs: int
    scope: str = "all"
    reinitialise: bool = False
    lr: float = 1e-3
    batch: int = 128
    weight_decay: float = 5e-4

    name: ClassVar[str] = "finetune"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(allowed(self.scope, SCOPES, "finetune scope"))
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"finetune epochs must be a whole number of at least 0, got {self.epochs}")

    @property
    def strength(self) -> float:
        """Epochs."""
        return float(self.epochs)

    @property
    def unit(self) -> str:
        """Scope, whether the last layer was re-initialised, and the learning rate where it is not the usual one."""
        rate = "" if self.lr == type(self).lr else f" lr {self.lr:g}"
        return f"epochs {self.scope}" + (" reinitialised" if self.reinitialise else "") + rate

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The fine-tuned model."""
        from hallmark.attacks.labelled import reinitialise, with_head  # Lightning is needed here alone
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
            lr=self.lr,
            batch=self.batch,
            weight_decay=self.weight_decay,
            trainer=trainer,
            seed=generator.initial_seed(),
            frozen=[m for m in kept if not list(m.children())],
        )
        return model.eval()
