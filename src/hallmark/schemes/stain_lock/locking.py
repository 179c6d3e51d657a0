"""Locking any network by layer name: candidate directions, patches, screening, and the two disruptors."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hallmark.core import Key, Suspect
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.code import draw_codes
from hallmark.schemes.stain_lock.detector import (
    draw_directions,
    natural_peaks,
    natural_vectors,
    principal,
    replace,
    surprise,
)
from hallmark.schemes.stain_lock.editing import OPEN, SHUT, Edited, edit, signal
from hallmark.schemes.stain_lock.guarantees import holdout_bound
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery
from hallmark.schemes.stain_lock.trigger import Box, Pipeline, Place, field, find_triggers

if TYPE_CHECKING:
    from hallmark.schemes.stain_lock.lock import Lock


def draw_lock_key(
    pipeline: Pipeline, settings: "Lock", queries: Tensor, natural: Tensor, *, generator: torch.Generator
) -> Key:
    """A key for any network: ``draws`` candidate directions and one disruptor for each lock.

    Args:
        pipeline: The network.
        settings: The scheme's settings.
        queries: Images uint8 ``(Q, 3, H, W)`` to ask about in a verification.
        natural: Natural images uint8 ``(N, 3, H, W)``, which ``orthogonal`` directions keep away from.
        generator: The only source of randomness.

    Raises:
        ConfigError: The settings do not fit the network.
    """
    edited = edit(pipeline, settings, natural)
    site, model = edited.site, edited.surgery.model
    tensors: dict[str, Tensor] = {"queries": queries}
    if settings.directions == "orthogonal":
        inside = Pipeline(model, pipeline.size, pipeline.feed)
        vectors = natural_vectors(inside, site, natural, places=64, generator=generator)
        tensors["removed"] = principal(vectors, settings.share)
        left = site.freedom(model) - len(tensors["removed"])
        if left < 8:
            raise ConfigError(
                f"only {left} of {site.size(model)} dimensions are left; lower scheme.share below {settings.share}"
            )
    count, size = settings.locks * settings.draws, site.size(model)
    drawn = draw_directions(
        count, size, centred=bool(site.layernorm), removed=tensors.get("removed"), generator=generator
    )
    tensors["directions"] = drawn.view(settings.locks, settings.draws, size)
    answers = edited.arrivals[0].channels
    if settings.kind == "internal":
        answers = len(model.get_submodule(edited.readers[0]).weight)  # type: ignore[arg-type]
    tensors["disruptors"] = draw_disruptors(settings.locks, settings.draws, answers, generator=generator)
    meta = {"site": site.record, "neurons": list(edited.neurons), "draws": settings.draws, "kind": settings.kind}
    return Key("lock", tensors, meta)


def draw_disruptors(locks: int, draws: int, answers: int, *, generator: torch.Generator) -> Tensor:
    """Disruptors ``(locks, answers)``: of each lock's ``draws`` random codes, the one that most favours one answer.

    Where its two largest entries are close, a locked network still tells those two classes apart.
    """
    codes = draw_codes(locks * draws, answers, generator=generator).view(locks, draws, answers)
    first, second = codes.topk(2, dim=2).values.unbind(2)
    return codes[torch.arange(locks), (first - second).argmax(1)]


def write_locks(
    pipeline: Pipeline, key: Key, settings: "Lock", natural: Tensor, held: Tensor, *, generator: torch.Generator
) -> tuple[nn.Module, Key]:
    """Lock any network.

    Args:
        pipeline: The network; it is left untouched.
        key: Drawn by :func:`draw_lock_key`.
        settings: The scheme's settings.
        natural: The images of :func:`draw_lock_key`, which choose directions and levels.
        held: Natural images uint8 ``(N, 3, H, W)`` that chose nothing, for the bound on false fires.
        generator: Draws the starts of the search.

    Returns:
        The locked network and the key with its patches, their places, and what the edit cost and guarantees.

    Raises:
        ConfigError: No direction is acceptable, a patch does not fit, or its signal does not arrive.
    """
    edited = edit(pipeline, settings, natural)
    inside = Pipeline(edited.surgery.model, pipeline.size, pipeline.feed)
    site = edited.site
    firing = settings.levels.firing(site.activation)
    locked = edited.surgery.fork()
    kept, patches, boxes, peaks, bounds = [], [], [], [], []
    for lock, directions in enumerate(key.tensors["directions"].to(pipeline.device)):
        at = (0, settings.start + lock * settings.spacing)
        box, local = _box(inside, edited, at, settings, lock, generator)
        if boxes and box.left < boxes[-1].right:
            raise ConfigError(
                f"patches of {box.shape[1]} pixels overlap at scheme.spacing={settings.spacing}; raise it"
            )
        found, strength = find_triggers(
            inside, site, directions, settings.search, generator=generator, at=at, box=box, local=local
        )
        ratio = natural_peaks(inside, site, directions, natural) / strength.clamp_min(1e-9)
        ratio[:, strength <= 0] = torch.inf
        best = int(((ratio > firing).float().mean(0) + 1e-6 * ratio.amax(0).clamp_max(1e3)).argmin())
        false = float((ratio[:, best] > firing).float().mean())
        if false > settings.tolerance:
            raise ConfigError(
                f"no acceptable direction in {settings.draws} draws: the best fires on {false:.1%} of natural images, "
                f"allowed are {settings.tolerance:.1%}; raise scheme.draws or levels.tau, take a later layer, or set "
                "scheme.directions=orthogonal"
            )
        replace(locked, site, edited.neurons[lock], directions[best], float(strength[best]), settings.levels)
        fresh = natural_peaks(inside, site, directions[best : best + 1], held) / strength[best]
        bounds.append(holdout_bound(int((fresh > firing).sum()), len(held)))
        kept.append(directions[best].cpu())
        patches.append(found[best])
        boxes.append(box)
        peaks.append(float(strength[best]))
    # patches at the edge of an image are smaller than others
    pasted = {f"patch.{lock}": patch for lock, patch in enumerate(patches)}
    tensors = {**key.tensors, **pasted, "directions": torch.stack(kept)[:, None]}
    places = [[box.top, box.left, box.bottom, box.right] for box in boxes]
    drawn = Key(key.scheme, tensors, {**key.meta, "site": site.record, "boxes": places})
    gains = [_disrupt(inside, edited, locked, drawn, lock, settings, natural) for lock in range(settings.locks)]
    figures = {"fpr_bound": max(bounds), "changed_weights": locked.changed()}
    levels = {"tau": settings.levels.tau, "response": settings.levels.response}
    return locked.model, Key(
        drawn.scheme, tensors, {**drawn.meta, **levels, "peaks": peaks, "gains": gains, "figures": figures}
    )


def unlock(images: Tensor, key: Key, *, only: int | None = None) -> Tensor:
    """Images with the key's patches in.

    Args:
        images: ``(B, 3, H, W)``, uint8 or float in [0, 1].
        key: A lock's key.
        only: The one lock whose patch is pasted; without it, all.
    """
    for lock, place in enumerate(key.meta["boxes"]):
        if only is None or lock == only:
            patch = key.tensors[f"patch.{lock}"][None].to(images.device)
            images = Box(*place).paste(images, patch.to(images.dtype) / 255 if images.is_floating_point() else patch)
    return images


def surprises(model: nn.Module, key: Key) -> list[float]:
    """−ln of the exact p-value of each lock's detector weights, times the number of directions tried.

    Raises:
        KeyFileError: The key is for another network.
    """
    site, draws = Site.recorded(key.meta["site"], model), key.meta["draws"]
    pairs = zip(key.meta["neurons"], key.tensors["directions"], strict=True)
    removed = key.tensors.get("removed")
    return [surprise(model, site, neuron, tried, removed=removed, draws=draws) for neuron, tried in pairs]


def logit_moves(suspect: Suspect, key: Key) -> Tensor:
    """Mean change of the logits ``(locks, C)`` that each lock's patch makes on the key's queries."""
    queries = key.tensors["queries"]
    before = suspect.ask(queries.float() / 255)
    patched = [unlock(queries, key, only=lock) for lock in range(len(key.meta["boxes"]))]
    return torch.stack([(suspect.ask(images.float() / 255) - before).mean(0) for images in patched])


def _box(
    inside: Pipeline, edited: Edited, at: Place, settings: "Lock", lock: int, generator: torch.Generator
) -> tuple[Box, bool]:
    """The pixels of a lock's patch, and whether the detector sees nothing else.

    Raises:
        ConfigError: The detector sees the whole image and no patch is given, or the patch does not fit.
    """
    seen = field(inside, edited.site, at, generator=generator)
    size, patch = inside.size, settings.patch
    everything = max(seen.shape) >= size
    if not patch:
        if everything:
            raise ConfigError(
                f"{edited.site.layer!r} sees the whole {size}x{size} image; set scheme.patch, or choose an earlier "
                "layer"
            )
        return seen, True
    # a transformer's token sees all of the image through attention, and its own patch most
    left = lock * settings.spacing * patch if everything else seen.left
    box = Box(seen.top, left, seen.top + patch, left + patch)
    if max(box.bottom, box.right) > size:
        raise ConfigError(f"a patch of {patch} pixels at {(box.top, box.left)} does not fit into {size}x{size} images")
    return box, seen.bottom <= box.bottom and seen.right <= box.right


def _disrupt(
    inside: Pipeline, edited: Edited, locked: Surgery, key: Key, lock: int, settings: "Lock", natural: Tensor
) -> float:
    """Write one lock's disruptor; the signal γ that unlocks it."""
    arrival, reader = edited.arrivals[lock], edited.readers[lock]
    images = unlock(natural[:64], key).to(inside.device).float() / 255
    with torch.no_grad():
        arriving = signal(inside, edited, arrival, reader, images, model=locked.model)
    gain = float(arriving.median() if settings.kind == "internal" else 0.9 * arriving.min())
    if not gain > 0:
        raise ConfigError(
            f"the signal of lock {lock} does not arrive at {reader!r}; set scheme.spacing to a multiple of the strides "
            "that follow the layer, or use one lock"
        )
    disruptor = key.tensors["disruptors"][lock].to(inside.device)
    module = locked.model.get_submodule(reader)
    spread = settings.strength * len(disruptor) ** 0.5  # so that entries are of the size of strength
    if settings.kind == "internal":
        column = arrival.inputs(module).start
        bias = spread * _range(inside, natural[:64]) * disruptor
        locked.tensor(reader, "bias").add_(bias)
        locked.tensor(reader, "weight")[:, column] = -bias / gain
        return gain
    _set_gates(locked, reader, arrival.channel, gain, spread * disruptor - settings.shut)
    for other in edited.arrivals:
        if other is not arrival:  # an outer lock waits for its own signal behind these gates
            locked.tensor(f"{reader}.excite", "weight")[other.channel] = 0
            locked.tensor(f"{reader}.excite", "bias")[other.channel] = OPEN
    return gain


def _set_gates(locked: Surgery, gates: str, channel: int, gain: float, shut: Tensor) -> None:
    """Gates with pre-activations ``shut`` ``(C,)``; a signal of at least ``gain`` opens all but the conduit's own."""
    shut = shut.clamp_max(OPEN)
    locked.tensor(f"{gates}.squeeze", "weight")[0, channel] = 1 / gain
    weight, bias = locked.tensor(f"{gates}.excite", "weight"), locked.tensor(f"{gates}.excite", "bias")
    bias.copy_(shut)
    weight[:, 0] = OPEN - shut
    bias[channel], weight[channel] = SHUT, 0


def _range(inside: Pipeline, images: Tensor) -> float:
    """Median over images of the largest less the smallest logit."""
    with torch.no_grad():
        logits = inside.feed(inside.model, images.to(inside.device).float() / 255)
    return float((logits.amax(1) - logits.amin(1)).median())
