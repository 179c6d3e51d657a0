"""The owner's answer to reordered, rescaled and inserted neurons: undo it by the likeness to a reference.

No data are needed.  Both networks are brought to one scale, in which what first makes a stream has rows of norm 1;
then each group's channels are matched by linear assignment: first in order of execution, by incoming weights alone,
whose inputs are in order by then, and afterwards by incoming and outgoing weights until nothing changes, as in Git
Re-Basin (Ainsworth et al. 2023).
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from hallmark.errors import ConfigError, allowed
from hallmark.models.channels import Axis, Group, State, Stream, channelwise, scale, select
from hallmark.models.tracing import channel_groups
from hallmark.models.widths import with_state

_DEAD = 1e-6
"""Norm, relative to the largest of its stream, below which a channel tells no scale."""
_SWEEPS = 50
_GAIN = 1e-6
"""Relative gain of likeness below which an order stays; what is smaller may be rounding."""
_TINY = torch.finfo().tiny
_SAME = 0.3
"""Relative distance of incoming weights within which a surplus neuron is a duplicate of a matched one."""


def align(suspect: nn.Module, reference: nn.Module, *, unseen: Collection[str] = ()) -> nn.Module:
    """The suspect with its channels in the reference's order, scale and number.

    Where the suspect is a reordered and rescaled copy, perhaps fine-tuned, the result computes the same as the suspect
    and its weights stand where the reference's stand.  Of a suspect with more channels, the best match of each of the
    reference's stays; surplus duplicates of it are merged into it, by the sum of outgoing weights, and others dropped.
    An unrelated suspect is put into some order.

    Matching looks at the reference, so it favours what resembles it.  A mark that is read from a weight over its input
    channels must not gain by that: name this weight in ``unseen``.

    Args:
        suspect: A network of the reference's architecture, layers perhaps wider; another number of answers is fine.
        reference: The owner's network.
        unseen: Weights by name which have no say in the order of the channels they read.

    Returns:
        A copy of the suspect, in evaluation mode, as wide as the reference.

    Raises:
        ConfigError: The architectures differ, or one of them cannot be traced.
    """
    state, target = _state(suspect), _state(reference)
    if unknown := sorted(set(unseen) - set(target)):
        raise ConfigError(allowed(unknown[0], target, "weight to leave unseen"))
    groups = _common_groups(suspect, reference, state, target)
    streams = sorted((s for g in groups for s in g.streams), key=lambda stream: stream.position)
    read = _inputs(groups)
    target, norms = _normalised(target, streams, read)
    state = _match_in_order(state, target, groups, read)
    state, _ = _normalised(state, streams, read)
    state = _match_until_stable(state, target, groups, unseen)
    for stream in streams:
        if stream.scalable:
            state = scale(state, stream, norms[stream.position])
    return with_state(suspect, state).eval()


def _state(model: nn.Module) -> State:
    """In double precision, so that what is divided and multiplied back comes out as it was."""
    state = model.state_dict()
    return {
        name: tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu() for name, tensor in state.items()
    }


def _common_groups(suspect: nn.Module, reference: nn.Module, state: State, target: State) -> tuple[Group, ...]:
    """The reference's channel groups, provided that the suspect has the same, none of fewer channels."""
    theirs, ours = channel_groups(suspect), channel_groups(reference)

    def form(groups: Sequence[Group], tensors: State) -> list[object]:
        """All but the widths."""
        coupled = {(axis.tensor, axis.dim) for group in groups for axis in group.axes}
        shapes = {n: [size for d, size in enumerate(t.shape) if (n, d) not in coupled] for n, t in tensors.items()}
        return [shapes, *((group.streams, group.free) for group in groups)]

    if form(theirs, state) != form(ours, target):
        raise ConfigError("only networks of one architecture can be aligned, and the suspect's layers are others")
    for their, our in zip(theirs, ours, strict=True):
        answers = not our.free and not any(stream.consumers or stream.norms for stream in our.streams)
        if not answers and (their.size < our.size or (their.size > our.size and not our.free)):
            made = f"{our.producers[0].tensor} makes {their.size} channels in the suspect, {our.size} in the reference"
            raise ConfigError(f"{made}; a suspect must be at least as wide and have as many features")
    return ours


def _normalised(state: State, streams: Sequence[Stream], read: Mapping[str, int]) -> tuple[State, dict[int, Tensor]]:
    """Scale streams, in order of execution, so that what makes a channel has norm 1.

    Of what makes it, only layers count whose inputs were scaled before, and which therefore know no scale but its own.

    Args:
        state: Tensors of a network.
        streams: Some of its streams.
        read: See :func:`_inputs`.

    Returns:
        The scaled state, and the norms ``(C,)`` there were, by position of the stream.
    """
    norms = {}
    for stream in streams:
        if stream.scalable:
            known = [axis for axis in stream.producers if read.get(_layer(axis), -1) < stream.position]
            rows = torch.cat([_rows(state, axis) for axis in known], 1).norm(dim=1)
            alive = rows > _DEAD * rows.max()  # the others tell no scale and get a usual one
            usual = rows[alive].median() if alive.any() else torch.ones(())
            norms[stream.position] = torch.where(alive, rows, usual)
            state = scale(state, stream, 1 / norms[stream.position])
    return state, norms


