"""A survey of forged keys: what the judge says of keys that were made for a model after it was there."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hallmark.attacks.forging import FORGERS, Forger, Forgery, drawn_from, judged, search
from hallmark.attacks.forging.pixels import grown
from hallmark.components import NEUTRAL
from hallmark.core import Access, HostKind, Marking, QueryScheme, Reading, Scheme, Survey, Suspect
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.models.kinds import kind_of

LEVELS = {
    HostKind.ENCODER: (Access.WEIGHTS, Access.FEATURES),
    HostKind.CLASSIFIER: (Access.WEIGHTS, Access.LOGITS),
    HostKind.IMAGE_TO_IMAGE: (Access.IMAGES,),
    HostKind.DETECTOR: (Access.WEIGHTS,),
}
"""By kind of host, where keys are forged: weights, and the answers that say most."""
PUBLIC = "a public string"
"""What a forger names who has to name one."""
_ASKED = 0.5
"""Cost of an image that is only asked about, beside one that trains."""


@dataclass(frozen=True)
class ForgedKeys(Survey):
    """p-values that a judge finds who is told nothing of how a key came about, as ``forged_p``.

    The unit says on which model (``innocent``, the unmarked host, or ``marked``, with somebody else's mark in it, for a
    stain called ``stained``), at which access, and what the forger was free to do: ``computed`` a key from the model,
    taken ``one public string`` that all that is drawn must be drawn from (images are then made for it), or tried many
    (``best of 200 strings``).  Where the rule takes nothing away, ``computed`` is under it already.

    What a forger does is its own and no setting: where that changes, ``version`` has to rise.

    Args:
        tries: Strings that are tried, as far as the scheme's keys can be afforded.
        decoys: Fresh keys that a key is ranked among.
        images: Images that the forger has, if the scheme's keys need no more.
        rule: Whether ``forged_drawn`` says of each key if the string that the forger names gives it, 1 or 0.
    """

    tries: int = 200
    decoys: int = 999
    images: int = 64
    rule: bool = field(default=False, metadata=NEUTRAL)

    name: ClassVar[str] = "forged_keys"
    version: ClassVar[int] = 2
    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind)
    schemes: ClassVar[frozenset[str]] = frozenset(FORGERS)
    marks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.tries, self.decoys, self.images) < 1:
            raise ConfigError(
                f"forged_keys needs tries, decoys and images ≥ 1, got {self.tries}, {self.decoys} and {self.images}"
            )

    def work(self, scheme: Scheme | None, kind: HostKind, test: int) -> float:
        """Two models at each level: forging, trying strings, and decoys."""
        if scheme is None:
            raise TypeError("keys are forged for a scheme")
        asked = _ASKED * getattr(scheme, "queries", 1)
        many = scheme.decoy_work + (asked if isinstance(scheme, QueryScheme) else 1)
        total = 0.0
        for level in _levels(scheme, kind):
            for _, forger in self._forgers(scheme, None):
                total += forger.work + 2 * asked + (self.decoys * many if scheme.chance is None else 0)
            each = scheme.decoy_work + 2 * asked + FORGERS[scheme.name].compared * many
            total += FORGERS[scheme.name].tries(level, self.tries) * each
        return 2 * total

    def look(
        self, host: nn.Module, marking: Marking | None, owner: Images, test: Images, *, generator: torch.Generator
    ) -> list[Reading]:
        """Figures; the forger's images are of the test set."""
        if marking is None:
            raise TypeError("keys are forged for a mark's scheme")
        scheme, kind = marking.scheme, kind_of(host)
        forger = FORGERS[scheme.name](scheme)
        wanted = max(forger.needed(self.decoys), min(self.images, len(test)))
        theirs = forger.presented(grown(test, wanted, generator=generator))
        found = []
        for role, model in (("innocent", host), ("stained" if scheme.name == "stain" else "marked", marking.model)):
            for level in _levels(scheme, kind):
                suspect = Suspect(model, kind, level)
                for how, forgery in self._forge(scheme, model, suspect, theirs, generator):
                    unit = f"{role}, {level.value}, {how}"
                    verdict = judged(
                        forgery, scheme, model, suspect, theirs, decoys=self.decoys, alpha=1 / (self.decoys + 1)
                    )
                    found.append(Reading("forged_p", verdict.p_value, unit))
                    if self.rule:
                        found.append(Reading("forged_drawn", float(_admitted(forgery, scheme, model, theirs)), unit))
        return found

    def _forge(
        self, scheme: Scheme, model: nn.Module, suspect: Suspect, theirs: Images, generator: torch.Generator
    ) -> Iterator[tuple[str, Forgery]]:
        for how, forger in self._forgers(scheme, model):
            yield how, forger.forge(suspect, theirs, generator=generator)
        tries = FORGERS[scheme.name].tries(suspect.access, self.tries)
        if tries:
            strings = (f"public string {number}" for number in range(tries))
            compared = FORGERS[scheme.name].compared
            yield f"best of {tries} strings", search(scheme, model, suspect, theirs, strings, compared=compared)

    def _forgers(self, scheme: Scheme, model: nn.Module | None) -> list[tuple[str, Forger]]:
        """Each way to compute a key, and who does; one alone where the rule takes nothing away."""
        forger = FORGERS[scheme.name]
        if not forger.gains:
            return [("computed", forger(scheme, model, PUBLIC))]
        return [("computed", forger(scheme, model)), ("one public string", forger(scheme, model, PUBLIC))]


def _levels(scheme: Scheme, kind: HostKind) -> list[Access]:
    return [level for level in LEVELS[kind] if level in scheme.access & FORGERS[scheme.name].access]


def _admitted(forgery: Forgery, scheme: Scheme, model: nn.Module, theirs: Images) -> bool:
    """Whether the string that the forger names gives the key, with the images and the original that are presented."""
    return drawn_from(
        forgery.key, scheme, forgery.original or model, forgery.images or theirs, forgery.public or PUBLIC
    )
