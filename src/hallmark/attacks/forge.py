"""Keys made for a model after seeing it: an attack on the verdict, which touches no model.

A p-value holds for a key that was drawn without the suspect.  A forger draws it afterwards, and with full freedom a
key passes on any model whatsoever (:class:`StainForger`, :class:`UchidaForger`).  One who must draw as the scheme does,
from the SHA-256 of a public string, can still try strings (:func:`search`), and N tries find p ≈ 1/N: such a draw needs
a level far below one over all the tries that anybody could afford.  And it binds nothing that is not drawn: trigger
images can be made for codes as well as codes for images.  Against a commitment to the whole key that is older than the
suspect, none of this helps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.core import Access, Key, Scheme, Suspect, derive_seed
from hallmark.core.scheme import Images
from hallmark.data.pairs import to_bytes
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.code import agreement
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.stain import Stain
from hallmark.schemes.uchida.filters import filter_mean
from hallmark.schemes.uchida.regulariser import host_layer
from hallmark.schemes.uchida.scheme import Uchida
from hallmark.stats import Binomial, Ranked, Verdict, verify


@dataclass(frozen=True)
class Forgery:
    """A key that was made for a suspect, and how it was.

    Args:
        key: The key that is claimed.
        access: The level on which it passes.
        tries: Keys that were looked at; 1 where it was computed.
        public: The string it is drawn from, where the forger had to name one; a computed key has none.
    """

    key: Key
    access: Access
    tries: int = 1
    public: str | None = None


class Forger(ABC):
    """Makes the strongest key of a scheme for a suspect that bears no mark of the forger's."""

    access: ClassVar[frozenset[Access]]
    """Levels on which it can."""

    @abstractmethod
    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key that passes on the suspect at the access it grants.

        Args:
            suspect: The model, which is only looked at.
            images: Images of the forger's.
            generator: The only source of randomness.

        Raises:
            AccessError: The suspect grants a level on which nothing can be forged.
        """


@dataclass(frozen=True)
class StainForger(Forger):
    """At WEIGHTS the directions are those of the neurons; at answers the codes are what the answers are.

    Args:
        scheme: The stain that is claimed, with its layer and number of neurons.
        model: A copy of the suspect for one who is to forge a key for its answers; at WEIGHTS the suspect gives one.
        public: A string that the key has to be drawn from.  The codes are then no longer the forger's choice, but
            the trigger images are: they are optimised until the answers to them are the codes.  Nothing of the kind
            helps at WEIGHTS.
        steps: Of that search.
    """

    scheme: Stain
    model: nn.Module | None = None
    public: str | None = None
    steps: int = 200

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS, Access.FEATURES, Access.LOGITS, Access.LABELS})

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key for the neurons that an honest stain would take.

        Raises:
            ConfigError: There is no model to draw the key for.
        """
        self.scheme.require_access(suspect)
        weights = suspect.access is Access.WEIGHTS
        model = suspect.weights_module() if weights else self.model
        if model is None:
            raise ConfigError("a stain cannot be forged from answers without a copy of the suspect; give it as model")
        rng = generator if self.public is None else public_generator(self.public)
        drawn = self.scheme.keygen(model, images, generator=rng)
        tensors = dict(drawn.tensors)
        if weights and self.public is None:
            site = Site.recorded(drawn.meta["site"], model)
            rows = [site.read(model, neuron)[0].cpu() for neuron in drawn.meta["neurons"]]
            tensors["directions"] = F.normalize(torch.stack(rows), dim=1)
        if not weights:
            tensors["triggers"] = images.images[: self.scheme.keys]
            if self.public is None:
                tensors["codes"] = self._codes(suspect.ask(tensors["triggers"].float() / 255), tensors["codes"])
            else:
                tensors["triggers"] = self._answered(model, tensors["triggers"], tensors["codes"])
        return Forgery(Key(drawn.scheme, tensors, drawn.meta), suspect.access, public=self.public)

    @staticmethod
    def _codes(answers: Tensor, drawn: Tensor) -> Tensor:
        """Answers ``(K, C)`` as codes; of labels ``(K,)``, any code whose largest entry is the label."""
        if answers.ndim == 1:
            answers = F.one_hot(answers, drawn.shape[1]).float()
        return F.normalize(answers - answers.mean(1, keepdim=True), dim=1)

    def _answered(self, model: nn.Module, images: Tensor, codes: Tensor) -> Tensor:
        """Images uint8 ``(K, 3, H, W)`` whose answers lie along codes ``(K, C)``, by gradient on their pixels."""
        device = next(model.parameters()).device
        logits = (images.to(device).float() / 255).clamp(0.02, 0.98).logit().requires_grad_()
        optimiser, goals = torch.optim.Adam([logits], lr=0.1), codes.to(device)
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = -agreement(model(logits.sigmoid()), goals).sum()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            optimiser.step()
        return to_bytes(logits.detach().sigmoid()).cpu()


