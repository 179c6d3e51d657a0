"""Edits of the weights that leave a network's function alone: permutation, rescaling and insertion of neurons.

Neural structural obfuscation (Yan et al. 2023) costs the thief nothing: the network answers as before, but a mark that
is read off the weights is read from the wrong places.  Only channels that nobody sees are touched; see
:mod:`hallmark.models.channels`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core import Access, Attack, HostKind, Suspect, Trainer
from hallmark.core.scheme import Images
from hallmark.errors import ConfigError, allowed
from hallmark.models.channels import Group, State, Stream, channelwise, scale, select
from hallmark.models.tracing import channel_groups
from hallmark.models.widths import with_state

SCALINGS = ("all", "activations", "normalised")
INSERTIONS = ("zero", "clique", "split")


@dataclass(frozen=True)
class Permute(Attack):
    """Reorder the channels of groups that nobody sees.

    Args:
        share: Share of the groups that are reordered, 0 … 1.
    """

    share: float

    name: ClassVar[str] = "permute"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"permute share must lie in 0 … 1, got {self.share}")

    @property
    def strength(self) -> float:
        """Share of the groups."""
        return self.share

    @property
    def unit(self) -> str:
        """What the share is of."""
        return "share of channel groups"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The permuted model."""
        model = victim.weights_module()
        if not self.share:
            return model
        state, groups = _state(model), _free_groups(model)
        for chosen in torch.randperm(len(groups), generator=generator)[: round(self.share * len(groups))].tolist():
            state = select(state, groups[chosen], torch.randperm(groups[chosen].size, generator=generator))
        return with_state(model, state).eval()


@dataclass(frozen=True)
class Rescale(Attack):
    """Multiply channels by positive factors and undo it where they are read.

    Args:
        octaves: Factors are 2^u with u uniform in −octaves … octaves.
        where: ``activations`` scales what later layers read, whose weights undo it; ``normalised`` scales what a
            BatchNorm reads, whose statistics undo it; ``all`` both.
    """

    octaves: float
    where: str = "all"

    name: ClassVar[str] = "rescale"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.where not in SCALINGS:
            raise ConfigError(allowed(self.where, SCALINGS, "place to rescale"))
        if not 0 <= self.octaves <= 8:
            raise ConfigError(f"rescale octaves must lie in 0 … 8, beyond which rounding shows, got {self.octaves}")

    @property
    def strength(self) -> float:
        """Octaves."""
        return self.octaves

    @property
    def unit(self) -> str:
        """Octaves to either side, and where."""
        return f"octaves {self.where}"

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The rescaled model."""
        model = victim.weights_module()
        if not self.octaves:
            return model
        state, streams = _state(model), self._streams(model)
        for size, stream in streams:
            octaves = self.octaves * (2 * torch.rand(size, generator=generator) - 1)
            state = scale(state, stream, octaves.exp2())
        return with_state(model, state).eval()

    def _streams(self, model: nn.Module) -> list[tuple[int, Stream]]:
        scalable = [(g.size, stream) for g in channel_groups(model) for stream in g.streams if stream.scalable]
        kinds = ["activations" if stream.consumers else "normalised" for _, stream in scalable]
        chosen = [found for found, kind in zip(scalable, kinds, strict=True) if self.where in (kind, "all")]
        if not chosen:
            raise ConfigError(f"no channels of this {type(model).__name__} may be rescaled ({self.where})")
        return chosen


@dataclass(frozen=True)
class InsertNeurons(Attack):
    """Widen every group that nobody sees by neurons that cancel out, at random places between the old ones.

    Groups in which a layer reads what it makes itself are left as they are.

    Args:
        fraction: Neurons added per old one, 0 … 1; at least one set of them a group, unless it is 0.
        kind: ``zero`` adds neurons that nothing reads; ``clique`` adds sets of equal neurons whose outgoing weights
            sum to 0; ``split`` duplicates old neurons, whose outgoing weights their duplicates share.
        members: Neurons of a clique, or of an old neuron with its duplicates; at least 2.
    """

    fraction: float
    kind: str = "clique"
    members: int = 2

    name: ClassVar[str] = "insert_neurons"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER, HostKind.CLASSIFIER})
    access: ClassVar[Access] = Access.WEIGHTS
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in INSERTIONS:
            raise ConfigError(allowed(self.kind, INSERTIONS, "kind of inserted neuron"))
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"insert_neurons fraction must lie in 0 … 1, got {self.fraction}")
        if self.members < 2:
            raise ConfigError(f"insert_neurons members must be at least 2, got {self.members}")

    @property
    def strength(self) -> float:
        """Share of neurons added."""
        return self.fraction

    @property
    def unit(self) -> str:
        """The kind of neurons, and how many stand together where there are more than two."""
        return f"fraction {self.kind}" + (f" of {self.members}" if self.kind != "zero" and self.members > 2 else "")

    def apply(
        self, victim: Suspect, attacker_data: Images, *, trainer: Trainer, generator: torch.Generator
    ) -> nn.Module:
        """The widened model."""
        model = victim.weights_module()
        if not self.fraction:
            return model
        state, groups = _state(model), [group for group in _free_groups(model) if not _reads_itself(group)]
        for group in groups:
            state = insert(state, group, self.fraction, self.kind, self.members, generator=generator)
        return with_state(model, state).eval()


def insert(
    state: State, group: Group, fraction: float, kind: str, members: int, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Add neurons to a group that leave what the network computes alone; see :class:`InsertNeurons`.

    Args:
        state: Tensors of a network, on the CPU.
        group: A free group in which no layer reads what it produces itself.
        fraction: Neurons added per old one.
        kind: ``zero``, ``clique`` or ``split``.
        members: Neurons that stand together.
        generator: The only source of randomness.
    """
    added_each = {"zero": 1, "clique": members, "split": members - 1}[kind]
    sets = max(1, round(fraction * group.size / added_each))
    old = torch.randperm(group.size, generator=generator)[:sets]  # whose duplicates they start as
    sets = len(old)
    new = group.size + torch.arange(sets * added_each).view(sets, added_each)
    edited = select(state, group, torch.cat([torch.arange(group.size), old.repeat_interleave(added_each)]))
    if kind != "split":
        _refill(edited, group, new, generator)
    for axis in group.consumers:
        weights = channelwise(edited[axis.tensor], axis)
        together = torch.cat([old[:, None], new], 1) if kind == "split" else new  # (sets, members)
        drawn = torch.randn(*together.shape, *weights.shape[1:], generator=generator) * weights.std()
        if kind == "zero":
            drawn.zero_()
        elif kind == "clique":
            drawn[:, -1] = -drawn[:, :-1].sum(1)
        else:
            shares = torch.rand(drawn.shape, generator=generator)
            drawn = weights[old].unsqueeze(1) * shares / shares.sum(1, keepdim=True)
        weights[together] = drawn.to(weights)
    return select(edited, group, _interleaved(group.size, new.numel(), generator))


