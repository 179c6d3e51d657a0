"""Operations around the stolen model: on the images it is asked about, and on the answers it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer, derive_seed
from hallmark.core.scheme import Images
from hallmark.models.steps import BLURS, FILTERS, Blur, Filter, require
from hallmark.models.wrapping import Postprocessed, Preprocessed, Wrapper

_ANSWERING = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER, HostKind.IMAGE_TO_IMAGE})
"""Hosts whose answer is one tensor; a detector's is a list of boxes."""


@dataclass(frozen=True)
class _Around(Attack):
    """A step around the victim.

    Args:
        operation: Its name.
        amount: How much of it, in the operation's unit.
    """

    operation: str
    amount: float

    hosts: ClassVar[frozenset[HostKind]] = _ANSWERING
    access: ClassVar[Access] = Access.WEIGHTS

    wrapper: ClassVar[type[Wrapper]]
    step: ClassVar[Callable[[str, float, int], nn.Module]]

    @property
    def strength(self) -> float:
        """The amount."""
        return float(self.amount)

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The wrapped model; no data are used, and the network inside is the victim's."""
        model = victim.weights_module()
        if not self.amount:
            return model
        seed = derive_seed(generator.initial_seed(), "noise")
        return self.wrapper(model, type(self).step(self.operation, float(self.amount), seed)).eval()


@dataclass(frozen=True)
class Preprocess(_Around):
    """Every image goes through an operation before the model sees it, so that secret patches and patterns blur.

    Args:
        operation: ``noise``, ``gaussian``, ``jpeg``, ``resize`` (smaller and back), ``depth``, ``crop`` (the middle,
            enlarged), ``shift`` (the edge is repeated) or ``occlude`` (the top left corner is grey).
        amount: How much of it, in the operation's unit; see :data:`hallmark.models.steps.FILTERS`.
    """

    name: ClassVar[str] = "preprocess"
    wrapper: ClassVar[type[Wrapper]] = Preprocessed
    step: ClassVar[Callable[[str, float, int], nn.Module]] = Filter

    def __post_init__(self) -> None:
        require(self.operation, self.amount, FILTERS, "preprocess operation")

    @property
    def unit(self) -> str:
        """The operation and its unit."""
        return f"{self.operation} {FILTERS[self.operation][0]}"


@dataclass(frozen=True)
class Postprocess(_Around):
    """Every answer (features, logits or image) is made less exact before anybody sees it.

    Args:
        operation: ``noise``, ``rounding``, or ``top``, which shows only the largest numbers of an answer.
        amount: How much of it, in the operation's unit; see :data:`hallmark.models.steps.BLURS`.
    """

    name: ClassVar[str] = "postprocess"
    wrapper: ClassVar[type[Wrapper]] = Postprocessed
    step: ClassVar[Callable[[str, float, int], nn.Module]] = Blur

    def __post_init__(self) -> None:
        require(self.operation, self.amount, BLURS, "postprocess operation")

    @property
    def hosts(self) -> frozenset[HostKind]:  # type: ignore[override]
        """Those above; the largest of an image's numbers are nothing to show."""
        return _ANSWERING - {HostKind.IMAGE_TO_IMAGE} if self.operation == "top" else _ANSWERING

    @property
    def unit(self) -> str:
        """The operation and its unit."""
        return f"{self.operation} {BLURS[self.operation][0]}"