@dataclass(frozen=True)
class UchidaForger(Forger):
    """Rows of X are turned until each projection has the sign of the forger's bit: any w then reads any message.

    Args:
        scheme: The mark that is claimed; its carrier has to be ``random``.
    """

    scheme: Uchida

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key with the message it was drawn with; a row that is turned is as Gaussian as before."""
        self.scheme.require_access(suspect)
        if self.scheme.carrier != "random":
            raise ConfigError(f"only a random carrier can be turned, got scheme.carrier={self.scheme.carrier}")
        model = suspect.weights_module()
        key = self.scheme.keygen(model, images, generator=generator)
        carrier, message = key.tensors["carrier"], key.tensors["message"].bool()
        mean = filter_mean(host_layer(model, key)).detach().cpu().double()
        wrong = (carrier.double() @ mean >= 0) != message
        turned = torch.where(wrong[:, None], -carrier, carrier)
        return Forgery(Key(key.scheme, {**key.tensors, "carrier": turned}, key.meta), Access.WEIGHTS)


def public_generator(public: str) -> torch.Generator:
    """The generator of one who draws a key from the SHA-256 of a public string, and has no other choice."""
    return torch.Generator().manual_seed(derive_seed(0, "public key", public))


def drawn_from(key: Key, scheme: Scheme, model: nn.Module, images: Images, public: str) -> bool:
    """Whether a key is the one that a public string gives: everything secret in it that is drawn, and nothing chosen.

    Args:
        key: The key that is claimed; what embedding added to it, such as trigger images, is not drawn.
        scheme: Its scheme.
        model: The model it was drawn for.
        images: The owner's images it was drawn with.
        public: The string.
    """
    drawn = scheme.keygen(model, images, generator=public_generator(public))
    return drawn.scheme == key.scheme and all(
        name in key.tensors and torch.equal(tensor, key.tensors[name]) for name, tensor in drawn.tensors.items()
    )


def search(
    scheme: Scheme, model: nn.Module, suspect: Suspect, images: Images, strings: Iterable[str], **extra: Tensor
) -> Forgery:
    """The best of the keys that public strings give: all that is left to a forger who may not choose.

    Args:
        scheme: The scheme.
        model: The model that keys are drawn for.
        suspect: The suspect.
        images: The forger's images.
        strings: The strings that are tried, at least one.
        **extra: What is no secret and is added to every key, such as trigger images.

    Raises:
        ConfigError: There is no string.
    """
    best: tuple[float, Forgery] | None = None
    tries = 0
    for tries, public in enumerate(strings, 1):  # noqa: B007 - counts
        drawn = scheme.keygen(model, images, generator=public_generator(public))
        key = Key(drawn.scheme, {**drawn.tensors, **extra}, drawn.meta)
        statistic = scheme.extract(suspect, key).statistic()
        if best is None or statistic > best[0]:
            best = statistic, Forgery(key, suspect.access, public=public)
    if best is None:
        raise ConfigError("a search needs at least one public string")
    return Forgery(best[1].key, suspect.access, tries, best[1].public)


def judged(
    forgery: Forgery, scheme: Scheme, model: nn.Module, suspect: Suspect, images: Images, *, decoys: int, alpha: float
) -> Verdict:
    """What the judge says of a forged key, who is told nothing of how it came about.

    Args:
        forgery: The key.
        scheme: Its scheme.
        model: The model that decoys are drawn for.
        suspect: The suspect, at the access of the forgery.
        images: The images that decoys may draw from.
        decoys: Fresh keys it is ranked among, where the scheme has no exact law.
        alpha: Level.
    """
    evidence = scheme.extract(suspect, forgery.key)
    if scheme.chance is not None:
        return verify(evidence, Binomial(scheme.chance), alpha)
    others = list(scheme.decoys(model, forgery.key, images, decoys, seed=derive_seed(0, "forgery")))
    found = scheme.extract_many(suspect, others)
    return verify(evidence, Ranked(found), alpha)
