"""What all forgers share: the two ways to come by a key, the rule that it be drawn from a string, and the judge."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Key, Scheme, Suspect, derive_seed, extract_all
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError
from hallmark.stats import Binomial, Ranked, Verdict, verify


@dataclass(frozen=True)
class Forgery:
    """A key that was made for a suspect, and what is presented with it.

    Args:
        key: The key that is claimed.
        access: The level on which it passes.
        tries: Keys that were looked at; 1 where it was computed.
        public: The string it is said to be drawn from.
        images: What the forger calls the owner's images, where they were made for the key; None for those given.
        original: What the forger calls the unmarked original, where it was made for the key; None for the suspect.
    """

    key: Key
    access: Access
    tries: int = 1
    public: str | None = None
    images: Images | None = None
    original: nn.Module | None = None


@dataclass(frozen=True)
class Forger(ABC):
    """Makes the strongest key of a scheme for a suspect that bears no mark of the forger's.

    Args:
        scheme: The mark that is claimed, with its settings.
        model: A copy of the suspect for one who is to forge a key for its answers; at WEIGHTS the suspect gives one.
        public: A string that all that is drawn in the key has to be drawn from; without it everything may be chosen.
    """

    scheme: Any
    model: nn.Module | None = None
    public: str | None = None

    access: ClassVar[frozenset[Access]]
    """Levels on which it can."""
    gains: ClassVar[bool] = True
    """Whether a key that need not be drawn from a string is any better; otherwise the rule takes nothing away."""
    most_tries: ClassVar[int | None] = None
    """Strings that a :func:`search` can afford; None for any number, 0 where no key that is only drawn can be read."""
    searched: ClassVar[frozenset[Access]] = frozenset(Access)
    """Levels on which a key that is only drawn can be read."""
    compared: ClassVar[int] = 0
    """Decoys of its own that one who tries strings needs for each key, where statistics of keys have a level of their
    own, which the decoys of each share, so that they say nothing across keys; 0 where they compare as they are."""

    @abstractmethod
    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key that passes on the suspect at the access it grants.

        Args:
            suspect: The model, which is only looked at.
            images: Images of the forger's, at least :meth:`needed`.
            generator: The only source of randomness but the public string.

        Raises:
            AccessError: The suspect grants a level on which nothing can be forged.
            ConfigError: A copy of the suspect is needed and missing.
        """

    def needed(self, decoys: int) -> int:
        """Images that a key takes, and as many decoys."""
        return 1

    def presented(self, images: Images) -> Images:
        """The forger's images as it shows them, such as with labels that suit it."""
        return images

    @property
    def work(self) -> float:
        """Images through the network that forging costs, a backward pass counting double; for estimates alone."""
        return 0.0

    @classmethod
    def tries(cls, level: Access, most: int) -> int:
        """Strings that are tried on a level, of at most so many."""
        affordable = most if cls.most_tries is None else min(most, cls.most_tries)
        return affordable if level in cls.searched else 0

    def copy(self, suspect: Suspect) -> nn.Module:
        """The model, from the suspect or as the forger has it."""
        self.scheme.require_access(suspect)
        if suspect.access is Access.WEIGHTS:
            return suspect.weights_module()
        if self.model is None:
            raise ConfigError(
                f"{self.scheme.name} is not forged from answers without a copy of the suspect; give it as model"
            )
        return deepcopy(self.model).eval()

    def drawn(self, model: nn.Module | None, images: Images, generator: torch.Generator) -> Key:
        """An honest key, from the public string if there is one."""
        rng = generator if self.public is None else public_generator(self.public)
        key: Key = self.scheme.keygen(model, images, generator=rng)
        return key


def changed(key: Key, **tensors: Tensor) -> Key:
    """A key with some tensors in the place of its own."""
    return replace(key, tensors={**key.tensors, **tensors})


def taught(network: nn.Module, loss: Callable[[nn.Module], Tensor], *, steps: int, lr: float = 1e-3) -> nn.Module:
    """A copy of a network after Adam has made a loss small."""
    network = deepcopy(network).requires_grad_(True)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            loss(network).backward()
            optimiser.step()
    return network.requires_grad_(False)


def public_generator(public: str) -> torch.Generator:
    """The generator of one who draws a key from the SHA-256 of a public string, and has no other choice."""
    return torch.Generator().manual_seed(derive_seed(0, "public key", public))


def drawn_from(key: Key, scheme: Scheme, model: nn.Module, images: Images, public: str) -> bool:
    """Whether a key is the one that a public string gives: everything in it that is drawn, and nothing chosen.

    Args:
        key: The key that is claimed; what embedding adds to it or trains, such as trigger images, is not drawn.
        scheme: Its scheme.
        model: The model it was drawn for.
        images: The owner's images it was drawn with.
        public: The string.
    """
    return scheme.follows(key, scheme.keygen(model, images, generator=public_generator(public)))


def search(
    scheme: Scheme,
    model: nn.Module,
    suspect: Suspect,
    images: Images,
    strings: Iterable[str],
    *,
    compared: int = 0,
    **extra: Tensor,
) -> Forgery:
    """The best of the keys that public strings give: all that is left to a forger who may not choose.

    Args:
        scheme: The scheme.
        model: The model that keys are drawn for.
        suspect: The suspect.
        images: The forger's images.
        strings: The strings that are tried, at least one.
        compared: Decoys of the forger's own that each key's statistic is measured by, in their standard deviations; 0
            takes it as it is.
        **extra: What is no secret and is added to every key, such as trigger images.

    Raises:
        ConfigError: There is no string.
    """
    best: tuple[float, Forgery] | None = None
    tries = 0
    for tries, public in enumerate(strings, 1):  # noqa: B007 - counts
        key = changed(scheme.keygen(model, images, generator=public_generator(public)), **extra)
        others: Sequence[Key] = ()
        if compared:
            others = scheme.decoys(model, key, images, compared, seed=derive_seed(0, "compared", public))
        statistic = _standing([e.statistic() for e in extract_all(scheme, [suspect], [key, *others])[0]])
        if best is None or statistic > best[0]:
            best = statistic, Forgery(key, suspect.access, public=public)
    if best is None:
        raise ConfigError("a search needs at least one public string")
    return replace(best[1], tries=tries)


def _standing(statistics: Sequence[float]) -> float:
    """How far the first lies above the others, in their standard deviations; as it is if there are no others."""
    first, *others = statistics
    if not others:
        return first
    spread = max(stdev(others), torch.finfo(torch.float32).tiny)  # decoys that are all alike
    return (first - mean(others)) / spread


def judged(
    forgery: Forgery, scheme: Scheme, model: nn.Module, suspect: Suspect, images: Images, *, decoys: int, alpha: float
) -> Verdict:
    """What the judge says of a forged key, who is told nothing of how it came about.

    Args:
        forgery: The key.
        scheme: Its scheme.
        model: The model that decoys are drawn for, unless the forger presents another.
        suspect: The suspect, at the access of the forgery.
        images: The images that decoys may draw from, unless the forger presents others.
        decoys: Fresh keys it is ranked among, where the scheme has no exact law.
        alpha: Level.
    """
    if scheme.chance is not None:
        return verify(scheme.extract(suspect, forgery.key), Binomial(scheme.chance), alpha)
    original, owned = forgery.original or model, forgery.images or images
    others = scheme.decoys(original, forgery.key, owned, decoys, seed=derive_seed(0, "forgery"))
    # one call for all, so that nothing but the key can differ
    true, *found = extract_all(scheme, [suspect], [forgery.key, *others])[0]
    return verify(true, Ranked(found), alpha)
