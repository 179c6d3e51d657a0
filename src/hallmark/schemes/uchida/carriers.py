"""The secret matrix X ``(T, M)`` that spreads T bits over the M weights of a filter mean.

``random`` X is stored as it is, float32 ``(T, M)``.  A row of ``direct`` X holds a single 1, a row of ``diff`` X one +1
and one −1; of these only the places are stored, int64 ``(T, 1)`` and ``(T, 2)``, so that a thousand keys weigh little.
"""

import torch
from torch import Tensor

from hallmark.errors import ConfigError, allowed

_PLACES = {"direct": 1, "diff": 2}
CARRIERS = (*_PLACES, "random")


def draw_carrier(kind: str, bits: int, size: int, *, generator: torch.Generator) -> Tensor:
    """A fresh carrier.

    Args:
        kind: ``direct``, ``diff`` or ``random``.
        bits: T.
        size: M.
        generator: The only source of randomness.

    Returns:
        Standard normal float32 ``(T, M)`` for ``random``; places in 0 … M − 1, all different, for the others.

    Raises:
        ConfigError: The kind is unknown, or the places do not suffice: T ≤ M for ``direct``, 2 T ≤ M for ``diff``.
    """
    if kind not in CARRIERS:
        raise ConfigError(allowed(kind, CARRIERS, "scheme.carrier"))
    if kind == "random":
        return torch.randn(bits, size, generator=generator)
    each = _PLACES[kind]
    if each * bits > size:
        raise ConfigError(
            f"scheme.bits={bits} is too many for a {kind} carrier: this layer has {size} weights a filter, room for "
            f"{size // each} bits; lower scheme.bits, choose a larger scheme.layer or scheme.carrier=random"
        )
    return torch.randperm(size, generator=generator)[: each * bits].view(bits, each)


def project(carrier: Tensor, weights: Tensor) -> Tensor:
    """X w ``(T,)`` of a carrier and weights ``(M,)``, in the weights' precision; differentiable in the weights."""
    if carrier.is_floating_point():
        return carrier.to(weights.dtype) @ weights
    plus, *minus = weights[carrier].unbind(1)
    return plus - minus[0] if minus else plus
