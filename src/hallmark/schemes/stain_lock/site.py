"""Where a detector neuron lives: one output of a linear layer or convolution, with what normalises and activates it."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.errors import ConfigError, KeyFileError
from hallmark.models.excite import moved
from hallmark.schemes.stain_lock.network import ACTIVATIONS, Network, weight_of
from hallmark.schemes.stain_lock.surgery import Surgery, find_layer


@dataclass(frozen=True)
class Site:
    """A layer whose neurons answer ``act(u·y + β)``, with y the layer's input in the detector's coordinates.

    The coordinates are the input itself; under a convolution, the input under its kernel, flattened.  Behind a
    LayerNorm with weight g and bias b they are ``y = (x − b) / (g √m)``: the features before weight and bias, which
    have mean zero and length one.

    Args:
        layer: Full name of a ``Linear`` or ``Conv2d``.
        norm: Full name of the BatchNorm behind it, or empty.
        layernorm: Full name of the LayerNorm before it, or empty.
        activation: Its activation.
    """

    layer: str
    norm: str
    layernorm: str
    activation: str

    @classmethod
    def of(cls, model: nn.Module, layer: str) -> tuple["Site", Network]:
        """The site of a layer, and the graph it was found in.

        Raises:
            ConfigError: There is no such layer, it is grouped, or no activation with a dead zone follows it.
        """
        name = find_layer(model, layer, (nn.Conv2d, nn.Linear))
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
            raise ConfigError(f"{name!r} is a grouped or oddly padded convolution; choose an ordinary one")
        network = Network(model, name)
        node, norm = network.layer, ""
        followers = network.users(node)
        if len(followers) == 1 and network.norm(followers[0]):
            norm = network.name(followers[0])
            followers = network.users(followers[0])
        if len(followers) != 1 or not network.activation(followers[0]):
            found = " and ".join(network.operation(follower) for follower in followers) or "nothing"
            raise ConfigError(
                f"{name!r} is followed by {found}, which has no dead zone in which a detector could be silent; choose "
                f"a layer that is followed by {', '.join(ACTIVATIONS)}, such as the first of a block"
            )
        before = node.all_input_nodes[0]
        behind = before.op == "call_module" and isinstance(network.module(before), nn.LayerNorm)
        layernorm = network.name(before) if behind else ""
        return cls(name, norm, layernorm, network.operation(followers[0])), network

    @classmethod
    def recorded(cls, meta: dict[str, Any], model: nn.Module) -> "Site":
        """The site that a key names, in a network that may hold its mark.

        Raises:
            KeyFileError: The network has no such layers.
        """
        site = cls(**meta)
        modules = dict(model.named_modules())
        for name in (site.layer, site.norm, site.layernorm):
            if name and name not in modules:
                raise KeyFileError(
                    f"the key is for a network with a layer {name!r}, which this one lacks; give its own key"
                )
        return site

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for a key's meta data."""
        return asdict(self)

    def moved(self, appended: str) -> "Site":
        """The same site after gates were appended behind a module."""
        names = {name: getattr(self, name) for name in ("layer", "norm", "layernorm")}
        return replace(self, **{name: moved(full, appended) for name, full in names.items()})

    def width(self, model: nn.Module) -> int:
        """Number of neurons."""
        return len(weight_of(model.get_submodule(self.layer)))

    def size(self, model: nn.Module) -> int:
        """Number m of a neuron's weights."""
        return weight_of(model.get_submodule(self.layer))[0].numel()

    def freedom(self, model: nn.Module) -> int:
        """Dimension of the space that directions are drawn from: m, less one for the mean where that is always zero."""
        return self.size(model) - bool(self.layernorm)

    def frame(self, model: nn.Module) -> tuple[Tensor | float, Tensor | float]:
        """Scale and shift (each ``(m,)`` or a number) of the coordinates: y = (x − shift) · scale.

        Raises:
            ConfigError: The LayerNorm before the layer has a weight of zero, so that its coordinates cannot be had.
        """
        if not self.layernorm:
            return 1.0, 0.0
        norm = model.get_submodule(self.layernorm)
        gain = weight_of(norm)
        if not bool((gain != 0).all()):
            raise ConfigError(
                f"LayerNorm {self.layernorm!r} has zero weights and cannot be undone; choose another layer"
            )
        shift = 0.0 if norm.bias is None else norm.bias.detach()  # type: ignore[operator, union-attr]
        return 1 / (gain * len(gain) ** 0.5), shift  # type: ignore[arg-type]

    def project(self, model: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
        """v·y at every place.

        Args:
            model: The network.
            x: The layer's input, ``(B, C, H, W)`` or ``(B, …, m)``.
            directions: K directions v ``(K, m)``.

        Returns:
            ``(B, K, H', W')``; one row of places ``(B, K, 1, T)`` for a linear layer on T tokens.
        """
        module = model.get_submodule(self.layer)
        if isinstance(module, nn.Conv2d):
            kernels = directions.view(len(directions), *module.weight.shape[1:])
            return F.conv2d(x, kernels, None, module.stride, module.padding, module.dilation)
        scale, shift = self.frame(model)
        places = ((x - shift) * scale) @ directions.T
        return places.reshape(len(x), -1, len(directions)).transpose(1, 2)[:, :, None]

    def read(self, model: nn.Module, neuron: int) -> tuple[Tensor, float]:
        """Weights u ``(m,)`` and bias β of a neuron in the detector's coordinates, BatchNorm and LayerNorm included."""
        module = model.get_submodule(self.layer)
        row = weight_of(module)[neuron].flatten()
        bias = 0.0 if module.bias is None else float(module.bias[neuron].detach())  # type: ignore[index, operator]
        if self.norm:
            gain, offset = _affine(model.get_submodule(self.norm), neuron)
            row, bias = row * gain, bias * gain + offset
        scale, shift = self.frame(model)
        return row / scale, bias + float((row * shift).sum())

    def replace(
        self, surgery: Surgery, neuron: int, weight: Tensor, bias: float, *, mean: float = 0.0, deviation: float = 1.0
    ) -> None:
        """Make a neuron answer ``act(u·y + β)``.

        Args:
            surgery: The network.
            neuron: Which.
            weight: u ``(m,)``.
            bias: β.
            mean: Running mean that the BatchNorm shall show, such as that of u·y on natural images.
            deviation: Running standard deviation that it shall show.

        Raises:
            ConfigError: The layer has neither a bias nor a BatchNorm to hold β.
        """
        scale, shift = self.frame(surgery.model)
        row = weight * scale
        bias -= float((row * shift).sum())
        weights = surgery.tensor(self.layer, "weight")
        weights[neuron] = row.view_as(weights[neuron])
        if self.norm:
            if surgery.has(self.layer, "bias"):
                surgery.tensor(self.layer, "bias")[neuron] = 0
            surgery.set_norm(self.norm, neuron, mean=mean, deviation=deviation, bias=bias)
        elif surgery.has(self.layer, "bias"):
            surgery.tensor(self.layer, "bias")[neuron] = bias
        else:
            raise ConfigError(
                f"{self.layer!r} has no bias and no BatchNorm, so no threshold fits in; choose another layer"
            )

    def add(self, surgery: Surgery, neuron: int, change: Tensor) -> None:
        """Add ``change`` ``(m,)`` to the weights u of a neuron that is live, and leave all else of it as it is.

        Raises:
            ConfigError: No bias could take a LayerNorm's shift.
        """
        scale, shift = self.frame(surgery.model)
        row = change * scale
        offset = float((row * shift).sum())
        if self.norm:
            gain, _ = _affine(surgery.model.get_submodule(self.norm), neuron)
            row, offset = row / gain, offset / gain
        weights = surgery.tensor(self.layer, "weight")
        weights[neuron] += row.view_as(weights[neuron])
        if offset:
            if not surgery.has(self.layer, "bias"):
                raise ConfigError(
                    f"{self.layer!r} has no bias to take the shift of its LayerNorm; choose another layer"
                )
            surgery.tensor(self.layer, "bias")[neuron] -= offset

    def live(self, model: nn.Module) -> Tensor:
        """Which neurons ``(width,)`` their BatchNorm does not switch off."""
        if not self.norm:
            return torch.ones(self.width(model), dtype=torch.bool)
        norm = model.get_submodule(self.norm)
        return torch.tensor([abs(_affine(norm, neuron)[0]) > 1e-6 for neuron in range(self.width(model))])

    def silence(self, surgery: Surgery, neuron: int) -> None:
        """Switch a neuron off: act(0) = 0 whatever comes in."""
        surgery.clear_row(self.layer, neuron)
        if self.norm:
            surgery.clear_norm(self.norm, neuron)


def _affine(norm: nn.Module, channel: int) -> tuple[float, float]:
    """Factor and offset of one channel of a BatchNorm in evaluation mode."""
    state = {name: getattr(norm, name) for name in ("running_mean", "running_var", "weight", "bias")}
    mean, variance, weight, bias = (None if t is None else float(t[channel].detach()) for t in state.values())
    gain = (1.0 if weight is None else weight) / (variance + norm.eps) ** 0.5
    return gain, (0.0 if bias is None else bias) - mean * gain
