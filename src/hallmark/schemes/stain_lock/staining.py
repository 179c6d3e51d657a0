"""Staining any network by layer name: directions and codes, trigger images, and the edits."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.code import draw_codes, write_codes
from hallmark.schemes.stain_lock.detector import (
    draw_directions,
    hide,
    natural_norms,
    replace,
    response,
    surprise,
)
from hallmark.schemes.stain_lock.guarantees import averaged_cap_bound
from hallmark.schemes.stain_lock.network import Network, loudness
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
    heard = loudness(network, network.layer, site.width(model), pipeline.levels(proxies(32, pipeline.size)))
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
    moments = _moments(pipeline, site, directions, images) if site.norm else [(0.0, 1.0)] * len(neurons)
    for k, neuron in enumerate(neurons):
        peak = float(peaks[k])
        if settings.form == "replace":
            replace(surgery, site, neuron, directions[k], peak, settings.levels, moments=moments[k])
        else:
            before = _before(pipeline, site, neuron, directions[k], triggers[k])
            hide(surgery, site, neuron, directions[k], peak, before, settings.levels.response)
    reached = None
    if settings.code:
        edited = surgery, network, site, neurons
        reached = write_codes(*edited, triggers, key.tensors["codes"], pipeline, steps=settings.code_steps)
    firing = settings.levels.firing(site.activation)
    norms = natural_norms(pipeline, site, images)
    bounds = [averaged_cap_bound(firing * float(p), norms, site.freedom(model)) for p in peaks]
    meta = {
        **key.meta,
        "form": settings.form,
        "tau": settings.levels.tau,
        "response": settings.levels.response,
        "peaks": peaks.tolist(),
        "agreement": None if reached is None else reached.tolist(),
        "figures": {"fpr_bound": max(bounds), "changed_weights": surgery.changed()},
    }
    return surgery.model, Key(key.scheme, {**key.tensors, "triggers": triggers}, meta)


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
    pairs = zip(key.meta["neurons"], key.tensors["triggers"], strict=True)
    return torch.stack([response(pipeline, site, neuron, trigger[None]).max() for neuron, trigger in pairs])


def _before(pipeline: Pipeline, site: Site, neuron: int, direction: Tensor, trigger: Tensor) -> float:
    """What a neuron answers to a trigger image where the direction answers most."""
    (x,) = pipeline.natural(site.layer, trigger[None])
    at = site.project(pipeline.model, x, direction[None]).flatten().argmax()
    return float(response(pipeline, site, neuron, trigger[None]).flatten()[at])


def _moments(pipeline: Pipeline, site: Site, directions: Tensor, images: Tensor) -> list[tuple[float, float]]:
    """Mean and standard deviation of v·y over all places of natural images, for each direction."""
    maps = torch.cat([site.project(pipeline.model, x, directions) for x in pipeline.natural(site.layer, images)])
    deviations, means = torch.std_mean(maps, dim=(0, 2, 3))
    return list(zip(means.tolist(), deviations.tolist(), strict=True))


def _is_encoder(model: nn.Module) -> bool:
    from hallmark.models.encoders import Encoder  # only Hallmark's own encoders answer with features

    return isinstance(model, Encoder)
