"""Staining any network by layer name: directions and codes, trigger images, and the edits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.code import draw_codes, write_codes
from hallmark.schemes.stain_lock.conduit import keep_average
from hallmark.schemes.stain_lock.detector import (
    Seen,
    draw_directions,
    hide,
    look,
    replace,
    response,
    surprise,
)
from hallmark.schemes.stain_lock.guarantees import averaged_cap_bound, cap_bound, holdout_bound, mean_cap
from hallmark.schemes.stain_lock.network import Network, columns, loudness, recalled
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery
from hallmark.schemes.stain_lock.trigger import Pipeline, find_triggers, proxies

if TYPE_CHECKING:
    from hallmark.schemes.stain_lock.stain import Stain


def require_site(model: nn.Module, settings: "Stain") -> tuple[Site, Network]:
    """The site that the settings name, and the graph around it; weights are not looked at.

    Raises:
        ConfigError: The layer does not exist, cannot hold a detector, or has too few neurons.
    """
    site, network = Site.of(model, settings.layer)
    settings.levels.firing(site.activation)
    width = site.width(model)
    if settings.keys > width:
        raise ConfigError(f"scheme.keys={settings.keys} exceeds the {width} neurons of {site.layer!r}; lower it")
    return site, network


def draw_key(pipeline: Pipeline, settings: "Stain", *, generator: torch.Generator) -> Key:
    """A key for any network: directions ``(K, m)``, codes ``(K, C)``, and the neurons they are for.

    Raises:
        ConfigError: The layer does not exist, cannot hold a detector, or has too few neurons.
    """
    model = pipeline.model
    site, network = require_site(model, settings)
    levels = recalled(network)
    readers = network.readers(network.layer, site.width(model))
    if any(network.name(reader.node) not in levels for reader in readers):  # images only where BatchNorm does not tell
        levels = pipeline.levels(proxies(32, pipeline.size)) | levels
    heard = loudness(network, network.layer, site.width(model), levels)
    if settings.form == "add":
        heard[~site.live(model)] = torch.inf
    neurons = heard.argsort(stable=True)[: settings.keys].tolist()
    size, centred = site.size(model), bool(site.layernorm)
    tensors = {"directions": draw_directions(settings.keys, size, centred=centred, generator=generator)}
    if settings.code:
        with torch.no_grad():
            blank = torch.full((1, 3, pipeline.size, pipeline.size), 0.5, device=pipeline.device)
            answers = pipeline.feed(model, blank)
        if not isinstance(answers, Tensor) or answers.ndim != 2:
            raise ConfigError("a code needs a network that answers with one vector an image; set scheme.code=false")
        tensors["codes"] = draw_codes(settings.keys, answers.shape[1], generator=generator)
    return Key("stain", tensors, {"site": site.record, "neurons": neurons, "logits": not _is_encoder(model)})


def write_stain(
    pipeline: Pipeline, key: Key, settings: "Stain", *, natural: Tensor | None = None, generator: torch.Generator
) -> tuple[nn.Module, Key]:
    """Stain any network.

    Args:
        pipeline: The network; it is left untouched.
        key: Drawn by :func:`draw_key`.
        settings: The scheme's settings.
        natural: Natural images uint8 ``(N, 3, H, W)``, if there are any.
        generator: Draws the starts of the search.

    Returns:
        The stained network, which shares the tensors that do not change, and the key with its trigger images, their
        responses and what the edit cost and guarantees.
    """
    model, neurons = pipeline.model, key.meta["neurons"]
    site, network = Site.of(model, key.meta["site"]["layer"])
    directions = key.tensors["directions"].to(pipeline.device)
    triggers, peaks = find_triggers(pipeline, site, directions, settings.search, generator=generator)
    if not bool((peaks > 0).all()):
        raise ConfigError(f"no image was found that {site.layer!r} answers to; raise scheme.search.steps or restarts")
    images = proxies(128, pipeline.size) if natural is None else natural
    surgery = Surgery(model)
    seen = look(pipeline, site, directions, images)
    moments = seen.moments if site.norm else [(0.0, 1.0)] * len(neurons)
    for k, neuron in enumerate(neurons):
        peak = float(peaks[k])
        if settings.form == "replace":
            replace(surgery, site, neuron, directions[k], peak, settings.levels, moments=moments[k])
        else:
            before = _before(pipeline, site, neuron, directions[k], triggers[k])
            hide(surgery, site, neuron, directions[k], peak, before, settings.levels.response)
    if settings.form == "replace":
        keep_means(surgery, network, site, neurons)
    reached = None
    if settings.code:
        edited = surgery, network, site, neurons
        reached = write_codes(*edited, triggers, key.tensors["codes"], pipeline, steps=settings.code_steps)
    firing = settings.levels.firing(site.activation)
    rates = _false_fires(seen, firing * peaks, site.freedom(model))
    meta = {
        **key.meta,
        "form": settings.form,
        "tau": settings.levels.tau,
        "response": settings.levels.response,
        "peaks": peaks.tolist(),
        "agreement": None if reached is None else reached.tolist(),
        "false_fires": rates,
        "figures": {"fpr_bound": rates["averaged_cap_bound"], "changed_weights": surgery.changed()},
    }
    return surgery.model, Key(key.scheme, {**key.tensors, "triggers": triggers}, meta)


def keep_means(surgery: Surgery, network: Network, site: Site, neurons: Sequence[int]) -> None:
    """Let layers that read silent neurons keep what these gave them on average, where BatchNorm remembers that."""
    known = recalled(network)
    for reader in network.readers(network.layer, site.width(surgery.model)):
        if network.name(reader.node) in known and not reader.shared:
            for neuron in neurons:
                inputs = columns(network.module(reader.node), reader, neuron)
                keep_average(surgery, network, reader.node, inputs, known)


def surprises(model: nn.Module, key: Key) -> list[float]:
    """−ln of the exact p-value of each neuron's weights; see :func:`hallmark.schemes.stain_lock.detector.surprise`.

    Raises:
        KeyFileError: The key is for another network.
    """
    site = Site.recorded(key.meta["site"], model)
    pairs = zip(key.meta["neurons"], key.tensors["directions"], strict=True)
    return [surprise(model, site, neuron, direction[None]) for neuron, direction in pairs]


def responses(pipeline: Pipeline, key: Key) -> Tensor:
    """What each neuron answers to its trigger image ``(K,)`` before the activation: Δ where the stain is whole."""
    site = Site.recorded(key.meta["site"], pipeline.model)
    model, triggers = pipeline.model, key.tensors["triggers"]
    read = [site.read(model, neuron) for neuron in key.meta["neurons"]]
    weights, biases = torch.stack([weight for weight, _ in read]), torch.tensor([bias for _, bias in read])
    peaks = [site.project(model, x, weights).amax((2, 3)) for x in pipeline.natural(site.layer, triggers)]
    return torch.cat(peaks).diagonal().cpu() + biases


def _before(pipeline: Pipeline, site: Site, neuron: int, direction: Tensor, trigger: Tensor) -> float:
    """What a neuron answers to a trigger image where the direction answers most."""
    (x,) = pipeline.natural(site.layer, trigger[None])
    at = site.project(pipeline.model, x, direction[None]).flatten().argmax()
    return float(response(pipeline, site, neuron, trigger[None]).flatten()[at])


def _false_fires(seen: Seen, thresholds: Tensor, freedom: int) -> dict[str, float]:
    """What is known of false fires, each figure for the neuron where it is largest; see :mod:`.guarantees`.

    The images chose nothing but how BatchNorm shows the neuron's statistics, so they are a hold-out too.

    Args:
        seen: What the directions make of natural images.
        thresholds: Where each neuron fires ``(K,)``.
        freedom: Dimension of the space that directions are drawn from.
    """
    count, places = seen.norms.shape
    fired = int((seen.peaks > thresholds).sum(0).max())
    least = float(thresholds.min())  # every bound falls with the threshold
    return {
        "images": count,
        "places": places,
        "fired": fired,
        "holdout_bound": holdout_bound(fired, count),
        "mean_cap": mean_cap(least, seen.norms, freedom)[0],
        "averaged_cap_bound": averaged_cap_bound(least, seen.norms, freedom),
        "largest_norm_cap": float(cap_bound(least, float(seen.norms.max()), freedom, places=places)),
    }


def _is_encoder(model: nn.Module) -> bool:
    from hallmark.models.encoders import Encoder  # only Hallmark's own encoders answer with features

    return isinstance(model, Encoder)
