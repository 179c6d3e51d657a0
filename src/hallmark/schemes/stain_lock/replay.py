"""Answering again and again with a network of which only the end changes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.schemes.stain_lock.trigger import Pipeline


@contextmanager
def replaying(pipeline: Pipeline, model: nn.Module, images: Tensor, layer: str) -> Iterator[None]:
    """For a while, all that runs before a layer says what it said of these images, instead of working it out.

    Only modules that run once and are done before the layer begins are replaced, the outermost of them; what the
    network computes between modules, it computes again.

    Args:
        pipeline: How images reach the network.
        model: The network, in evaluation mode; as before when the while is over.
        images: Float images in [0, 1]; the only ones that may be asked about meanwhile.
        layer: Full name of the layer before which nothing changes.
    """
    said = _record(pipeline, model, images, layer)
    replaced = [(model.get_submodule(name), answer) for name, answer in said.items()]
    before = [module.__dict__.get("forward") for module, _ in replaced]
    try:
        for module, answer in replaced:
            # a copy each time: what follows may write into it
            module.forward = lambda *_, answer=answer, **__: answer.clone()  # type: ignore[method-assign, misc]
        yield
    finally:
        for (module, _), forward in zip(replaced, before, strict=True):
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.forward = forward  # type: ignore[method-assign]


def _record(pipeline: Pipeline, model: nn.Module, images: Tensor, layer: str) -> dict[str, Tensor]:
    """What modules say that run once and before a layer, by name."""
    said: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    reached = False

    def begin(name: str) -> None:
        nonlocal reached
        calls[name] = calls.get(name, 0) + 1
        reached = reached or name == layer

    def end(name: str, output: Any) -> None:
        if not reached and isinstance(output, Tensor):
            for inner in [inner for inner in said if inner.startswith(f"{name}.")]:
                del said[inner]
            said[name] = output.clone()

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda _, __, name=name: begin(name)))
            hooks.enter_context(module.register_forward_hook(lambda _, __, out, name=name: end(name, out)))
        pipeline.feed(model, images)
    return {name: answer for name, answer in said.items() if calls[name] == 1}
