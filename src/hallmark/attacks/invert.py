"""Trigger reverse-engineering: the patch that makes a locked model useful, sought from its answers alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hallmark.attacks.sample import draw_images
from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.data.pairs import to_bytes
from hallmark.errors import ConfigError, allowed
from hallmark.models.steps import Stamp
from hallmark.models.wrapping import Preprocessed

CORNERS: Mapping[str, tuple[int, int]] = {
    "top_left": (0, 0),
    "top_right": (0, 1),
    "bottom_left": (1, 0),
    "bottom_right": (1, 1),
}
_BLOCK = 512


@dataclass(frozen=True)
class Invert(Attack):
    """Optimise one patch for a corner of every image, and stamp it on whatever the model is asked from then on.

    Without labels the answers are to be confident about each image and diverse over images (the mutual information of
    image and answer); with them, correct.  The weights are known, as gradients are, but not what the patch is for.  A
    patch that does no better on the attacker's images than none is not stamped.

    Args:
        steps: Steps of Adam on the logits of the patch's pixels.
        side: Side of the patch in pixels.
        corner: Where it goes: ``top_left``, ``top_right``, ``bottom_left`` or ``bottom_right``.
        images: The attacker's images that it is sought with.
        labelled: Whether their labels are used.
        soft: Width of the bend of ReLUs while gradients are taken, of one who suspects a silent neuron: at 0 a neuron
            that no image of the search wakes shows no way to itself.  Above, ReLUs are ½ (x + √(x² + soft²))
            (squareplus, Barron 2021), which rises everywhere and is never negative.
        restarts: Random starts, of which the best is kept.
        lr: Learning rate.
        batch: Images a step.
    """

    steps: int
    side: int = 8
    corner: str = "top_left"
    images: int = 256
    labelled: bool = False
    soft: float = 0.0
    restarts: int = 4
    lr: float = 0.1
    batch: int = 32

    name: ClassVar[str] = "invert"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    knows: ClassVar[frozenset[str]] = frozenset({"scheme"})
    """That there is a lock, and what kind of patch opens it."""

    def __post_init__(self) -> None:
        if self.corner not in CORNERS:
            raise ConfigError(allowed(self.corner, CORNERS, "invert corner"))
        if self.steps < 0 or self.steps != int(self.steps):
            raise ConfigError(f"invert steps must be a whole number of at least 0, got {self.steps}")
        if min(self.side, self.images, self.restarts, self.batch) < 1 or not self.lr > 0 or not self.soft >= 0:
            raise ConfigError(
                "invert needs side, images, restarts and batch of at least 1, lr above 0 and soft of at least 0, got "
                f"{self.side}, {self.images}, {self.restarts}, {self.batch}, {self.lr} and {self.soft}"
            )

    @property
    def needs_labels(self) -> bool:
        """If asked to."""
        return self.labelled

    def images_used(self, images: int) -> int:
        """Those that the patch is sought with."""
        return self.images

    def work(self, images: int) -> float:
        """Steps of every restart."""
        return 3.0 * self.restarts * self.steps * self.batch

    @property
    def strength(self) -> float:
        """Steps."""
        return float(self.steps)

    @property
    def unit(self) -> str:
        """The patch, what it is sought with, and the bend."""
        corner = "" if self.corner == type(self).corner else f" {self.corner}"
        what = f"{self.images} {'labelled' if self.labelled else 'unlabelled'} images"
        return f"steps {self.side}x{self.side}{corner} {what}" + (f" soft {self.soft:g}" if self.soft else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The model behind the patch, or as it is if no patch helps.

        Raises:
            ConfigError: The patch does not fit the images, the attacker has fewer of them, or labels of other classes.
        """
        model = victim.weights_module()
        if not self.steps:
            return model
        height, width = attacker_data.images.shape[2:]
        if self.side > min(height, width):
            raise ConfigError(f"invert side={self.side} does not fit into {height}x{width} images; lower it")
        rows = draw_images(attacker_data, self.images, "invert.images", generator=generator)
        images = attacker_data.images[rows].to(victim.device).float() / 255
        labels = attacker_data.labels[rows].to(victim.device) if self.labelled else None
        classes = getattr(model, "classes", attacker_data.classes)
        if labels is not None and classes != attacker_data.classes:
            raise ConfigError(f"the victim answers {classes} classes, the attacker's data has {attacker_data.classes}")
        down, right = CORNERS[self.corner]
        stamp = Stamp(self.side, self.side, down * (height - self.side), right * (width - self.side))
        patch = self._seek(model, stamp.to(victim.device), images, labels, generator)
        return model if patch is None else Preprocessed(model, _inked(stamp, patch)).eval()

    def _seek(
        self, model: nn.Module, stamp: Stamp, images: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> Tensor | None:
        """The best patch, uint8 ``(3, side, side)``, or None."""
        wanted = [p for p in model.parameters() if p.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        best, least = None, _score(model, images, labels)
        for _ in range(self.restarts):
            drawn = torch.randn(3, self.side, self.side, generator=generator).to(images.device)
            patch = self._descend(model, stamp, images, labels, drawn, generator)
            score = _score(Preprocessed(model, _inked(stamp, patch)), images, labels)
            if score < least:
                best, least = patch, score
        for parameter in wanted:
            parameter.requires_grad_(True)
        return best

    def _descend(
        self,
        model: nn.Module,
        stamp: Stamp,
        images: Tensor,
        labels: Tensor | None,
        start: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        logits = start.requires_grad_()
        optimiser = torch.optim.Adam([logits], lr=self.lr)
        area = (slice(stamp.top, stamp.top + self.side), slice(stamp.left, stamp.left + self.side))
        for _ in range(int(self.steps)):
            rows = torch.randperm(len(images), generator=generator)[: self.batch].to(images.device)
            stamped = images[rows].clone()
            stamped[:, :, area[0], area[1]] = logits.sigmoid()
            with torch.enable_grad(), _softened(self.soft):
                loss = objective(model(stamped), None if labels is None else labels[rows])
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            optimiser.step()
        return to_bytes(logits.detach().sigmoid())


def objective(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Cross entropy of logits ``(B, C)``; without labels, minus the mutual information of image and answer, in nats."""
    if labels is not None:
        return F.cross_entropy(logits, labels)
    posterior = logits.softmax(1)
    marginal = posterior.mean(0)
    entropy = -(posterior * logits.log_softmax(1)).sum(1).mean()
    diversity = -(marginal * marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()).sum()
    return entropy - diversity


def _score(model: nn.Module, images: Tensor, labels: Tensor | None) -> float:
    """The objective on all images."""
    with torch.no_grad():
        return float(objective(torch.cat([model(block) for block in images.split(_BLOCK)]), labels))


def _inked(stamp: Stamp, patch: Tensor) -> Stamp:
    """A stamp in the same place, with a patch of its own."""
    inked = Stamp(*patch.shape[1:], stamp.top, stamp.left).to(patch.device)
    inked.patch.copy_(patch)
    return inked


class _Soft(TorchFunctionMode):
    """Every ReLU that is called bends smoothly, and lets a little of what is negative through as a positive number."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.relu, torch.relu_, F.relu, Tensor.relu, Tensor.relu_):
            return (args[0] + (args[0].square() + self.width**2).sqrt()) / 2
        return func(*args, **(kwargs or {}))


@contextmanager
def _softened(width: float) -> Iterator[None]:
    if not width:
        yield
        return
    with _Soft(width):
        yield
