"""The types every scheme, attack and task is written against; torch only."""

from hallmark.core.access import Access, HostKind
from hallmark.core.attack import Attack
from hallmark.core.evidence import Evidence
from hallmark.core.extraction import extract_all
from hallmark.core.key import Key
from hallmark.core.random import derive_seed, generator
from hallmark.core.scheme import QueryScheme, Scheme, Trainer
from hallmark.core.survey import Marking, Reading, Survey
from hallmark.core.suspect import Suspect
from hallmark.core.task import Measurement, Task

__all__ = [
    "Access",
    "Attack",
    "Evidence",
    "HostKind",
    "Key",
    "Marking",
    "Measurement",
    "QueryScheme",
    "Reading",
    "Scheme",
    "Survey",
    "Suspect",
    "Task",
    "Trainer",
    "derive_seed",
    "extract_all",
    "generator",
]
