"""A split of a data set whose images are not read yet."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Opened:
    """Labels at once, images on demand.

    Args:
        labels: int64 ``(N,)``; -1 where an image has none.
        read: From indices, int64 ``(n,)``, and a size to uint8 ``(n, 1 or 3, size, size)``.
        groups: int64 ``(N,)`` or None.
        files: Whether ``read`` reads files of their own, and not from what opening has brought to memory.
        objects: From the same to what is in the images, float32 ``(n, K, 6)``; see :mod:`hallmark.data.objects`.
    """

    labels: Tensor
    read: Callable[[Tensor, int], Tensor]
    groups: Tensor | None = None
    files: bool = False
    objects: Callable[[Tensor, int], Tensor] | None = None
