"""Models behind a step on their images or answers: still models of their kind, stored and used as such."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hallmark.errors import ConfigError
from hallmark.models.steps import build_step


class Wrapper(nn.Module):
    """A model with a step around it.

    Args:
        model: An encoder, a classifier, an image-to-image network, or one of these that is wrapped already.
        step: A module with a ``spec``; see :mod:`hallmark.models.steps`.
    """

    side: str

    def __init__(self, model: nn.Module, step: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.step = step

    @property
    def num_features(self) -> int:
        """Width of the features, of an encoder."""
        return self.model.num_features  # type: ignore[return-value]

    @property
    def classes(self) -> int:
        """Number of classes, of a classifier."""
        return self.model.classes  # type: ignore[return-value]

    @property
    def spec(self) -> dict[str, Any]:
        """Plain JSON to rebuild the architecture."""
        return {"inside": self.model.spec, self.side: self.step.spec}


class Preprocessed(Wrapper):
    """A model that sees its images after a step."""

    side = "before"

    @property
    def encoder(self) -> "Preprocessed":
        """The encoder of a classifier, behind the same step."""
        return Preprocessed(self.model.encoder, self.step)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of a classifier."""
        features: Tensor = self.model.features(self.step(images))  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        """The model's answers to the images after the step."""
        answers: Tensor = self.model(self.step(images))
        return answers


class Postprocessed(Wrapper):
    """A model whose answers go through a step before anybody sees them; a classifier's features do not."""

    side = "behind"

    @property
    def encoder(self) -> nn.Module:
        """The encoder of a classifier."""
        return self.model.encoder  # type: ignore[return-value]

    def features(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of a classifier."""
        features: Tensor = self.model.features(images)  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        """The model's answers after the step."""
        answers: Tensor = self.step(self.model(images))
        return answers


def bare(model: nn.Module) -> nn.Module:
    """The model without what stands before and behind it: what the thief put around the weights is no part of them."""
    while isinstance(model, Wrapper):
        model = model.model
    return model


def is_wrapped(spec: dict[str, Any]) -> bool:
    """Whether a spec is one of a wrapped model."""
    return "inside" in spec


def rewrap(spec: dict[str, Any], build: Callable[[dict[str, Any]], nn.Module]) -> Wrapper:
    """An untrained wrapped model of its spec.

    Args:
        spec: What :attr:`Wrapper.spec` gave.
        build: Makes the model inside of its own spec.

    Raises:
        ConfigError: There is no such step, or none.
    """
    kinds = {kind.side: kind for kind in (Preprocessed, Postprocessed)}
    for side, kind in kinds.items():
        if side in spec:
            return kind(build(spec["inside"]), build_step(spec[side]))
    raise ConfigError(f"a wrapped model has its step {' or '.join(kinds)}, this one has {', '.join(sorted(spec))}")
