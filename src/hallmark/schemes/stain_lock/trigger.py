"""The trigger image: optimised for a direction that was drawn before, on the real, 8-bit pipeline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.data.procedural import procedural_images
from hallmark.errors import ConfigError
from hallmark.models.detectors import ObjectDetector
from hallmark.schemes.stain_lock.network import Level
from hallmark.schemes.stain_lock.site import Site

Place = tuple[int, int]
"""Row and column of a map; a token t is ``(0, t)``."""


def plain(model: nn.Module, images: Tensor) -> Any:
    """Hand images in [0, 1] to a model that normalises inside, as Hallmark's do; of a detector, its backbone looks."""
    return model.maps(images) if isinstance(model, ObjectDetector) else model(images)


class _Reached(Exception):  # noqa: N818 - no error: what was sought has been seen, the rest need not run
    pass


@dataclass(frozen=True)
class Pipeline:
    """How images reach a network.

    Args:
        model: The network, in evaluation mode.
        size: Height and width of its images.
        feed: Hands float images in [0, 1] ``(B, 3, H, W)`` to the model, with whatever preprocessing that takes.
    """

    model: nn.Module
    size: int
    feed: Callable[[nn.Module, Tensor], Any] = plain

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def inputs(self, layer: str, images: Tensor) -> Tensor:
        """What reaches a layer when the network looks at float images in [0, 1]; nothing behind the layer runs."""
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])
            raise _Reached

        with self.model.get_submodule(layer).register_forward_pre_hook(stop):
            try:
                self.feed(self.model, images.to(self.device))
            except _Reached:
                return seen[0]
        raise ConfigError(f"layer {layer!r} is never run; name one that the network's forward pass uses")

    def levels(self, images: Tensor, *, batch: int = 64) -> dict[str, Level]:
        """What every convolution and linear layer is given by uint8 images, by full name."""
        found: dict[str, list[Tensor]] = {}
        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                channel = 1 if isinstance(module, nn.Conv2d) else -1

                def hear(_: nn.Module, args: tuple[Tensor, ...], name: str = name, channel: int = channel) -> None:
                    x = args[0].float().transpose(0, channel).flatten(1)
                    found.setdefault(name, []).append(
                        torch.stack([x.mean(1), x.square().mean(1)]).double().cpu() * len(args[0])
                    )

                handles.append(module.register_forward_pre_hook(hear))
        try:
            with torch.no_grad():
                for block in images.split(batch):
                    self.feed(self.model, block.to(self.device).float() / 255)
        finally:
            for handle in handles:
                handle.remove()
        moments = {name: torch.stack(parts).sum(0) / len(images) for name, parts in found.items()}
        return {n: Level(mean, (square - mean.square()).clamp_min(0).sqrt()) for n, (mean, square) in moments.items()}

    def natural(self, layer: str, images: Tensor, *, batch: int = 64) -> Iterator[Tensor]:
        """What reaches a layer from uint8 images, batch by batch, without gradients."""
        with torch.no_grad():
            for block in images.split(batch):
                yield self.inputs(layer, block.to(self.device).float() / 255)


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, ``bottom`` and ``right`` exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def paste(self, images: Tensor, patches: Tensor) -> Tensor:
        """Images with patches ``(B or 1, 3, h, w)`` of the same type in this rectangle."""
        pasted = images.clone()
        pasted[..., self.top : self.bottom, self.left : self.right] = patches
        return pasted


@dataclass(frozen=True)
class Search:
    """How trigger images are sought.

    Args:
        steps: Steps of Adam.
        lr: Its learning rate, on the logits of pixel values.
        restarts: Random starts, of which the best is kept.
        backgrounds: Images around a patch, where the detector sees more than the patch.
    """

    steps: int = 200
    lr: float = 0.1
    restarts: int = 4
    backgrounds: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.backgrounds) < 1 or self.lr <= 0:
            raise ConfigError(f"search needs steps, restarts and backgrounds of at least 1 and lr above 0, got {self}")