def _refill(state: State, group: Group, new: Tensor, generator: torch.Generator) -> None:
    """Give each set of neurons ``new`` (S, M) incoming weights of its own, the same to all its members; in place."""
    for axis in group.producers:
        if state[axis.tensor].ndim > 1:
            weights = channelwise(state[axis.tensor], axis)
            drawn = torch.randn(len(new), 1, *weights.shape[1:], generator=generator) * weights.std()
            weights[new] = drawn.to(weights)
    for norm in (norm for stream in group.streams for norm in stream.norms):
        var = channelwise(state[norm.var.tensor], norm.var)
        var[new] = var[: group.size].mean()  # that of a dead neuron would let the new one explode


def _interleaved(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Places of ``new`` channels among ``old`` ones, whose order stays, as an index of the latter before the former."""
    added = torch.ones(old + new, dtype=torch.bool)
    added[torch.randperm(old + new, generator=generator)[:old]] = False
    index = torch.empty(old + new, dtype=torch.int64)
    index[~added] = torch.arange(old)
    index[added] = old + torch.randperm(new, generator=generator)
    return index


def _reads_itself(group: Group) -> bool:
    """Whether a layer reads what it makes; equal neurons would not stay equal if their weights on each other differ."""
    return not {axis.tensor for axis in group.producers}.isdisjoint(axis.tensor for axis in group.consumers)


def _state(model: nn.Module) -> State:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def _free_groups(model: nn.Module) -> list[Group]:
    groups = [group for group in channel_groups(model) if group.free]
    if not groups:
        raise ConfigError(f"no channels of this {type(model).__name__} may be reordered: all are seen from outside")
    return groups
