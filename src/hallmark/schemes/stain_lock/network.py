"""What reads what: a network as a graph in which one channel can be followed."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hallmark.errors import ConfigError

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
ACTIVATIONS = tuple(_ACTIVATIONS)
"""Activations that are silent far below zero and pass what is far above it (relu6 up to 6)."""

_MIXING = ("conv2d", "linear")
_NORMS = ("batchnorm2d", "batchnorm1d", "frozenbatchnorm2d", "syncbatchnorm")
_PASSING = (
    *("dropout", "dropout2d", "identity", "contiguous", "mean", "flatten", "view", "reshape"),
    *("maxpool2d", "max_pool2d", "avgpool2d", "avg_pool2d", "adaptiveavgpool2d", "adaptive_avg_pool2d"),
)
_KEEPING = ("dropout", "dropout2d", "identity", "maxpool2d", "max_pool2d")
"""What leaves a channel's numbers about as they are; pooling chooses among them."""
_ADDING = ("add", "iadd")
_SHAPES = ("getattr", "dim", "size", "numel")
"""What only asks for a shape, and reads no channel."""


class _Tracer(fx.Tracer):
    """Keeps torchvision's frozen BatchNorm whole; its arithmetic would hide which channel is which."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ == "FrozenBatchNorm2d" or super().is_leaf_module(m, module_qualified_name)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer, not tracked by autograd: one row an output."""
    return module.weight.detach()  # type: ignore[operator, return-value, union-attr]