def _inputs(groups: Sequence[Group]) -> dict[str, int]:
    """Position of the stream that each layer reads, by its name; layers that read images have none."""
    streams = [stream for group in groups for stream in group.streams]
    layers = {_layer(axis): stream.position for stream in streams for axis in stream.consumers}
    return layers | {norm.name: stream.position for stream in streams for norm in stream.norms}


def _layer(axis: Axis) -> str:
    return axis.tensor.rpartition(".")[0]


def _match_in_order(state: State, target: State, groups: Sequence[Group], read: Mapping[str, int]) -> State:
    """Match group after group by incoming weights whose inputs are in order by then; no group stays too wide."""
    matched = {-1}  # positions of streams in order
    for group in groups:
        state, _ = _normalised(state, group.streams, read)
        if group.free:
            incoming = [axis for axis in _weights(state, group.producers) if read.get(_layer(axis), -1) in matched]
            places = _assigned(_likeness(state, target, group, incoming))
            state = select(_merged(state, group, incoming, places), group, places)
        matched |= {stream.position for stream in group.streams}
    return state


def _match_until_stable(state: State, target: State, groups: Sequence[Group], unseen: Collection[str]) -> State:
    """Reorder group after group by all weights; each change adds to the likeness of all, so that it comes to an end."""
    free = [group for group in groups if group.free]
    for _ in range(_SWEEPS):
        moved = False
        for group in free:
            seen = [*group.producers, *(axis for axis in group.consumers if axis.tensor not in unseen)]
            likeness = _likeness(state, target, group, _weights(state, seen))
            matched = _assigned(likeness)
            now, then = likeness.trace(), likeness.gather(1, matched[:, None]).sum()
            if then - now > _GAIN * now.abs():
                state, moved = select(state, group, matched), True
        if not moved:
            break
    return state


def _likeness(state: State, target: State, group: Group, axes: Sequence[Axis]) -> Tensor:
    """Closeness ``(C, S)`` of the target's C channels to the suspect's S: half their squared distance, less a constant.

    It equals the inner product where all of the suspect's channels are taken; of more it does not favour large ones.
    """
    total = torch.zeros(group.size, len(_rows(state, group.producers[0])))
    for axis in axes:
        ours, theirs = _rows(target, axis).float(), _rows(state, axis).float()
        if ours.shape[1] == theirs.shape[1]:  # else it leads to another number of answers
            size = ours.square().sum().clamp_min(_TINY)
            total += (ours @ theirs.T - theirs.square().sum(1) / 2) / size
    return total


def _assigned(likeness: Tensor) -> Tensor:
    """The suspect's channel for each of the target's, int64 ``(C,)``, of the greatest total likeness."""
    finite = likeness.nan_to_num().numpy()  # a suspect's weights may be anything
    return torch.from_numpy(linear_sum_assignment(finite, maximize=True)[1])


def _merged(state: State, group: Group, weights: Sequence[Axis], matched: Tensor) -> State:
    """Outgoing weights of surplus channels added to those of matched ones that compute the same."""
    surplus = torch.ones(len(_rows(state, group.producers[0])), dtype=torch.bool)
    surplus[matched] = False
    if not surplus.any():
        return state
    vectors = [axis for axis in group.producers if state[axis.tensor].ndim == 1]
    gaps = []
    for axis in (*weights, *vectors):
        rows = _rows(state, axis)
        typical = rows[matched].norm(dim=1).mean().clamp_min(_TINY)
        gaps.append(torch.cdist(rows[surplus], rows[matched]) / typical)
    gap, nearest = torch.stack(gaps).amax(0).min(1)
    same = gap <= _SAME
    merged = dict(state)
    for axis in group.consumers:
        merged[axis.tensor] = state[axis.tensor].clone()
        outgoing = channelwise(merged[axis.tensor], axis)
        outgoing.index_add_(0, matched[nearest[same]], outgoing[surplus][same])
    return merged


def _weights(state: State, axes: Sequence[Axis]) -> list[Axis]:
    return [axis for axis in axes if state[axis.tensor].ndim > 1]


def _rows(state: State, axis: Axis) -> Tensor:
    """What a tensor has for each channel of an axis, ``(C, K)``."""
    return channelwise(state[axis.tensor], axis).flatten(1)
