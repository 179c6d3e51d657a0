"""Detector neurons and codes: the direction is that of a neuron that is there, the code what the answer is."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.attacks.forging.common import Forger, Forgery, changed
from hallmark.attacks.forging.pixels import adapted
from hallmark.core import Access, Key, Suspect
from hallmark.core.scheme import Images
from hallmark.data.pairs import to_bytes
from hallmark.schemes.stain_lock.code import agreement
from hallmark.schemes.stain_lock.detector import within
from hallmark.schemes.stain_lock.lock import Lock
from hallmark.schemes.stain_lock.locking import logit_moves
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.stain import Stain
from hallmark.schemes.stain_lock.trigger import Box


@dataclass(frozen=True)
class StainForger(Forger):
    """At WEIGHTS the directions are those of the neurons; at answers the codes are what the answers are.

    Under a public string the codes are no longer the forger's choice, but the trigger images are: they are optimised
    until the answers to them are the codes.  Nothing of the kind helps at WEIGHTS.

    Args:
        steps: Of that search.
    """

    scheme: Stain
    steps: int = 200

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS, Access.FEATURES, Access.LOGITS, Access.LABELS})
    searched: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def needed(self, decoys: int) -> int:
        """The trigger images."""
        return self.scheme.keys

    @property
    def work(self) -> float:
        """The search for trigger images."""
        return float(3 * self.steps * self.scheme.keys) if self.public is not None else 1.0

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key for the neurons that an honest stain would take."""
        weights, model = suspect.access is Access.WEIGHTS, self.copy(suspect)
        drawn = self.drawn(model, images, generator)
        tensors = dict(drawn.tensors)
        if weights and self.public is None:
            tensors["directions"] = F.normalize(_rows(model, drawn), dim=1)
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
class LockForger(Forger):
    """At WEIGHTS the directions are those of the neurons; at LOGITS the disruptors are what a patch takes away.

    Under a public string the best of the directions that a key may draw is kept, as by an honest lock, and at LOGITS
    the patches are optimised until they move the logits against the disruptors.

    Args:
        side: Of the patches in pixels, where the scheme leaves it to the layer.
        steps: Sign steps on the patches.
    """

    scheme: Lock
    side: int = 8
    steps: int = 200

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS, Access.LOGITS})
    most_tries: ClassVar[int | None] = 50
    """A key is drawn for an edited copy of the network, which takes a moment."""
    searched: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def needed(self, decoys: int) -> int:
        """The query images, or the natural ones that a key may look at."""
        return max(self.scheme.queries, self.scheme.natural)

    @property
    def work(self) -> float:
        """The search for patches."""
        return float(3 * self.steps * self.scheme.queries) if self.public is not None else 1.0

    def forge(self, suspect: Suspect, images: Images, *, generator: torch.Generator) -> Forgery:
        """A key for the neurons that an honest lock would take."""
        model = self.copy(suspect)
        key = self.drawn(model, images, generator)
        if suspect.access is Access.WEIGHTS:
            centred, removed = bool(key.meta["site"]["layernorm"]), key.tensors.get("removed")
            rows = within(_rows(model, key), centred=centred, removed=removed)
            directions = F.normalize(rows, dim=1)[:, None]
            if self.public is not None:
                best = (key.tensors["directions"] @ directions[:, 0, :, None])[..., 0].argmax(1)
                directions = key.tensors["directions"][torch.arange(len(best)), best][:, None]
            return Forgery(changed(key, directions=directions), suspect.access, public=self.public)
        key = self._patched(key, images.images.shape[-1], generator)
        if self.public is None:
            moves = logit_moves(suspect, key)
            disruptors = F.normalize(moves.mean(1, keepdim=True) - moves, dim=1)
            return Forgery(changed(key, disruptors=disruptors), suspect.access)
        patches = {}
        for lock, place in enumerate(key.meta["boxes"]):
            name = f"patch.{lock}"
            loss = self._unmoved(model, key, Box(*place), key.tensors["disruptors"][lock])
            found = adapted(key.tensors[name][None], loss, steps=self.steps, like=model, radius=1.0)
            patches[name] = found[0]
        return Forgery(changed(key, **patches), suspect.access, public=self.public)

    def _patched(self, key: Key, size: int, generator: torch.Generator) -> Key:
        """A key with a patch of noise for each lock, side by side in the top row."""
        side = min(self.scheme.patch or self.side, size // self.scheme.locks)
        boxes = [[0, lock * side, side, (lock + 1) * side] for lock in range(self.scheme.locks)]
        noise = torch.randint(0, 256, (len(boxes), 3, side, side), generator=generator, dtype=torch.uint8)
        patches = {f"patch.{lock}": patch for lock, patch in enumerate(noise)}
        # what a lock's edit would have left of its candidates
        kept = key.tensors["directions"][:, :1]
        return Key(key.scheme, {**key.tensors, **patches, "directions": kept}, {**key.meta, "boxes": boxes})

    @staticmethod
    def _unmoved(model: nn.Module, key: Key, box: Box, disruptor: Tensor):  # type: ignore[no-untyped-def]
        """The loss of a patch ``(1, 3, h, w)`` that is to move the logits of the queries against a disruptor."""
        device = next(model.parameters()).device
        queries = key.tensors["queries"].to(device).float() / 255
        with torch.no_grad():
            before = model(queries)

        def loss(patch: Tensor) -> Tensor:
            moves = (model(box.paste(queries, patch)) - before).mean(0, keepdim=True)
            return -agreement(moves, -disruptor[None].to(device)).sum()

        return loss


def _rows(model: nn.Module, key: Key) -> Tensor:
    """Weights ``(K, m)`` of the neurons that a key names, in the detector's coordinates."""
    site = Site.recorded(key.meta["site"], model)
    return torch.stack([site.read(model, neuron)[0].detach().cpu() for neuron in key.meta["neurons"]])
