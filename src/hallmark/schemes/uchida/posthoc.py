"""Writing the mark without any training: the nearest weights that carry it."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.schemes.uchida.carriers import project
from hallmark.schemes.uchida.filters import filter_mean, shift_filters
from hallmark.schemes.uchida.regulariser import host_layer, mark_loss


def embed_posthoc(host: nn.Module, key: Key, strength: float) -> nn.Module:
    """A marked copy of a host in evaluation mode; only the host layer differs, and no image is seen.

    Args:
        host: Any model with the key's layer; left untouched.
        key: The owner's key.
        strength: λ, the weight of the summed embedding loss.
    """
    marked = deepcopy(host)
    layer = host_layer(marked, key)
    start = filter_mean(layer).detach().cpu().double()
    shift_filters(layer, nearest(start, key.tensors["carrier"], key.tensors["message"], strength))
    return marked.eval()


def nearest(start: Tensor, carrier: Tensor, message: Tensor, strength: float) -> Tensor:
    """The minimiser d of ½‖d‖² + λ E_R(start + d), float64 ``(M,)``.

    The problem is strictly convex and smooth, so a quasi-Newton method finds its one solution in a few dozen steps.

    Args:
        start: w₀, the filter mean, float64 ``(M,)``.
        carrier: X, see :mod:`hallmark.schemes.uchida.carriers`.
        message: b, ``(T,)``.
        strength: λ, at least 0.
    """
    change = torch.zeros_like(start, requires_grad=True)
    solver = torch.optim.LBFGS(
        [change], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        solver.zero_grad()
        value = change.square().sum() / 2 + strength * mark_loss(project(carrier, start + change), message)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(cost)  # type: ignore[no-untyped-call]
    return change.detach()
