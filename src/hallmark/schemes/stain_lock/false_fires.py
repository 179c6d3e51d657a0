"""How often detectors of a layer fire on natural images, beside what the guarantees promise."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark import stats
from hallmark.core import HostKind, Marking, Reading, Survey
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.detector import draw_directions, natural_norms, natural_peaks
from hallmark.schemes.stain_lock.guarantees import averaged_cap_bound, cap_bound, holdout_bound, mean_cap
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import find_layer
from hallmark.schemes.stain_lock.trigger import Pipeline, Search, find_triggers

_TOGETHER = 10
"""Directions whose triggers are sought at a time, so that memory stays bounded."""


@dataclass(frozen=True)
class FalseFires(Survey):
    """Random directions v of each layer, their triggers, and the share of test images on which v·y exceeds τT.

    The bound over the draw of v needs a least response T₀ that is fixed beforehand: it is the least of ``pilot``
    directions, which are then forgotten.  Of the ``draws`` that follow those with T ≥ T₀ are kept, and the bound is
    divided by a lower limit of the probability of that.

    Readings at each τ, image-level, over all kept draws: ``fpr``, with the draws as clusters of its interval, and
    ``fpr_bound`` four times: by the caps averaged over the owner's images (unit ``tau <τ>``); the same without what
    pays for the sample, at the median response (``expected``); for the longest features seen (``longest``); and the
    largest over the draws of the limit that the test images set each of them (``hold-out``).

    Args:
        layers: What rows call each layer, and its name.
        draws: Directions that are tested.
        pilot: Directions that set T₀.
        taus: Thresholds τ.
        images: The owner's images from which the averaged bound is taken.
        eta: Probability that a bound does not hold.
        search: How triggers are sought.
    """

    layers: dict[str, str]
    draws: int = 50
    pilot: int = 10
    taus: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.5, 0.7])
    images: int = 4000
    eta: float = 0.05
    search: Search = field(default_factory=Search)

    name: ClassVar[str] = "false_fires"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    schemes: ClassVar[frozenset[str]] = frozenset({"stain"})
    marks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.layers or min(self.draws, self.pilot) < 1 or self.images < 2:
            raise ConfigError("false_fires needs layers, draws and pilot of at least 1, and images of at least 2")
        if not self.taus or not all(0 < tau < 1 for tau in self.taus) or not 0 < self.eta < 1:
            raise ConfigError(f"false_fires needs taus and eta in (0, 1), got {self.taus} and {self.eta}")

    def check_host(self, host: nn.Module) -> None:
        """Every layer has to be there."""
        for layer in self.layers.values():
            find_layer(host, layer, (nn.Conv2d, nn.Linear))

    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """The readings of all layers."""
        pipeline = Pipeline(host, test.images.shape[-1])
        natural = owner.images[: self.images]
        return [
            reading
            for label, layer in self.layers.items()
            for reading in self._layer(pipeline, layer, label, natural, test.images, generator)
        ]

    def _layer(
        self, pipeline: Pipeline, layer: str, label: str, natural: Tensor, held: Tensor, generator: torch.Generator
    ) -> Iterator[Reading]:
        site, _ = Site.of(pipeline.model, layer)
        size, centred = site.size(pipeline.model), bool(site.layernorm)
        drawn = draw_directions(self.pilot + self.draws, size, centred=centred, generator=generator)
        moved = drawn.to(pipeline.device)
        found = [find_triggers(pipeline, site, v, self.search, generator=generator)[1] for v in moved.split(_TOGETHER)]
        responses = torch.cat(found)
        least = float(responses[: self.pilot].min())
        kept = responses[self.pilot :] >= least
        if least <= 0 or not bool(kept.any()):
            raise ConfigError(f"directions of {site.layer!r} find no image that they answer to; raise search.steps")
        strength = responses[self.pilot :][kept]
        peaks = natural_peaks(pipeline, site, drawn[self.pilot :][kept], held)
        norms = natural_norms(pipeline, site, natural).double().numpy()
        freedom, places = site.freedom(pipeline.model), norms.shape[1]
        # half of eta pays for the estimate of the share that is kept, half for the sample of images
        accepted = stats.clopper_pearson(int(kept.sum()), self.draws, confidence=1 - self.eta).low
        for tau in self.taus:
            fired = false_fires(peaks, strength, tau)
            rate = stats.clustered(fired, [len(held)] * len(fired))
            unit, threshold, usual = f"tau {tau:g}", tau * least, tau * float(strength.median())
            yield Reading("fpr", rate.rate, unit, label, rate.count, rate.n, rate.low, rate.high)
            averaged = averaged_cap_bound(threshold, norms, freedom, eta=self.eta / 2, acceptance=accepted)
            longest = float(cap_bound(threshold, norms.max(), freedom, places=places, acceptance=accepted))
            yield Reading("fpr_bound", averaged, unit, label)
            yield Reading("fpr_bound", mean_cap(usual, norms, freedom)[0], f"{unit} expected", label)
            yield Reading("fpr_bound", longest, f"{unit} longest", label)
            limit = max(holdout_bound(count, len(held), eta=self.eta) for count in fired)
            yield Reading("fpr_bound", limit, f"{unit} hold-out", label)


def false_fires(peaks: Tensor, strength: Tensor, tau: float) -> list[int]:
    """On how many images each of K detectors fires.

    Args:
        peaks: Largest v·y of each image and direction ``(N, K)``.
        strength: T ``(K,)``.
        tau: τ.
    """
    counts: list[int] = (peaks > tau * strength).sum(0).tolist()
    return counts
