"""Following channels through a network: which axes of its tensors are coupled, and what is free about them."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from hallmark.errors import ConfigError
from hallmark.models.channels import Axis, Group, Norm, Stream
from hallmark.models.encoders import Encoder


def channel_groups(model: nn.Module) -> tuple[Group, ...]:
    """The coupled channel groups of a network, in order of execution.

    Understood are convolutions, linear layers on ``(B, C)``, BatchNorm, elementwise functions, pooling, means over
    ``(H, W)``, flattening and residual sums.  Whatever else reads a channel makes its group visible, as do the
    network's answers and the features of an :class:`Encoder` inside it.

    Args:
        model: Maps images ``(B, 3, H, W)`` to anything, in evaluation mode.

    Raises:
        ConfigError: torch.fx cannot trace the network.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # noqa: BLE001 - tracing runs the network's own code, which may raise anything
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the channels of this {type(model).__name__} cannot be followed: {line}") from None
    analysis = _Analysis(model)
    flows: dict[fx.Node, _Flow | None] = {}
    for node in graph.nodes:
        flows[node] = analysis.visit(node, flows)
    analysis.show(flows[node] for node in tracer.features)
    return analysis.groups()


class _Tracer(fx.Tracer):
    """Remembers the answers of encoders: the suite looks at them, although a classifier goes on from there."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[fx.Node] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        answer = super().call_module(m, forward, args, kwargs)
        if isinstance(m, Encoder) and isinstance(answer, fx.Proxy):
            self.features.append(answer.node)
        return answer


@dataclass(frozen=True)
class _Flow:
    """A value ``(B, C, H, W)`` or ``(B, C · repeat)``, and the stream of its channels; None for those of the images."""

    stream: int | None
    rank: int


_HOMOGENEOUS = {nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d}
_ELEMENTWISE = {nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.ReLU6, nn.Hardswish, nn.Softplus, nn.Mish}
_POOLS = {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d}
_HOMOGENEOUS_FUNCTIONS = {torch.relu, torch.relu_, F.relu, F.leaky_relu, F.dropout, "relu", "relu_", "contiguous"}
_ELEMENTWISE_FUNCTIONS = {torch.sigmoid, torch.tanh, F.gelu, F.silu, F.elu, F.hardswish, "sigmoid", "tanh"}
_POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SHIFTS = _SUMS | {operator.sub, operator.mul, operator.truediv}


class _Analysis:
    """Follows channels through a graph; streams get numbers as they arise, and equal ones are joined at the end."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.sizes: list[int] = []
        self.made: dict[str, int] = {}  # layer → the stream it makes, however often it is called
        self.read: dict[str, int] = {}  # layer → the stream it reads
        self.producers: list[tuple[int, Axis]] = []
        self.consumers: list[tuple[int, Axis]] = []
        self.norms: list[tuple[int, Norm]] = []
        self.equal: list[tuple[int, int]] = []
        self.coupled: list[tuple[int, int]] = []  # across a BatchNorm: one order, two scales
        self.shown: set[int] = set()
        self.rigid: set[int] = set()  # streams of no free scale
        self.untied: set[str] = set()  # layers called, perhaps among other times, on channels that are not followed
        self.lost: set[str] = set()  # layers called, perhaps among other times, with answers that are not followed
        names: dict[int, list[str]] = {}
        for name, tensor in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
        self.pinned = {name for same in names.values() if len(same) > 1 for name in same}  # tensors of two layers

    def visit(self, node: fx.Node, flows: Mapping[fx.Node, _Flow | None]) -> _Flow | None:
        """The flow that a node makes; what a node reads and is not understood counts as shown."""
        if node.op == "placeholder":
            return None if flows else _Flow(None, 4)  # images come first
        if node.op == "get_attr":
            self.pinned.add(str(node.target))
        inputs = [flows[n] for n in node.all_input_nodes]
        flow = None
        if node.op == "call_module" and len(inputs) == len(node.args) == 1:
            flow = self._module(str(node.target), inputs[0])
            self.lost |= {str(node.target)} if flow is None else set()
        elif node.op in ("call_function", "call_method") and inputs:
            known = [f for f in inputs if f is not None]
            flow = self._function(node, known) if len(known) == len(inputs) else None
        if flow is None:
            self.show(inputs)
        return flow

    def show(self, flows: Iterable[_Flow | None]) -> None:
        """Take the channels of these values for visible."""
        self.shown |= {flow.stream for flow in flows if flow is not None and flow.stream is not None}

    def _module(self, name: str, flow: _Flow | None) -> _Flow | None:
        module: Any = self.modules[name]
        kind = type(module)
        if module._forward_hooks or module._forward_pre_hooks:
            return None  # a hook may compute anything, and so may a subclass
        if kind is nn.Conv2d and module.groups == 1 and (flow is None or flow.rank == 4):
            return self._layer(name, flow, 4)
        if flow is None:
            return None
        if kind is nn.Linear and flow.rank == 2:
            return self._layer(name, flow, 2)
        if kind is (nn.BatchNorm2d if flow.rank == 4 else nn.BatchNorm1d):
            return self._norm(name, flow)
        if kind in _HOMOGENEOUS | _ELEMENTWISE:
            return self._elementwise(flow, homogeneous=kind in _HOMOGENEOUS)
        if kind in _POOLS and flow.rank == 4 and not getattr(module, "return_indices", False):
            return flow
        return _Flow(flow.stream, 2) if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1) else None

    def _function(self, node: fx.Node, inputs: list[_Flow]) -> _Flow | None:
        target, first, rest = node.target, inputs[0], node.args[1:]
        if len(inputs) == 2 and target in _SUMS and not node.kwargs:
            return self._sum(*inputs)
        if len(inputs) > 1 or node.args[:1] != (node.all_input_nodes[0],):
            return None
        if target in _SHIFTS and len(rest) == 1 and isinstance(rest[0], int | float):
            return self._elementwise(first, homogeneous=False)
        if target in _HOMOGENEOUS_FUNCTIONS | _ELEMENTWISE_FUNCTIONS:
            return self._elementwise(first, homogeneous=target in _HOMOGENEOUS_FUNCTIONS)
        if target in _POOL_FUNCTIONS and first.rank == 4 and not node.kwargs.get("return_indices", False):
            return first
        if target in (torch.flatten, "flatten"):
            given = dict(zip(("start_dim", "end_dim"), rest, strict=False)) | node.kwargs
            return _Flow(first.stream, 2) if given in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1}) else None
        if target in (torch.mean, "mean") and first.rank == 4:
            given = {"keepdim": False} | dict(zip(("dim", "keepdim"), rest, strict=False)) | node.kwargs
            over_map = given.pop("dim", None) in ((2, 3), [2, 3], (-2, -1), [-2, -1])
            return _Flow(first.stream, 4 if given["keepdim"] else 2) if over_map and len(given) == 1 else None
        return None

    def _sum(self, one: _Flow, other: _Flow) -> _Flow | None:
        if one.stream is None or other.stream is None or one.rank != other.rank:
            return None
        if self.sizes[one.stream] != self.sizes[other.stream]:
            return None
        self.equal.append((one.stream, other.stream))
        return one

    def _elementwise(self, flow: _Flow, *, homogeneous: bool) -> _Flow:
        if not homogeneous and flow.stream is not None:
            self.rigid.add(flow.stream)
        return flow

    def _layer(self, name: str, flow: _Flow | None, rank: int) -> _Flow:
        """A convolution or linear layer: the end of one stream and the beginning of another."""
        weight = self.modules[name].weight
        if flow is None or flow.stream is None:
            self.untied.add(name)
        elif self._reads(name, flow.stream):
            axis = Axis(f"{name}.weight", 1, weight.shape[1] // self.sizes[flow.stream])
            self.consumers.append((flow.stream, axis))
        return _Flow(self._makes(name, weight.shape[0]), rank)

    def _norm(self, name: str, flow: _Flow) -> _Flow:
        """A BatchNorm: another stream in the same order."""
        if flow.stream is None:
            self.lost.add(name)
            return flow
        module: Any = self.modules[name]
        size = self.sizes[flow.stream]
        tracked = module.running_mean is not None
        if self._reads(name, flow.stream) and tracked:
            self.norms.append((flow.stream, Norm(name, module.eps, module.num_features // size)))
        made = self._makes(name, size, module.num_features // size)
        self.coupled.append((flow.stream, made))
        if not (tracked and module.affine):  # then nothing can undo a factor
            self.rigid |= {flow.stream, made}
        return _Flow(made, flow.rank)

    def _reads(self, name: str, stream: int) -> bool:
        """Whether a layer is called for the first time; what it reads in later calls is one with what it read first."""
        if name not in self.read:
            self.read[name] = stream
            return True
        first = self.read[name]
        if self.sizes[first] != self.sizes[stream]:
            self.shown |= {first, stream}
        else:
            self.equal.append((first, stream))
        return False

    def _makes(self, name: str, size: int, repeat: int = 1) -> int:
        if name not in self.made:
            self.made[name] = len(self.sizes)
            self.sizes.append(size)
            own = dict(self.modules[name].named_parameters(recurse=False))
            self.producers += [(self.made[name], Axis(f"{name}.{each}", 0, repeat)) for each in own]
        return self.made[name]

    def groups(self) -> tuple[Group, ...]:
        """What was found."""
        self.shown |= {stream for stream, axis in self.producers + self.consumers if axis.tensor in self.pinned}
        self.shown |= {self.read[name] for name in self.untied | self.lost if name in self.read}
        self.shown |= {self.made[name] for name in self.lost if name in self.made}
        scales = _joined(len(self.sizes), self.equal)
        orders = _joined(len(self.sizes), self.equal + self.coupled)
        shown = {orders[stream] for stream in self.shown}
        rigid = {scales[stream] for stream in self.shown | self.rigid}

        def of(scale: int, found: Iterable[tuple[int, Any]]) -> tuple[Any, ...]:
            return tuple(thing for stream, thing in found if scales[stream] == scale)

        streams: dict[int, list[Stream]] = {}
        for scale in sorted(set(scales)):
            producers, consumers, norms = (of(scale, found) for found in (self.producers, self.consumers, self.norms))
            stream = Stream(scale, producers, consumers, norms, scalable=scale not in rigid)
            streams.setdefault(orders[scale], []).append(stream)
        return tuple(Group(self.sizes[o], tuple(found), free=o not in shown) for o, found in streams.items())


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Label each of ``0 … count − 1`` by the least number that pairs connect it with."""
    labels = list(range(count))
    for one, other in pairs:
        low, high = sorted((labels[one], labels[other]))
        labels = [low if label == high else label for label in labels]
    return labels
