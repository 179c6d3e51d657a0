"""Networks made for answering many images: BatchNorm folded away, images in blocks that stay in the cache."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from hallmark.models.wrapping import Wrapper


class Answering(nn.Module):
    """A frozen copy of a network that answers the same, up to rounding, and faster.

    Args:
        model: Any network; it is left untouched.  Where torch.fx can trace it, BatchNorm is folded into the
            convolutions before it; a network that cannot be traced answers as it is.
        block: Images per forward pass; :func:`block_size` of the images if absent.
    """

    def __init__(self, model: nn.Module, *, block: int | None = None) -> None:
        super().__init__()
        self.model = _folded(deepcopy(model).eval()).requires_grad_(False)
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        """The network's answers ``(B, …)`` to images ``(B, 3, H, W)`` in [0, 1]."""
        blocks = torch.split(images, self.block or block_size(images))
        return torch.cat([self.model(block) for block in blocks]) if len(blocks) > 1 else self.model(images)


def block_size(images: Tensor) -> int:
    """Images ``(B, 3, H, W)`` per forward pass: on a CPU the first maps fit its caches, else memory bounds it."""
    pixels = images.shape[-2] * images.shape[-1]
    return max(1, (1 << (18 if images.device.type == "cpu" else 22)) // pixels)


def _folded(model: nn.Module) -> nn.Module:
    if isinstance(model, Wrapper):  # its step is no part of the graph
        model.model = _folded(model.model)
        return model
    try:
        return fuse(model)
    except Exception:  # noqa: BLE001 - tracing runs the network's own code, which may raise anything
        return model
