"""Operations around the stolen model: on the images it is asked about, and on the answers it gives."""

from abc import abstractmethod
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
ON_ANSWERS = {**BLURS, **{name: FILTERS[name] for name in ("gaussian", "jpeg", "resize", "depth")}}
"""Operations on answers with unit and largest amount, those on answers that are images last."""


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
    needs_images: ClassVar[bool] = False

    wrapper: ClassVar[type[Wrapper]]

    @property
    @abstractmethod
    def step(self) -> Callable[[str, float, int], nn.Module]:
        """Makes the step from its operation, amount and seed."""

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
        return self.wrapper(model, self.step(self.operation, float(self.amount), seed)).eval()


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

    @property
    def step(self) -> type[Filter]:
        """An operation on images."""
        return Filter

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
        operation: ``noise``, ``rounding``, or ``top``, which shows only the largest numbers of an answer; of images
            also ``gaussian``, ``jpeg``, ``resize`` (smaller and back) or ``depth``.
        amount: How much of it, in the operation's unit; see :data:`hallmark.models.steps.BLURS` and ``FILTERS``.
    """

    name: ClassVar[str] = "postprocess"
    wrapper: ClassVar[type[Wrapper]] = Postprocessed

    def __post_init__(self) -> None:
        require(self.operation, self.amount, ON_ANSWERS, "postprocess operation")

    @property
    def step(self) -> type[Filter] | type[Blur]:
        """An operation on answers, or on answers that are images."""
        return Blur if self.operation in BLURS else Filter

    @property
    def hosts(self) -> frozenset[HostKind]:  # type: ignore[override]
        """Those above, unless the operation is one on images, or on a few numbers."""
        if self.operation not in BLURS:
            return frozenset({HostKind.IMAGE_TO_IMAGE})
        return _ANSWERING - {HostKind.IMAGE_TO_IMAGE} if self.operation == "top" else _ANSWERING

    @property
    def unit(self) -> str:
        """The operation and its unit."""
        return f"{self.operation} {ON_ANSWERS[self.operation][0]}"