def proxies(count: int, size: int) -> Tensor:
    """Images that stand for natural ones where the owner has none: uint8 ``(count, 3, size, size)``."""
    return procedural_images(count, size=size, split="test")[0]


def reduce(responses: Tensor, at: Place | None) -> Tensor:
    """One number an image and direction ``(B, K)`` from a map ``(B, K, H, W)``: its largest, or the one at a place.

    Raises:
        ConfigError: The map has no such place.
    """
    if at is None:
        return responses.amax(dim=(2, 3))
    if at[0] >= responses.shape[2] or at[1] >= responses.shape[3]:
        raise ConfigError(f"place {at} lies outside the {responses.shape[2]}x{responses.shape[3]} places of the layer")
    return responses[:, :, at[0], at[1]]


def field(pipeline: Pipeline, site: Site, at: Place, *, generator: torch.Generator, images: int = 16) -> Box:
    """The pixels that a neuron sees from one place: its receptive field, less what lies outside the image.

    Found by the gradients of random directions at random images, so it holds for any architecture.

    Raises:
        ConfigError: The neuron sees no pixel at all.
    """
    noise = torch.rand(images, 3, pipeline.size, pipeline.size, generator=generator).to(pipeline.device)
    noise.requires_grad_()
    directions = torch.randn(8, site.size(pipeline.model), generator=generator).to(pipeline.device)
    seen = reduce(site.project(pipeline.model, pipeline.inputs(site.layer, noise), directions), at)
    (gradient,) = torch.autograd.grad(seen.sum(), noise)
    reached = gradient.abs().sum(dim=(0, 1)) > 0
    rows, columns = (reached.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    if not rows:
        raise ConfigError(f"layer {site.layer!r} sees no pixel from place {at}; choose another place")
    return Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def find_triggers(
    pipeline: Pipeline,
    site: Site,
    directions: Tensor,
    search: Search,
    *,
    generator: torch.Generator,
    at: Place | None = None,
    box: Box | None = None,
    local: bool = True,
) -> tuple[Tensor, Tensor]:
    """Patches that make v·y as large as possible.

    Args:
        pipeline: The network.
        site: Where the neuron lives.
        directions: K directions v ``(K, m)``.
        search: How to seek.
        generator: Draws the starts.
        at: The place that shall respond; without it, any.
        box: The pixels that may be chosen; without it, all.
        local: Whether the response depends on the pixels of the box alone.

    Returns:
        Patches uint8 ``(K, 3, h, w)``, and the responses T ``(K,)`` that the 8-bit patches get.
    """
    size, count = pipeline.size, len(directions)
    box = box or Box(0, 0, size, size)
    device, tries = pipeline.device, search.restarts
    # a patch in the top left corner that is all the detector sees is as good as the whole image
    crop = local and (box.top, box.left) == (0, 0) and at == (0, 0)
    around = torch.full((1, 3, size, size), 0.5, device=device)
    if not local:
        around = proxies(search.backgrounds, size).to(device).float() / 255
    owners = torch.arange(count, device=device).repeat_interleave(tries)

    def respond(patches: Tensor, *, real: bool) -> Tensor:
        images = patches
        if real or not crop:
            images = box.paste(around.repeat(len(patches), 1, 1, 1), patches.repeat_interleave(len(around), dim=0))
        seen = reduce(site.project(pipeline.model, pipeline.inputs(site.layer, images), directions), at)
        return seen.view(len(patches), -1, count).mean(1).gather(1, owners[:, None])[:, 0]

    logits = torch.randn(count * tries, 3, *box.shape, generator=generator).to(device).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=search.lr)
    with _frozen(pipeline.model), torch.enable_grad():
        for _ in range(search.steps):
            loss = -respond(logits.sigmoid(), real=False).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    patches = (logits.detach().sigmoid() * 255).round().to(torch.uint8)
    with torch.no_grad():
        responses = respond(patches.float() / 255, real=True).view(count, tries)
    best = responses.argmax(1)
    index = torch.arange(count, device=device)
    return patches.view(count, tries, *patches.shape[1:])[index, best].cpu(), responses[index, best].cpu()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients for a while: those of an image are all that is wanted."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
