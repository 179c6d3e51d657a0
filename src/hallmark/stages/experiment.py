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
class Experiment:
    """One experiment at one seed and scale.

    Args:
        config: The resolved configuration.
        subjects: The models it looks at.
        surveys: What the owner measures beside.
    """

    config: Config
    subjects: tuple[Subject, ...]
    surveys: tuple[Surveyed, ...] = ()

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
        judged = [stage for subject in self.subjects for stage in (*subject.transfers.values(), subject.verify)]
        return in_order([*judged, *(survey.stage for survey in self.surveys)])
