"""Conduits: one channel led from a neuron to a later place, through identity kernels, and kept clean on the way."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.network import Level, Network, Reader, columns, loudness, weight_of
from hallmark.schemes.stain_lock.surgery import Surgery


@dataclass(frozen=True)
class Arrival:
    """Where a conduit ends.

    Args:
        channel: The channel of the last map.
        channels: Channels of that map.
        used: Channels given away on the way, as (layer that writes them, channel).
    """

    channel: int
    channels: int
    used: tuple[tuple[str, int], ...]

    def inputs(self, module: nn.Module) -> slice:
        """Which inputs of a layer that reads the last map carry the channel."""
        return _inputs(module, self.channel, self.channels)


def lay(
    surgery: Surgery,
    network: Network,
    neuron: int,
    end: fx.Node,
    *,
    levels: Mapping[str, Level],
    taken: frozenset[tuple[str, int]] = frozenset(),
) -> Arrival:
    """Lead a neuron's output to a node, unchanged but for activations, pooling and strides.

    Along the way with the fewest mixing layers, each of them gives one output away to copy the channel, the one that is
    heard least; BatchNorm adds nothing to it, whatever is added to it is made zero there, and all other readers
    ignore it and keep what its place gave them on average.

    Args:
        surgery: The network to edit.
        network: Its graph, around the neuron's layer.
        neuron: The neuron of that layer.
        end: Where to.
        levels: What the network's layers are given on average, by full name.
        taken: Channels of other conduits.

    Raises:
        ConfigError: There is no such way, or something on it cannot be cleared.
    """
    way = network.route(end)
    on_way = set(way)
    channel, channels = neuron, len(weight_of(network.module(way[0])))
    used = [(network.name(way[0]), neuron)]
    own_norm = True
    for at, node in enumerate(way):
        if at and network.mixes(node):
            kept = quietest(network, node, levels, taken)
            _carry(surgery, network, node, kept, channel, channels, levels)
            used.append((network.name(node), kept))
            channel, channels = kept, len(weight_of(network.module(node)))
            own_norm = False
        elif at and network.depthwise(node):
            _copy(surgery, network.name(node), channel, 0)
            own_norm = False
        elif network.norm(node) and not own_norm:  # the neuron's own belongs to the detector
            surgery.set_norm(network.name(node), channel, mean=0.0, deviation=1.0, bias=0.0)
        before, after = network.padding(node) or (0, 0)
        channel, channels = channel + before, channels + before + after
        for source in network.sources(node) if at and network.adds(node) else []:
            if source is not way[at - 1]:
                _silence(surgery, network, source, channel, channels, on_way)
        if node is not end:
            for user in network.users(node):
                if user is not way[at + 1]:
                    _ignore(surgery, network, user, channel, channels, levels)
    return Arrival(channel, channels, tuple(used))


def quietest(network: Network, node: fx.Node, levels: Mapping[str, Level], taken: frozenset[tuple[str, int]]) -> int:
    """The output of a layer that is heard least and that no other conduit uses.

    Raises:
        ConfigError: All are in use.
    """
    width = len(weight_of(network.module(node)))
    try:
        heard = loudness(network, node, width, levels)
    except ConfigError:  # all that follows reads a transformer's stream: give away what this layer itself says least
        heard = weight_of(network.module(node)).abs().double().flatten(1).sum(1).cpu()
    heard[[channel for layer, channel in taken if layer == network.name(node)]] = torch.inf
    if not bool(heard.isfinite().any()):
        raise ConfigError(f"all {width} channels of {network.name(node)!r} are in use; ask for fewer locks")
    return int(heard.argmin())


def _inputs(module: nn.Module, channel: int, channels: int) -> slice:
    return columns(module, Reader(None, 0, channels, False), channel)  # type: ignore[arg-type]


def _carry(
    surgery: Surgery,
    network: Network,
    node: fx.Node,
    kept: int,
    channel: int,
    channels: int,
    levels: Mapping[str, Level],
) -> None:
    """Let output ``kept`` of a mixing layer copy a channel and all others ignore it."""
    name, module = network.name(node), network.module(node)
    if getattr(module, "groups", 1) != 1:
        raise ConfigError(f"{name!r} is a grouped convolution, through which no conduit leads; choose a later layer")
    inputs = _inputs(module, channel, channels)
    forget(surgery, network, node, inputs, levels)
    _copy(surgery, name, kept, inputs.start)  # of a flattened map, its first place: the top left corner


def _copy(surgery: Surgery, name: str, row: int, column: int) -> None:
    """Make one output of a layer its input ``column``, so that place (0, 0) stays place (0, 0)."""
    surgery.clear_row(name, row)
    weight: Tensor = surgery.tensor(name, "weight")
    module = surgery.model.get_submodule(name)
    if not isinstance(module, nn.Conv2d):
        weight[row, column] = 1
        return
    down, right = (pad // dilation for pad, dilation in zip(_padding(module), module.dilation, strict=True))
    weight[row, column, down, right] = 1


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return (0, 0)
        sides = zip(module.kernel_size, module.dilation, strict=True)
        return tuple((kernel - 1) * dilation // 2 for kernel, dilation in sides)  # type: ignore[return-value]
    return module.padding  # type: ignore[return-value]


def forget(surgery: Surgery, network: Network, node: fx.Node, inputs: slice, levels: Mapping[str, Level]) -> None:
    """Make a mixing layer ignore some inputs, but keep what they gave on average."""
    keep_average(surgery, network, node, inputs, levels)
    surgery.clear_columns(network.name(node), inputs)


def keep_average(surgery: Surgery, network: Network, node: fx.Node, inputs: slice, levels: Mapping[str, Level]) -> None:
    """Let a mixing layer keep what some inputs gave on average, before they fall silent."""
    behind = [user for user in network.users(node) if network.norm(user)]
    norm = network.name(behind[0]) if len(behind) == 1 else ""
    surgery.keep_means(network.name(node), inputs, levels[network.name(node)].mean, norm)


def _ignore(
    surgery: Surgery, network: Network, node: fx.Node, channel: int, channels: int, levels: Mapping[str, Level]
) -> None:
    """Make whatever reads a channel from here on ignore it."""
    if network.mixes(node):
        forget(surgery, network, node, _inputs(network.module(node), channel, channels), levels)
    elif network.depthwise(node):
        surgery.clear_row(network.name(node), channel)
    elif network.passes(node) and not network.adds(node):
        before, after = network.padding(node) or (0, 0)
        for user in network.users(node):
            _ignore(surgery, network, user, channel + before, channels + before + after, levels)
    elif node.op != "output":
        raise ConfigError(
            f"{network.operation(node)!r} also reads the conduit and cannot be made to ignore it; end the conduit "
            "before it, such as in the block that holds the detector"
        )


def _silence(
    surgery: Surgery, network: Network, node: fx.Node, channel: int, channels: int, on_way: set[fx.Node]
) -> None:
    """Make a channel of a map zero, by clearing whatever writes it."""
    kind = network.operation(node)
    if node in on_way:
        raise ConfigError("the conduit would meet itself in a sum; choose an inner layer of a block")
    if network.norm(node):
        surgery.clear_norm(network.name(node), channel)
    elif network.mixes(node) or network.depthwise(node):
        surgery.clear_row(network.name(node), channel)
    elif kind == "multiheadattention":
        surgery.clear_row(f"{network.name(node)}.out_proj", channel)
    elif kind == "get_attr":  # a class token or a position embedding
        owner, _, name = network.name(node).rpartition(".")
        surgery.tensor(owner, name)[..., channel] = 0
    elif network.passes(node) or kind in _STREAMING:
        before, after = network.padding(node) or (0, 0)
        if 0 <= channel - before < channels - before - after:  # else it is padding, and zero already
            for source in network.sources(node):
                _silence(surgery, network, source, channel - before, channels - before - after, on_way)
    else:
        raise ConfigError(f"channel {channel} comes from {kind!r}, where it cannot be cleared; choose another layer")


_STREAMING = ("getitem", "cat", "expand", "permute", "reshape")
"""How a transformer's stream is put together from patches, a class token and attention."""
