"""The *edited* network: everything a lock needs is in its place and nothing is locked yet."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.conduit import Arrival, forget, lay, quietest
from hallmark.schemes.stain_lock.network import Network, recalled
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery, find_layer
from hallmark.schemes.stain_lock.trigger import Pipeline, proxies

if TYPE_CHECKING:
    from hallmark.schemes.stain_lock.lock import Lock

OPEN = 20.0
"""Pre-activation of an open gate: its sigmoid is 1 in float32."""
SHUT = -1e4
"""Pre-activation of a gate that never opens."""


@dataclass(frozen=True)
class Edited:
    """A network whose detectors and conduits are cleared: the fair reference for an unlocked one.

    Args:
        surgery: The edits.
        site: The detectors' layer.
        neurons: Their neurons, one a lock.
        arrivals: Where their conduits end.
        readers: What reads each there: the logits' layer, or the lock's own gates.
    """

    surgery: Surgery
    site: Site
    neurons: tuple[int, ...]
    arrivals: tuple[Arrival, ...]
    readers: tuple[str, ...]


def edit(pipeline: Pipeline, settings: "Lock", natural: Tensor) -> Edited:
    """Clear detectors and conduits for ``settings.locks`` locks.

    For an internal lock the logits ignore what the conduits will carry.  For a Squeeze-and-Excite lock gates are
    appended, open for all channels but the conduit's own, which nobody behind them sees.

    Args:
        pipeline: The network; it is left untouched.
        settings: The scheme's settings.
        natural: Images uint8 ``(N, 3, H, W)`` that tell which channels are heard least, and what they give on average.

    Raises:
        ConfigError: A layer does not exist, no conduit can be laid, or one would not be clean.
    """
    model = pipeline.model
    site, network = Site.of(model, settings.layer)
    settings.levels.firing(site.activation)
    internal = settings.kind == "internal"
    head = _logits(network) if internal else None
    behind = "" if internal else find_layer(model, settings.behind)
    end = network.sources(head)[0] if head is not None else network.node(behind)
    surgery = Surgery(model)
    taken: frozenset[tuple[str, int]] = frozenset()
    levels = pipeline.levels(natural) | recalled(network)
    neurons, arrivals = [], []
    for _ in range(settings.locks):
        neuron = quietest(network, network.layer, levels, taken)
        site.silence(surgery, neuron)
        arrival = lay(surgery, network, neuron, end, levels=levels, taken=taken)
        taken |= frozenset(arrival.used)
        neurons.append(neuron)
        arrivals.append(arrival)
    if head is not None:
        for arrival in arrivals:
            forget(surgery, network, head, arrival.inputs(network.module(head)), levels)
        readers = [network.name(head)] * len(arrivals)
    else:
        names = [behind + ".block" * lock for lock in range(len(arrivals))]
        for name, arrival in zip(names, arrivals, strict=True):
            _append_gates(surgery, name, arrival)
            site = site.moved(name)
        readers = [f"{name}.gates" for name in names]
    edited = Edited(surgery, site, tuple(neurons), tuple(arrivals), tuple(readers))
    _require_clean(pipeline, edited)
    return edited


def _logits(network: Network) -> fx.Node:
    """The linear layer whose output is the network's.

    Raises:
        ConfigError: The network ends in something else.
    """
    (last,) = network.nodes[-1].all_input_nodes[:1] or [None]
    if network.prefix or last is None or not (network.mixes(last) and isinstance(network.module(last), nn.Linear)):
        raise ConfigError(
            "an internal lock needs a network that ends in a linear layer of logits; use scheme.kind=excite and a "
            "block of the backbone"
        )
    return last


def _append_gates(surgery: Surgery, name: str, arrival: Arrival) -> None:
    """Append gates that are open for all channels but the conduit's own."""
    gates = surgery.append_gates(name, arrival.channels).gates
    with torch.no_grad():
        for tensor in (gates.squeeze.weight, gates.squeeze.bias, gates.excite.weight):
            tensor.zero_()
        gates.excite.bias.fill_(OPEN)
        gates.excite.bias[arrival.channel] = SHUT


def _require_clean(pipeline: Pipeline, edited: Edited) -> None:
    """Refuse a conduit on which something arrives although no detector is there.

    Raises:
        ConfigError: Something does.
    """
    images = proxies(8, pipeline.size).to(pipeline.device).float() / 255
    with torch.no_grad():
        for arrival, reader in zip(edited.arrivals, edited.readers, strict=True):
            if float(signal(pipeline, edited, arrival, reader, images).abs().max()) > 0:
                raise ConfigError(
                    f"channel {arrival.channel} at {reader!r} cannot be cleared in this network; choose another layer"
                )


def signal(
    pipeline: Pipeline, edited: Edited, arrival: Arrival, reader: str, images: Tensor, *, model: nn.Module | None = None
) -> Tensor:
    """What a conduit brings ``(B,)``: the input of the logits' layer, or the mean over places that the gates squeeze.

    Args:
        pipeline: How images reach the network.
        edited: The edits.
        arrival: Where the conduit ends.
        reader: What reads it there.
        images: Float images in [0, 1].
        model: The network, if not the edited one.
    """
    network = model or edited.surgery.model
    x = Pipeline(network, pipeline.size, pipeline.feed).inputs(reader, images)
    if reader.endswith(".gates"):
        return (x.mean((2, 3)) if x.ndim == 4 else x.mean(1))[:, arrival.channel]
    return x[..., arrival.inputs(network.get_submodule(reader)).start]