class Level(NamedTuple):
    """Mean and standard deviation of each input ``(inputs,)`` of a layer, float64."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True)
class Reader:
    """A layer that reads a channel.

    Args:
        node: Its node.
        offset: What to add to a channel's number to get its number there.
        channels: Channels of the map it reads; a linear layer reads several inputs of each after a flattening.
        shared: Whether another layer's output was added to the channel on the way.
    """

    node: fx.Node
    offset: int
    channels: int
    shared: bool


class Network:
    """A model, or the largest part of it around one layer that can be traced.

    Args:
        model: Any network in evaluation mode.
        layer: Full name of a layer in it.

    Raises:
        ConfigError: Nothing around the layer can be traced, or the traced part never runs it.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        parts = layer.split(".")
        for cut in range(len(parts)):
            self.prefix = "".join(f"{part}." for part in parts[:cut])
            root = model.get_submodule(".".join(parts[:cut]))
            try:
                self.graph = _Tracer().trace(root)
            except Exception:  # noqa: BLE001 - tracing runs the network's own code, which may raise anything
                continue
            self.modules = dict(root.named_modules())
            self.layer = self.node(layer)
            return
        raise ConfigError(f"no part of the network around {layer!r} can be traced; name a layer of a traceable part")

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """All nodes, inputs before what uses them."""
        return list(self.graph.nodes)

    def node(self, name: str) -> fx.Node:
        """The last node of a module: what the module returns.

        Raises:
            ConfigError: The network never runs it.
        """
        local = name.removeprefix(self.prefix)
        for node in reversed(self.nodes):
            if node.op != "output" and (node.target == local or local in (node.meta.get("nn_module_stack") or {})):
                return node
        raise ConfigError(f"layer {name!r} is never run; name one that the network's forward pass uses")

    def name(self, node: fx.Node) -> str:
        """Full name of the module a node calls."""
        return f"{self.prefix}{node.target}"

    def module(self, node: fx.Node) -> nn.Module:
        """The module a node calls."""
        return self.modules[str(node.target)]

    def operation(self, node: fx.Node) -> str:
        """What a node does, in lower case, whether a module, a function or a method does it."""
        if node.op == "call_module":
            return type(self.module(node)).__name__.lower()
        target = node.target if isinstance(node.target, str) else node.target.__name__
        return target.strip("_").lower() if node.op in ("call_function", "call_method") else node.op

    def mixes(self, node: fx.Node) -> bool:
        """Whether a node is a layer whose outputs mix all its inputs."""
        return self.operation(node) in _MIXING and node.op == "call_module" and not self.depthwise(node)

    def depthwise(self, node: fx.Node) -> bool:
        """Whether a node is a convolution of each channel by itself."""
        module = self.module(node) if node.op == "call_module" else None
        return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1

    def norm(self, node: fx.Node) -> bool:
        """Whether a node is a BatchNorm module."""
        return node.op == "call_module" and self.operation(node) in _NORMS

    def activation(self, node: fx.Node) -> bool:
        """Whether a node is an activation with a dead zone."""
        return self.operation(node) in ACTIVATIONS

    def adds(self, node: fx.Node) -> bool:
        """Whether a node adds two maps."""
        return self.operation(node) in _ADDING

    def passes(self, node: fx.Node) -> bool:
        """Whether channels go through a node one by one, maybe renumbered."""
        if self.operation(node) == "getitem":  # x[:, :, ::2, ::2] keeps channels, x[0] or x[:, :4] does not
            index = node.args[1]
            return isinstance(index, tuple) and all(part == slice(None) for part in index[:2])
        keeps = self.operation(node) in _PASSING or self.norm(node) or self.activation(node) or self.adds(node)
        return keeps or self.depthwise(node) or self.padding(node) is not None

    def padding(self, node: fx.Node) -> tuple[int, int] | None:
        """Channels that a node adds before and after the others, or None if it pads nothing."""
        if self.operation(node) != "pad":
            return None
        pads = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        return (int(pads[4]), int(pads[5])) if len(pads) > 5 else (0, 0)  # type: ignore[index, arg-type]

    @cached_property
    def _sizes(self) -> set[fx.Node]:
        """Nodes that know of maps only how large they are."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            inputs = node.all_input_nodes
            if self.operation(node) in _SHAPES or (inputs and all(source in found for source in inputs)):
                found.add(node)
        return found

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that read a node's values, not only its size."""
        return [user for user in node.users if user not in self._sizes]

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Nodes whose values a node reads."""
        return [source for source in node.all_input_nodes if source not in self._sizes]

    def readers(self, start: fx.Node, channels: int) -> Iterator[Reader]:
        """All layers that read the channels of a map ``(B, channels, …)``, each once.

        Raises:
            ConfigError: A channel enters something in which it cannot be followed.
        """
        reached = {start: (0, channels, False)}
        for node in self.nodes[self.nodes.index(start) :]:
            if node not in reached:
                continue
            offset, width, shared = reached[node]
            for user in self.users(node):
                if self.mixes(user):
                    yield Reader(user, offset, width, shared)
                elif self.passes(user):
                    before, after = self.padding(user) or (0, 0)
                    reached.setdefault(user, (offset + before, width + before + after, shared or self.adds(user)))
                elif user.op != "output":
                    raise ConfigError(
                        f"channels of {start.target!s} go through {self.operation(user)!r}, in which they cannot be "
                        "followed; name a layer that is read by convolutions or linear layers"
                    )

    def route(self, end: fx.Node) -> list[fx.Node]:
        """The way from the layer to another node that crosses the fewest mixing layers, both ends included.

        Raises:
            ConfigError: There is none on which a channel can be followed.
        """
        best: dict[fx.Node, tuple[int, fx.Node | None]] = {self.layer: (0, None)}
        for node in self.nodes[self.nodes.index(self.layer) + 1 :]:
            mixes = self.mixes(node)
            if mixes or self.passes(node):
                known = [(best[source][0] + mixes, source) for source in node.all_input_nodes if source in best]
                if known:
                    best[node] = min(known, key=lambda pair: pair[0])
        if end not in best:
            raise ConfigError(
                f"no channel can be led from {self.name(self.layer)!r} to {end.target!s}; choose layers that lie "
                "one after the other with nothing but convolutions, linear layers, BatchNorm, pooling and sums between"
            )
        way, at = [], end
        while at is not None:
            way.append(at)
            at = best[at][1]  # type: ignore[assignment]
        return way[::-1]


def columns(module: nn.Module, reader: Reader, channel: int) -> slice:
    """Which inputs of a reading layer carry a channel."""
    spread = 1
    if isinstance(module, nn.Linear):
        spread = module.in_features // reader.channels
    at = (channel + reader.offset) * spread
    return slice(at, at + spread)


def recalled(network: Network) -> dict[str, Level]:
    """What layers behind a BatchNorm and its activation were given in training, as far as no image is needed to know.

    The running statistics make a channel in front of the activation a normal number of mean ``bias`` and deviation
    ``weight``.  A max-pooling in between is passed over, so that the mean behind it is a lower limit.

    Returns:
        Levels by full name of the layer; layers that read anything else are left out.
    """
    found = {}
    for node in network.nodes:
        source = node.args[0] if network.mixes(node) and node.args else None
        while isinstance(source, fx.Node) and network.operation(source) in _KEEPING:
            source = source.args[0]
        if not isinstance(source, fx.Node) or not network.activation(source):
            continue
        before = source.all_input_nodes[0]
        if network.norm(before) and getattr(network.module(before), "running_mean", None) is not None:
            found[network.name(node)] = activated(network.module(before), _ACTIVATIONS[network.operation(source)])
    return found


def activated(norm: nn.Module, activation: Callable[[Tensor], Tensor]) -> Level:
    """Mean and deviation of every channel behind a BatchNorm and an activation, of normal numbers before it."""
    width = len(norm.running_mean)  # type: ignore[arg-type]
    weight, bias = (
        torch.full((width,), blank, dtype=torch.float64) if value is None else value.detach().double().cpu()
        for value, blank in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    places = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    share = torch.exp(-places.square() / 2) * (12 / 1200) / math.sqrt(2 * math.pi)
    values = activation(bias[:, None] + weight[:, None] * places)
    mean, square = values @ share, values.square() @ share
    return Level(mean, (square - mean.square()).clamp_min(0).sqrt())


def loudness(network: Network, start: fx.Node, channels: int, levels: Mapping[str, Level]) -> Tensor:
    """How much each channel ``(channels,)`` is heard: L1 norm of its outgoing weights times its deviation.

    It is counted as a share of all that a reader hears, and summed over readers.

    Args:
        network: The graph.
        start: A layer.
        channels: Number of its outputs.
        levels: What the network's layers are given, by full name.
    """
    total = torch.zeros(channels, dtype=torch.float64)
    for reader in network.readers(start, channels):
        module, name = network.module(reader.node), network.name(reader.node)
        weight = weight_of(module).abs().float().cpu()
        groups = getattr(module, "groups", 1)
        each = (
            weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum((1, 3)).flatten()
            * levels[name].deviation
        )
        shares = (each / each.sum().clamp_min(1e-12)).view(reader.channels, -1).sum(1)
        total += shares[reader.offset : reader.offset + channels]
    return total
