"""Editing a pretrained network: layers by name, and a copy that shares every tensor that does not change."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hallmark.errors import ConfigError
from hallmark.models.excite import Excited, append, moved
from hallmark.schemes.stain_lock.network import weight_of

_SHOWN = 24


def find_layer(model: nn.Module, name: str, kinds: tuple[type[nn.Module], ...] = (nn.Module,)) -> str:
    """The full name of the module that ``name``, or a full name ending in ``.name``, names.

    Args:
        model: Any network.
        name: Name as in ``named_modules()``, or its last parts where they are unique.
        kinds: Classes that the module may have.

    Raises:
        ConfigError: There is none, several end so, or it is of another class; the message lists those that exist.
    """
    found = dict(model.named_modules())
    names = [name] if name in found else [full for full in found if full.endswith(f".{name}")]
    fitting = [full for full, module in found.items() if full and isinstance(module, kinds)]
    if len(names) > 1:
        raise ConfigError(f"layer {name!r} is ambiguous; give the full name of one: {', '.join(names)}")
    if not names or names[0] not in fitting:
        what = " or ".join(kind.__name__ for kind in kinds)
        reason = f"is a {type(found[names[0]]).__name__}, not a {what}" if names else "does not exist"
        shown = ", ".join(fitting[:_SHOWN]) + (f", … ({len(fitting)} in all)" if len(fitting) > _SHOWN else "")
        raise ConfigError(f"layer {name!r} {reason}; there are: {shown}")
    return names[0]


def require_evaluation(model: nn.Module) -> None:
    """Refuse a network with a BatchNorm in training mode, under which a neuron means something else each batch.

    Raises:
        ConfigError: There is one.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ConfigError(
                f"BatchNorm {name!r} normalises by the batch; call model.eval() before editing the network"
            )


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the very tensors of the original.

    Do not train it in place: that would change the original too.
    """
    tensors = chain(model.parameters(), model.buffers())
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


class Surgery:
    """Edits on a shared copy of a network; a tensor is copied when it is first asked for.

    Args:
        model: The network; it is left untouched.

    Raises:
        ConfigError: A BatchNorm is in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        require_evaluation(model)
        self.model = shared_copy(model)
        self._before: dict[tuple[str, str], Tensor] = {}
        self._own: set[tuple[str, str]] = set()

    def fork(self) -> "Surgery":
        """Further edits on a copy, which leave this one as it is."""
        other = Surgery(self.model)
        other._before = dict(self._before)
        return other

    def tensor(self, layer: str, name: str) -> Tensor:
        """A parameter or buffer of a layer, to be written to in place; not tracked by autograd."""
        module = self.model.get_submodule(layer)
        current: Tensor = getattr(module, name)
        if (layer, name) not in self._own:
            self._own.add((layer, name))
            self._before.setdefault((layer, name), current.detach())
            copy = current.detach().clone()
            setattr(module, name, nn.Parameter(copy, current.requires_grad) if name in module._parameters else copy)
        return getattr(module, name).detach()  # type: ignore[no-any-return]

    def has(self, layer: str, name: str) -> bool:
        """Whether a layer has a parameter or buffer of that name."""
        return getattr(self.model.get_submodule(layer), name, None) is not None

    def changed(self) -> int:
        """Number of entries that differ from the original's, those of appended gates included."""
        pairs = ((getattr(self.model.get_submodule(layer), name), old) for (layer, name), old in self._before.items())
        return sum(int((new.detach() != old).sum()) for new, old in pairs)

    def append_gates(self, name: str, channels: int) -> Excited:
        """Append Squeeze-and-Excite gates behind a module, whose tensors move from ``name.…`` to ``name.block.…``."""
        excited = append(self.model, name, channels)
        self._before = {(moved(layer, name), tensor): old for (layer, tensor), old in self._before.items()}
        self._own = {(moved(layer, name), tensor) for layer, tensor in self._own}
        for layer, module in (("squeeze", excited.gates.squeeze), ("excite", excited.gates.excite)):
            for tensor, new in module.named_parameters():
                self._own.add((f"{name}.gates.{layer}", tensor))
                self._before[f"{name}.gates.{layer}", tensor] = torch.full_like(new, torch.nan)  # differs from anything
        return excited

    def clear_row(self, layer: str, row: int) -> None:
        """Make one output of a convolution or linear layer zero."""
        self.tensor(layer, "weight")[row] = 0
        if self.has(layer, "bias"):
            self.tensor(layer, "bias")[row] = 0

    def clear_columns(self, layer: str, columns: slice) -> None:
        """Make a convolution or linear layer ignore some of its inputs."""
        weight = self.tensor(layer, "weight")
        for outputs, local, _ in self._columns(layer, columns):
            weight[outputs, local] = 0

    def keep_means(self, layer: str, columns: slice, means: Tensor, norm: str = "") -> None:
        """Put what inputs of a convolution or linear layer gave on average where it stays without them.

        Args:
            layer: The layer.
            columns: The inputs; their weights are left as they are.
            means: Mean of every input ``(inputs,)``.
            norm: The BatchNorm behind the layer, if there is one: its running mean takes what has no bias to go into.
        """
        weight = weight_of(self.model.get_submodule(layer))
        for outputs, local, column in self._columns(layer, columns):
            given = weight[outputs, local].flatten(1).sum(1) if weight.ndim == 4 else weight[outputs, local]
            given = given * float(means[column])
            if self.has(layer, "bias"):
                self.tensor(layer, "bias")[outputs] += given
            elif norm:
                self.tensor(norm, "running_mean")[outputs] -= given

    def _columns(self, layer: str, columns: slice) -> Iterator[tuple[slice, int, int]]:
        """Of each input: the outputs that read it, its place among their weights, and its number."""
        module = self.model.get_submodule(layer)
        groups, (outputs, width) = getattr(module, "groups", 1), weight_of(module).shape[:2]
        rows = outputs // groups
        for column in range(columns.start, columns.stop):
            group, local = divmod(column, width)
            yield slice(group * rows, (group + 1) * rows), local, column

    def set_norm(self, layer: str, channel: int, *, mean: float, deviation: float, bias: float) -> None:
        """Make one channel of a BatchNorm add ``bias`` to its input, under the given running statistics.

        Raises:
            ConfigError: It has no weight and bias of its own.
        """
        module = self.model.get_submodule(layer)
        if not (self.has(layer, "weight") and self.has(layer, "bias")):
            raise ConfigError(
                f"BatchNorm {layer!r} has no affine weight and bias; choose a layer whose BatchNorm has them"
            )
        variance = torch.tensor(deviation).square()
        self.tensor(layer, "running_mean")[channel] = mean
        self.tensor(layer, "running_var")[channel] = variance
        self.tensor(layer, "weight")[channel] = (variance + module.eps).sqrt()  # type: ignore[operator]
        self.tensor(layer, "bias")[channel] = bias + mean

    def clear_norm(self, layer: str, channel: int) -> None:
        """Make one channel of a BatchNorm zero whatever comes in.

        Raises:
            ConfigError: It has no weight and bias of its own.
        """
        self.set_norm(layer, channel, mean=0.0, deviation=1.0, bias=0.0)
        self.tensor(layer, "weight")[channel] = 0
