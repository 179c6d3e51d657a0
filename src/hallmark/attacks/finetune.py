"""Fine-tuning on the attacker's labelled images, gently or at REFIT's learning rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hallmark.attacks.consolidate import IMAGES, Consolidation, fisher
from hallmark.attacks.labelled import LABELLED_HOSTS, label_rest, with_head
from hallmark.components import NEUTRAL
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.layers import reinitialise
from hallmark.optimisation import Training, require_batch

SCOPES = ("all", "last")


@dataclass(frozen=True)
class FineTuneAttack(Attack):
    """FTLL, FTAL, RTLL and RTAL (Uchida 2017; Adi 2018), by ``scope`` and ``reinitialise``; REFIT (Chen et al. 2021).

    For a classifier the last layer is its head; for an encoder, which has none, it is the last stage.

    REFIT is FTAL with ``sgd``, a large ``lr`` that falls along an ``exponential`` schedule, and two options that keep
    the network useful: elastic weight consolidation (``ewc``), and images without labels, which the stolen network
    labels itself (``labelled`` below 1).  A batch holds both kinds of image in the proportion in which there are; in
    the authors' program the numbers of both are set.

    Args:
        epochs: Passes over the attacker's images.
        scope: ``last`` trains the last layer, ``all`` every layer.
        reinitialise: Whether the last layer starts from fresh weights.
        lr: Peak learning rate.
        batch: Images per step.
        weight_decay: See :class:`hallmark.optimisation.Training`, as for the next two.
        optimiser: ``adamw`` or ``sgd``.
        schedule: ``cosine``, ``steps`` or ``exponential``.
        ewc: λ of :class:`hallmark.attacks.consolidate.Consolidation`, which spares a re-initialised layer; 0 for none.
        labelled: Share of the attacker's images whose labels it has; the others bear the stolen network's answers.
    """

    epochs: int
    scope: str = "all"
    reinitialise: bool = False
    lr: float = 1e-3
    batch: int = 128
    weight_decay: float = 5e-4
    optimiser: str = field(default="adamw", metadata=NEUTRAL)
    schedule: str = field(default="cosine", metadata=NEUTRAL)
    ewc: float = field(default=0.0, metadata=NEUTRAL)
    labelled: float = field(default=1.0, metadata=NEUTRAL)

    name: ClassVar[str] = "finetune"
    hosts: ClassVar[frozenset[HostKind]] = LABELLED_HOSTS
    access: ClassVar[Access] = Access.WEIGHTS
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ConfigError(allowed(self.scope, SCOPES, "finetune scope"))
        if self.epochs < 0 or int(self.epochs) != self.epochs:
            raise ConfigError(f"finetune epochs must be a whole number of at least 0, got {self.epochs}")
        if not 0 <= self.ewc < math.inf or not 0 < self.labelled <= 1:
            raise ConfigError(
                f"finetune needs a finite ewc of at least 0 and labelled in (0, 1], got {self.ewc} and {self.labelled}"
            )
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
        """Scope, whether the last layer was re-initialised, and what is unusual about learning rate and labels."""
        unusual = [] if self.optimiser == type(self).optimiser else [self.optimiser]
        unusual += [] if self.lr == type(self).lr else [f"lr {self.lr:g}"]
        unusual += ["exponential"] if self.schedule == "exponential" else []
        unusual += [f"ewc {self.ewc:g}"] if self.ewc else []
        unusual += [f"labelled {self.labelled:g}"] if self.labelled < 1 else []
        return " ".join([f"epochs {self.scope}", *(["reinitialised"] if self.reinitialise else []), *unusual])

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The fine-tuned model.

        Raises:
            ConfigError: The attacker has no label at all, or labels of other classes than the stolen classifier's.
        """
        from hallmark.supervised import train_classifier  # Lightning is needed here alone

        model = victim.weights_module()
        if not self.epochs:
            return model
        classifier, last, attacker_data = self._begun(model, attacker_data, trainer, generator)
        kept = [] if self.scope == "all" else [m for m in model.modules() if not any(m is x for x in last.modules())]
        parameters = list(classifier.parameters()) if self.scope == "all" else list(last.parameters())
        if self.scope == "last" and model is not classifier:  # an encoder's own head trains along
            parameters += list(classifier.head.parameters())  # type: ignore[union-attr]
        penalty = None
        if self.ewc:
            fresh = set(last.parameters()) if self.reinitialise else set()
            penalty = self._consolidation(
                classifier, [p for p in parameters if p not in fresh], attacker_data, generator
            )
        if self.reinitialise:
            reinitialise(last, generator=generator)
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
            penalty=penalty,
        )
        return model.eval()

    def _begun(
        self, model: nn.Module, data: Images, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module, Images]:
        """The classifier to train, its last layer or stage, and images that all have labels."""
        if self.labelled == 1:
            return *with_head(model, data, trainer=trainer, generator=generator), data
        known = torch.randperm(len(data), generator=generator)[: round(self.labelled * len(data))]
        if not len(known):
            raise ConfigError(f"finetune labelled={self.labelled:g} leaves no label of {len(data)} images; raise it")
        classifier, last = with_head(model, data.subset(known), trainer=trainer, generator=generator)
        return classifier, last, label_rest(classifier, data, known)

    def _consolidation(
        self, classifier: nn.Module, held: Sequence[nn.Parameter], data: Images, generator: torch.Generator
    ) -> Consolidation:
        """What holds some of the classifier's parameters; the unit of information is the largest of them all."""
        parameters = list(classifier.parameters())
        rows = torch.randperm(len(data), generator=generator)[:IMAGES]
        information = fisher(classifier, parameters, data.images[rows], generator=generator)
        found = dict(zip(parameters, information, strict=True))
        return Consolidation(held, [found[parameter] for parameter in held], self.ewc)
