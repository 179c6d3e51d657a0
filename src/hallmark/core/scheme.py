"""The interface of a watermarking scheme."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hallmark.core.access import Access, HostKind
from hallmark.core.evidence import Evidence
from hallmark.core.key import Key
from hallmark.core.random import generator as generator_for
from hallmark.core.suspect import Suspect
from hallmark.errors import AccessError


class Images(Protocol):
    """The part of a data set that schemes and attacks rely on."""

    @property
    def images(self) -> Tensor:
        """Images, uint8 ``(N, 3, H, W)``."""

    @property
    def labels(self) -> Tensor:
        """Labels, int64 ``(N,)``; -1 where they are withheld."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> "Images":
        """Those at ``indices``, int64 ``(n,)``, in that order."""

    def unlabelled(self) -> "Images":
        """The same images with every label withheld."""


class Trainer(Protocol):
    """How a scheme or an attack trains, without knowing which machine, precision, logger or budget it runs under."""

    def fit(self, module: nn.Module, batches: Iterable[Any], *, epochs: int) -> None:
        """Train ``module`` in place over ``epochs`` passes of ``batches``, resuming from its own checkpoint."""


class Scheme(ABC):
    """One way to mark a host and to find the mark again.

    Class attributes declare what the scheme works on; a pair that makes no sense is refused when it is composed.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the same settings give other results than before: stored stages of older versions are not reused."""
    hosts: ClassVar[frozenset[HostKind]]
    """Kinds of host it can mark."""
    access: ClassVar[frozenset[Access]]
    """Levels on which its mark can be looked for."""
    trains: ClassVar[bool] = True
    """Whether embedding needs a trainer; closed-form schemes do not."""
    uses_labels: ClassVar[bool] = False
    """Whether embedding needs labels; a scheme that does not is handed data without them."""
    uses_unseen: ClassVar[bool] = False
    """Whether a key needs images of the owner's kind that no host was trained on; see :meth:`witness`."""
    chance: ClassVar[float | None] = None
    """Probability of a match under the null, where trials are independent coins then and an exact binomial judges them;
    None where only the rank among decoy keys is exact.  A property where the settings decide."""
    passes: ClassVar[int] = 11
    """Images through the network for one of the owner's in one epoch of embedding, a backward pass counting double; for
    estimates alone."""
    decoy_work: ClassVar[int] = 0
    """Images through the network that making one decoy costs, a backward pass counting double; for estimates alone.  A
    property where the settings decide."""
    most_decoys: ClassVar[int | None] = None
    """Decoys that there are at all, where they are not drawn afresh but given with the key; None where any number can
    be drawn.  The smallest p-value is then 1 / (most_decoys + 1).  A property where the settings decide."""
    embedded: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of a key's tensors that embedding trains or chooses: no draw decides what they are."""
    pictured: ClassVar[bool] = False
    """Whether there is something to see; see :meth:`pictures`."""
    sampled: ClassVar[tuple[str, ...]] = ()
    """Kinds of numbers that :meth:`samples` gives."""

    def check(self, image_size: int, images: int) -> None:  # noqa: B027 - most schemes have nothing to refuse
        """Refuse, before anything runs, an experiment that this scheme's settings do not fit.

        Args:
            image_size: Height and width of the host's images.
            images: Number of the owner's images.

        Raises:
            ConfigError: The settings do not fit; the default has none that could.
        """

    def check_host(self, host: nn.Module) -> None:  # noqa: B027
        """Refuse, before anything runs, a host that this scheme's settings do not fit.

        Args:
            host: An untrained host on torch's meta device: it has shapes and names, but no weights.

        Raises:
            ConfigError: The settings do not fit, e.g. name a layer that is not there; the default looks at nothing.
        """

    def check_decoys(self, images: int, count: int) -> None:  # noqa: B027
        """Refuse, before anything runs, more decoys than can be made; asked where they are made once a mark.

        Args:
            images: Number of the owner's images.
            count: Decoys and trial keys to make.

        Raises:
            ConfigError: There are too few images; the default needs none.
        """

    def check_unseen(self, images: int) -> None:  # noqa: B027
        """Refuse, before anything runs, too few images that no host was trained on; asked where ``uses_unseen``.

        Raises:
            ConfigError: There are too few.
        """

    def witness(self, key: Key, unseen: Images, *, generator: torch.Generator) -> Key:
        """Add to a fresh key what it needs of images that no host was trained on; asked where ``uses_unseen``.

        Args:
            key: As :meth:`embed` returned it.
            unseen: Such images, without labels.
            generator: The only source of randomness.
        """
        return key

    def embedding_work(self, images: int) -> float:
        """Images through the network, a backward pass counting double, that embedding costs; for estimates alone.

        Args:
            images: Number of the owner's images.
        """
        return float(self.passes * images * getattr(getattr(self, "embedding", None), "epochs", 0))

    @abstractmethod
    def keygen(self, host: nn.Module, owner_data: Images, *, generator: torch.Generator) -> Key:
        """Draw a fresh secret key.

        Args:
            host: The unmarked host; read, not changed.
            owner_data: The owner's images.
            generator: The only source of randomness.

        Returns:
            The key.  Keys of one law must be exchangeable: decoys for a verdict are drawn by the same call.
        """

    @abstractmethod
    def embed(
        self, host: nn.Module, key: Key, owner_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> tuple[nn.Module, Key]:
        """Mark a host.

        Args:
            host: The unmarked host; it is left untouched.
            key: The owner's key.
            owner_data: The owner's images; labels are withheld unless ``uses_labels``.
            trainer: Runs the training loop, if there is one.
            generator: The only source of randomness.

        Returns:
            A new, marked model, and the key as it is afterwards (some schemes train an extractor along).
        """

    @abstractmethod
    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Look for the mark at the suspect's access level.

        Raises:
            AccessError: The scheme's mark cannot be seen at this level.
        """

    def extract_many(self, suspect: Suspect, keys: Sequence[Key]) -> list[Evidence]:
        """The evidence of many keys; a scheme overrides it to look at the suspect once for all of them."""
        return [self.extract(suspect, key) for key in keys]

    def reads(self, model: nn.Module, key: Key) -> Collection[str]:
        """Names of the weights of a model that extraction with a key reads, for schemes seen at WEIGHTS access."""
        return ()

    def figures(self, suspect: Suspect, key: Key) -> Mapping[str, float]:
        """Further figures that the scheme's paper reports of a suspect, by metric; they decide nothing."""
        return {}

    def samples(self, suspect: Suspect, key: Key) -> Mapping[str, Tensor]:
        """Numbers whose distribution the scheme's paper draws, 1-D by kind: those that :attr:`sampled` names."""
        return {}

    def pictures(
        self, host: nn.Module, marked: Suspect, others: Mapping[str, Suspect], key: Key, count: int
    ) -> Mapping[str, Tensor]:
        """What anybody may look at, so no images of the owner's or of a data set.

        Args:
            host: The unmarked model.
            marked: The marked model.
            others: What attacks made of it, by name.
            key: The key of the mark.
            count: Number of pictures N.

        Returns:
            N images by what they show, uint8 ``(N, 3, H, W)`` each, in the order in which they are shown.
        """
        return {}

    def follows(self, key: Key, drawn: Key) -> bool:
        """Whether a key can be what embedding made of a drawn one: it adds and changes nothing else."""
        kept = {name: tensor for name, tensor in drawn.tensors.items() if not name.startswith(self.embedded)}
        return drawn.scheme == key.scheme and all(
            name in key.tensors and torch.equal(tensor, key.tensors[name]) for name, tensor in kept.items()
        )

    def require_access(self, suspect: Suspect) -> None:
        """Raise AccessError unless the mark can be seen at the suspect's access level."""
        if suspect.access not in self.access:
            levels = ", ".join(sorted(self.access))
            raise AccessError(f"{self.name} cannot be verified at {suspect.access!s} access; allowed: {levels}")

    def decoys(self, host: nn.Module, key: Key, owner_data: Images, count: int, *, seed: int) -> Sequence[Key]:
        """Fresh keys of the law the true key was drawn from, for :class:`hallmark.stats.Ranked`.

        The default draws ``count`` keys by :meth:`keygen`.  A scheme overrides it when part of the key is no secret
        but evidence material shared by all keys (such as the query images), or to draw faster.
        """
        return [self.keygen(host, owner_data, generator=generator_for(seed, "decoy", i)) for i in range(count)]


class QueryScheme(Scheme):
    """A scheme whose mark is found by asking a suspect about images.

    Splitting an extraction into questions and judgement lets thousands of keys, and several suspects that share a
    trunk, be asked in blocks; see :func:`hallmark.core.extraction.extract_all`.
    """

    @abstractmethod
    def controls(self, key: Key) -> Tensor:
        """Images uint8 ``(Q, 3, H, W)`` whose answers no secret influences; equal for a key and its decoys."""

    @abstractmethod
    def questions(self, key: Key) -> Tensor:
        """Images uint8 ``(Q, 3, H, W)`` that carry the key's secret."""

    @abstractmethod
    def judge(self, access: Access, answers: Tensor, control_answers: Tensor, key: Key) -> Evidence:
        """Evidence from a suspect's answers ``(Q, …)`` to the key's questions and to the controls."""

    def extract(self, suspect: Suspect, key: Key) -> Evidence:
        """Ask, and judge the answers."""
        self.require_access(suspect)
        control_answers = suspect.ask(self.controls(key).float() / 255)
        return self.judge(suspect.access, suspect.ask(self.questions(key).float() / 255), control_answers, key)
