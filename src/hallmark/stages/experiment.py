"""What an experiment is once it is planned: the models it looks at and the stages that make them."""

from collections.abc import Mapping
from dataclasses import dataclass

from hallmark.core import Scheme
from hallmark.stages.graph import Stage, in_order
from hallmark.stages.inputs import Config, source_name


@dataclass(frozen=True)
class Mark:
    """One way of marking that an experiment compares.

    Args:
        scheme: The scheme with its settings.
        variant: What rows call these settings; empty for the only or the usual ones.
    """

    scheme: Scheme
    variant: str = ""

    @property
    def name(self) -> str:
        """What experiments call it: the variant, or else the scheme."""
        return self.variant or self.scheme.name

    @property
    def label(self) -> str:
        """Scheme and variant, for people."""
        return f"{self.scheme.name} {self.variant}".strip()


@dataclass(frozen=True)
class Subject:
    """One model under the microscope, with everything its result rows say about it.

    Args:
        stage: Makes the model.
        embed: The embed stage whose key it is judged by.
        mark: What was embedded there.
        suspect: ``marked``, ``original``, ``innocent`` or ``attacked_innocent``.
        pretrain: How the host of the marked model it is compared with was trained.
        host: Architecture, and for innocents how they came about.
        attack: Verb, or ``none``.
        strength: In ``unit``; 0 where nothing was done.
        unit: What the strength counts.
        transfers: Measurements by (data set, task); the data set is empty for tasks on the host's own.
        verify: Judges it.
        images: The attacker's images that were looked at, at the most; the stage counts them.
    """

    stage: Stage
    embed: Stage
    mark: Mark
    suspect: str
    pretrain: str
    host: str
    attack: str
    strength: float
    unit: str
    transfers: Mapping[tuple[str, str], Stage]
    verify: Stage
    images: int = 0


@dataclass(frozen=True)
class Unfit:
    """A pair that makes no sense: a cell of the tables without a number.

    Args:
        mark: What would be attacked; or, without an attack, what the hosts cannot bear.
        attack: Verb, or ``none``.
        reason: Why.
    """

    mark: Mark
    attack: str
    reason: str


@dataclass(frozen=True)
class Detection:
    """One detector that looks for one mark in a population of networks.

    Args:
        stage: Scores the suspects.
        mark: What the marked ones bear.
        pretrain: How the unmarked ones were trained.
        host: Architecture of all.
        unit: The detector's name and variant.
    """

    stage: Stage
    mark: Mark
    pretrain: str
    host: str
    unit: str


@dataclass(frozen=True)
class Histogram:
    """Distributions of a marked model's numbers, beside those of the model that it was made from.

    Args:
        stage: Counts them.
        mark: What the marked model bears.
        pretrain: How the original was trained.
        host: Architecture of both.
    """

    stage: Stage
    mark: Mark
    pretrain: str
    host: str


@dataclass(frozen=True)
class Surveyed:
    """One survey, with everything its result rows say about what it looked at.

    Args:
        stage: Makes the readings.
        scheme: Name of the scheme it is about.
        variant: What rows call the mark looked at; empty for the usual one, or where it looked at the host alone.
        suspect: ``marked`` or ``original``.
        pretrain: How the host was trained.
        host: Architecture.
    """

    stage: Stage
    scheme: str
    variant: str
    suspect: str
    pretrain: str
    host: str


@dataclass(frozen=True)
class Sheet:
    """Pictures of one mark, and of what attacks leave of it.

    Args:
        stage: Draws them.
        mark: What they show.
        pretrain: How the host was trained.
    """

    stage: Stage
    mark: Mark
    pretrain: str


@dataclass(frozen=True)
class Experiment:
    """One experiment at one seed and scale.

    Args:
        config: The resolved configuration.
        subjects: The models it looks at.
        detections: The detectors it tries.
        histograms: The distributions it draws.
        surveys: What the owner measures beside.
        sheets: The pictures of it.
        unfit: The pairs that make no sense, where it notes them.
    """

    config: Config
    subjects: tuple[Subject, ...]
    detections: tuple[Detection, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    surveys: tuple[Surveyed, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    unfit: tuple[Unfit, ...] = ()

    @property
    def scheme(self) -> str:
        """Name of the scheme that the experiment is about, or of the first of several."""
        return self.subjects[0].mark.scheme.name

    @property
    def dataset(self) -> str:
        """What the hosts are pretrained on, by the name that rows carry."""
        return source_name(self.config, self.config["data"]["name"])

    @property
    def stages(self) -> list[Stage]:
        """Every stage, inputs first."""
        targets = [stage for subject in self.subjects for stage in (*subject.transfers.values(), subject.verify)]
        targets += [histogram.stage for histogram in self.histograms]
        targets += [detection.stage for detection in self.detections]
        targets += [sheet.stage for sheet in self.sheets]
        return in_order([*targets, *(survey.stage for survey in self.surveys)])
