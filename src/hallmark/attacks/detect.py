"""Is there a mark at all?  Two detectors that read weights and have never seen the owner's key.

:class:`SpreadDetector` is the one of Wang and Kerschbaum (ICASSP 2019): a mark that is trained into a layer's weights
makes them spread wider than they otherwise would.  :class:`InferenceDetector` is the property inference attack that the
same authors used to test their own covert marks (WWW 2021, arXiv 1910.14268): a classifier that learns from many marked
and unmarked networks what a mark does to the *sorted* weights.  Theirs is a network of three fully connected layers
taught by 1,024 + 1,024 networks; with tens of networks ours is a logistic regression on quantiles of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hallmark.core import Detector, HostKind, Suspect
from hallmark.errors import ConfigError
from hallmark.models.layers import find_layer, weight_layers

Features = NDArray[np.float64]


@dataclass(frozen=True)
class _WeightDetector(Detector):
    """What both share: which layers they look at.

    Args:
        layer: The layer that is known to be marked, by its module name or the end of it; empty where nothing is known,
            and every convolution and linear layer is looked at.
    """

    layer: str = ""

    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind)

    @property
    def unit(self) -> str:
        """Name, and what the attacker knows of the place."""
        return f"{self.name} of {self.layer or 'all layers'}"

    def check_host(self, host: nn.Module) -> None:
        """Refuse a layer that the host has not."""
        if self.layer:
            find_layer(host, self.layer)


@dataclass(frozen=True)
class SpreadDetector(_WeightDetector):
    """The standard deviation of a layer's weights, against that of unmarked networks.

    Wherever the layer is unknown, the most conspicuous one counts.  Of marked networks it learns nothing.
    """

    name: ClassVar[str] = "spread"

    def scores(
        self,
        unmarked: Sequence[Suspect],
        marked: Sequence[Suspect],
        suspects: Sequence[Suspect],
        *,
        images: torch.Tensor | None = None,
    ) -> list[float]:
        """Standard deviations above the unmarked mean; the largest over the layers."""
        return excess(spreads(unmarked, self.layer), spreads(suspects, self.layer)).max(1).tolist()


@dataclass(frozen=True)
class InferenceDetector(_WeightDetector):
    """A logistic regression on quantiles of the weights of each layer, which is what is left of their sorted list.

    Args:
        quantiles: How many of each layer, evenly spaced from the smallest weight to the largest.
        penalty: Weight of the squared norm of the regression's coefficients, against their fit to the networks.
    """

    quantiles: int = 33
    penalty: float = 1.0

    name: ClassVar[str] = "inference"

    def __post_init__(self) -> None:
        if self.quantiles < 3:
            raise ConfigError(f"inference needs at least 3 quantiles a layer, got {self.quantiles}")
        if not self.penalty > 0:
            raise ConfigError(f"inference penalty must be above 0, got {self.penalty}")

    def scores(
        self,
        unmarked: Sequence[Suspect],
        marked: Sequence[Suspect],
        suspects: Sequence[Suspect],
        *,
        images: torch.Tensor | None = None,
    ) -> list[float]:
        """Log odds of being marked."""
        from sklearn.linear_model import LogisticRegression  # takes a second to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = np.vstack([sorted_weights(part, self.layer, self.quantiles) for part in (unmarked, marked)])
        labels = np.repeat([0, 1], [len(unmarked), len(marked)])
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / self.penalty, max_iter=10_000))
        classifier.fit(known, labels)
        found: Features = classifier.decision_function(sorted_weights(suspects, self.layer, self.quantiles))
        return found.tolist()


def weights(suspect: Suspect, layer: str = "") -> dict[str, torch.Tensor]:
    """Weights of a layer, or of every convolution and linear layer, flattened, float64 on the CPU, by module name.

    Raises:
        AccessError: The suspect does not grant its weights.
        ConfigError: It has no such layer.
    """
    model = suspect.weights_module()
    layers = {layer: find_layer(model, layer)} if layer else weight_layers(model)
    return {name: found.weight.detach().cpu().double().flatten() for name, found in layers.items()}


def spreads(suspects: Sequence[Suspect], layer: str = "") -> Features:
    """Standard deviations of the weights, ``(N, layers)``."""
    return np.array([[float(w.std()) for w in weights(suspect, layer).values()] for suspect in suspects])


def excess(unmarked: Features, suspects: Features) -> Features:
    """Columns of ``suspects`` ``(N, F)`` in standard deviations above the mean of ``unmarked`` ``(M, F)``, M ≥ 2.

    Where the unmarked do not differ at all, as a layer does that nobody trained, an excess is measured in units of the
    smallest step there is at that size, so that it stays finite.
    """
    mean, spread = unmarked.mean(0), unmarked.std(0, ddof=1)
    return (suspects - mean) / np.maximum(spread, np.spacing(np.abs(mean)))


def sorted_weights(suspects: Sequence[Suspect], layer: str, quantiles: int) -> Features:
    """Sorted weights of each layer thinned to ``quantiles`` of them, side by side: ``(N, layers · quantiles)``."""
    places = np.linspace(0, 1, quantiles)
    rows = [
        np.concatenate([np.quantile(w.numpy(), places) for w in weights(suspect, layer).values()])
        for suspect in suspects
    ]
    return np.array(rows)
