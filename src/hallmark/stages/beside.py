"""Looking at networks beside the story of embedding, attacking and verifying: detectors of marks, and histograms.

A detector is made from and tested on a population.  Half of it is the attacker's: trained on the attacker's images,
marked with keys of the attacker's own.  The detector learns from it.  The other half are the suspects: trained on the
owner's images and marked with other keys.  Every network has a seed of its own, and so has every key.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from hallmark.components import build, identify
from hallmark.core import Detector, derive_seed
from hallmark.errors import ConfigError, allowed
from hallmark.stages.experiment import Detection, Histogram, Mark
from hallmark.stages.graph import Stage
from hallmark.stages.histogram import Bins
from hallmark.stages.inputs import Config, host_data, len_of

PARTS = {"known": "attacker", "suspect": "owner"}
"""Whose images the networks of each half are trained on."""
SMALLEST = 4
"""Networks of each kind in a population: two in each half."""


class Pretrain(Protocol):
    """A planner's way to an unmarked network."""

    def __call__(self, name: str, seed: int, part: str = "owner") -> Stage:
        """Train it on the images of ``part``."""


class Embed(Protocol):
    """A planner's way to a marked network."""

    def __call__(self, original: Stage, mark: Mark, seed: int | None = None, part: str = "owner") -> Stage:
        """Mark it by a key of its own, with the images of ``part``."""


@dataclass(frozen=True)
class Models:
    """Plans networks, and what looks at them.

    Args:
        config: The resolved configuration.
        pretrains: Names of the ways in which unmarked networks are trained.
        marks: What is embedded.
        pretrain: Plans an unmarked network.
        embed: Plans a marked one.
        prints: Fingerprints of the data that a description names.
    """

    config: Config
    pretrains: Collection[str]
    marks: Collection[Mark]
    pretrain: Pretrain
    embed: Embed
    prints: Callable[[Config], dict[str, str]]

    def histograms(self) -> Iterator[Histogram]:
        """Distributions of every marked model and its original, of the kinds that the configuration names.

        Raises:
            ConfigError: A scheme does not know a kind, or the bins make no sense.
        """
        wanted = self.config["histograms"]
        bins = {kind: asdict(build(Bins, settings, f"histograms.{kind}")) for kind, settings in wanted.items()}
        for mark in self.marks if bins else ():
            for kind in bins:
                if kind not in mark.scheme.sampled:
                    known = mark.scheme.sampled or ("nothing",)
                    raise ConfigError(allowed(kind, known, f"histogram of scheme {mark.scheme.name!r}"))
            for name in self.pretrains:
                original = self.pretrain(name, self.config["seed"])
                marked = self.embed(original, mark)
                settings = {"scheme": identify(mark.scheme), "bins": bins}
                inputs = {"marked": marked, "original": original}
                stage = Stage("histogram", settings, inputs, {}, f"{marked.label} and its original")
                yield Histogram(stage, mark, name, self.config["host"]["backbone"])

    def detections(self, detectors: Collection[Detector]) -> Iterator[Detection]:
        """Every detector against every mark in hosts of every pretraining.

        Raises:
            ConfigError: The population is too small or cannot be halved, its halves would share images, a scheme does
                not fit the attacker's images, or two detectors go by one name.
        """
        if not detectors:
            return
        size = self.config["population"]
        if size < SMALLEST or size % 2:
            raise ConfigError(
                f"population={size} is too small or odd; detectors learn from one half of the networks and are tested "
                f"on the other, so give an even number of at least {SMALLEST}"
            )
        if self.config["embedding_data"]:
            raise ConfigError(
                "with embedding_data the attacker's networks and the suspects would share images; leave it null where "
                "there are detectors"
            )
        by_unit: dict[str, Detector] = {}
        for detector in detectors:
            if by_unit.setdefault(detector.unit, detector) is not detector:
                raise ConfigError(
                    f"two detectors are called {detector.unit!r}; put them into experiments of different names"
                )
        for name in self.pretrains:
            for mark in self.marks:
                mark.scheme.check(self.config["data"]["size"], len_of(host_data(self.config, PARTS["known"])))
                inputs = self._population(name, mark)
                for unit, detector in by_unit.items():
                    label = f"{unit} for {mark.label} in {name}"
                    settings, prints = {"detector": identify(detector)}, {}
                    if detector.needs_images:
                        settings["data"] = host_data(self.config, PARTS["known"])
                        prints = self.prints(settings["data"])
                    stage = Stage("detect", settings, inputs, prints, label, work=20 * len(inputs))
                    yield Detection(stage, mark, name, self.config["host"]["backbone"], unit)

    def _population(self, name: str, mark: Mark) -> dict[str, Stage]:
        """The networks by role: ``known`` or ``suspect``, ``unmarked`` or ``marked``, and a number."""
        found = {}
        for half, part in PARTS.items():
            for number in range(self.config["population"] // 2):
                seed = derive_seed(self.config["seed"], "population", half, number)
                unmarked = self.pretrain(name, seed, part)
                found[f"{half} unmarked {number}"] = unmarked
                found[f"{half} marked {number}"] = self.embed(unmarked, mark, seed, part)
        return found


def groups(inputs: Iterable[str]) -> dict[str, list[str]]:
    """The roles of a detect stage by half and kind, e.g. ``known marked``, each in the order of its numbers."""
    found: dict[str, list[str]] = {}
    for role in inputs:
        found.setdefault(role.rpartition(" ")[0], []).append(role)
    return found
