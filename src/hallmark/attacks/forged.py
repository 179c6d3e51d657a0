"""A survey of forged keys: what the judge says of keys that were made for a model after it was there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from hallmark.attacks.forge import Forgery, StainForger, judged, search
from hallmark.core import Access, HostKind, Marking, Reading, Survey, Suspect
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.stain import Stain

LEVELS = (Access.WEIGHTS, Access.LOGITS)


@dataclass(frozen=True)
class ForgedKeys(Survey):
    """p-values that a judge finds who is told nothing of how a key came about, as ``forged_p``.

    The unit says on which model (``innocent``, the unmarked host, or ``stained``, with somebody else's mark in it), at
    which access, and what the forger was free to do: ``computed`` a key from the model, taken ``one public string``
    that the key must be drawn from (at answers, trigger images are then made for it), or tried many at weights
    (``best of 200 strings``).

    Args:
        tries: Strings that are tried.
        decoys: Fresh keys that a key is ranked among.
        images: Images that the forger has.
    """

    tries: int = 200
    decoys: int = 999
    images: int = 64

    name: ClassVar[str] = "forged_keys"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    schemes: ClassVar[frozenset[str]] = frozenset({"stain"})
    marks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.tries, self.decoys, self.images) < 1:
            raise ConfigError(
                f"forged_keys needs tries, decoys and images ≥ 1, got {self.tries}, {self.decoys} and {self.images}"
            )

    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """Figures; the forger's images are of the test set."""
        if marking is None or not isinstance(marking.scheme, Stain):
            raise TypeError("keys are forged for the scheme stain")
        rows = torch.randperm(len(test), generator=generator)[: self.images]
        theirs = test.subset(rows)  # type: ignore[attr-defined]  # a survey is given image sets
        found = []
        for role, model in (("innocent", host), ("stained", marking.model)):
            for level in LEVELS:
                suspect = Suspect(model, HostKind.CLASSIFIER, level)
                for how, forgery in self._forge(marking.scheme, model, suspect, theirs, generator):
                    verdict = judged(
                        forgery, marking.scheme, model, suspect, theirs, decoys=self.decoys, alpha=1 / self.decoys
                    )
                    found.append(Reading("forged_p", verdict.p_value, f"{role}, {level.value}, {how}"))
        return found

    def _forge(
        self, scheme: Stain, model: nn.Module, suspect: Suspect, theirs: Images, generator: torch.Generator
    ) -> Iterator[tuple[str, Forgery]]:
        for how, public in (("computed", None), ("one public string", "a public string")):
            yield how, StainForger(scheme, model, public).forge(suspect, theirs, generator=generator)
        if suspect.access is Access.WEIGHTS:
            strings = (f"public string {number}" for number in range(self.tries))
            yield f"best of {self.tries} strings", search(scheme, model, suspect, theirs, strings)
