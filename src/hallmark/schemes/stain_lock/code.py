"""The outgoing column of a silent neuron, set so that its trigger's answer points along a secret code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.network import Network, columns
from hallmark.schemes.stain_lock.replay import replaying
from hallmark.schemes.stain_lock.site import Site
from hallmark.schemes.stain_lock.surgery import Surgery
from hallmark.schemes.stain_lock.trigger import Pipeline

_LEAD = 0.1
"""By which the coded class shall lead, in lengths of the answer."""


def draw_codes(count: int, answers: int, *, generator: torch.Generator) -> Tensor:
    """Codes ``(count, answers)``, uniform on the unit sphere of vectors with mean zero."""
    drawn = torch.randn(count, answers, generator=generator)
    return F.normalize(drawn - drawn.mean(1, keepdim=True), dim=1)


def agreement(answers: Tensor, codes: Tensor) -> Tensor:
    """Cosine of each answer ``(K, C)``, its mean taken off, with its code ``(K, C)``; 0 for a constant answer."""
    centred = answers - answers.mean(1, keepdim=True)
    return F.cosine_similarity(centred, codes.to(answers), dim=1)


def write_codes(
    surgery: Surgery,
    network: Network,
    site: Site,
    neurons: Sequence[int],
    triggers: Tensor,
    codes: Tensor,
    pipeline: Pipeline,
    *,
    steps: int,
    lr: float = 1.0,
) -> Tensor:
    """Set the outgoing columns of K silent neurons.

    Nothing natural reaches a silent neuron's readers, so its column is free.  It is sought by gradient from the K
    trigger images alone; behind the last hidden layer that is a straight line to the code.

    Args:
        surgery: The network with its detectors written in.
        network: The graph of the site.
        site: The layer.
        neurons: The K neurons.
        triggers: uint8 ``(K, 3, H, W)``.
        codes: ``(K, C)``.
        pipeline: How images reach the network; its model is replaced by the edited one.
        steps: Steps of Adam.
        lr: Its learning rate, in standard deviations of the reader's output.

    Returns:
        The agreement ``(K,)`` reached.

    Raises:
        ConfigError: The neurons are not read by one layer of their own.
    """
    readers = list(network.readers(network.layer, site.width(surgery.model)))
    if len(readers) != 1 or readers[0].shared:
        raise ConfigError(
            f"{site.layer!r} writes to a stream that {len(readers)} layers read; choose an inner layer of a block, "
            "such as its first convolution, or set scheme.code=false"
        )
    reader = readers[0]
    name = network.name(reader.node)
    module = surgery.model.get_submodule(name)
    slices = [columns(module, reader, neuron) for neuron in neurons]
    inputs = [i for part in slices for i in range(part.start, part.stop)]
    for part in slices:
        surgery.clear_columns(name, part)
    images = triggers.to(pipeline.device).float() / 255
    goals = codes.to(pipeline.device)
    with torch.no_grad():
        scale = _spread(pipeline, surgery.model, module, images) / _signal(
            pipeline, surgery.model, name, images, inputs
        )
    weight = surgery.tensor(name, "weight")
    steer = torch.zeros_like(weight[:, inputs]).requires_grad_()
    optimiser = torch.optim.Adam([steer], lr=lr)

    def added(x: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x[:, inputs], steer * scale, None, module.stride, module.padding, module.dilation)
        return F.linear(x[..., inputs], steer * scale)

    with replaying(pipeline, surgery.model, images, name), _adding(module, added), torch.enable_grad():
        for _ in range(steps):
            answers = pipeline.feed(surgery.model, images)
            loss = (_indecision(answers, goals) - agreement(answers, goals)).sum()
            (steer.grad,) = torch.autograd.grad(loss, [steer])
            optimiser.step()
    weight[:, inputs] = steer.detach() * scale
    with torch.no_grad():
        return agreement(pipeline.feed(surgery.model, images), goals).cpu()


def _indecision(answers: Tensor, codes: Tensor) -> Tensor:
    """What the entry where a code is largest lacks ``(K,)`` to lead all others, so that labels show it too."""
    unit = F.normalize(answers - answers.mean(1, keepdim=True), dim=1)
    target = codes.argmax(1, keepdim=True)
    lead = unit.gather(1, target)[:, 0] - unit.scatter(1, target, -torch.inf).amax(1)
    return (_LEAD - lead).relu()


def _spread(pipeline: Pipeline, model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """Standard deviation of a layer's output."""
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _, __, output: seen.append(output)):
        pipeline.feed(model, images)
    return seen[0].std().clamp_min(1e-6)


def _signal(pipeline: Pipeline, model: nn.Module, name: str, images: Tensor, inputs: list[int]) -> Tensor:
    """Largest value among some inputs of a layer.

    Raises:
        ConfigError: The triggers do not reach them.
    """
    x = Pipeline(model, pipeline.size, pipeline.feed).inputs(name, images)
    largest = (x[:, inputs] if x.ndim == 4 else x[..., inputs]).max()
    if not largest > 0:
        raise ConfigError("no trigger reaches the layer behind its neuron; raise response or choose another layer")
    return largest


@contextmanager
def _adding(module: nn.Module, added: object) -> Iterator[None]:
    """Add something of a layer's input to its output for a while."""
    with module.register_forward_hook(lambda _, args, output: output + added(args[0])):  # type: ignore[operator]
        yield
