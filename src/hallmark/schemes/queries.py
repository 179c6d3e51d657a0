"""Which of the owner's images a verification asks about."""

import torch
from torch import Tensor

from hallmark.core.scheme import Images
from hallmark.errors import ConfigError


def require_queries(queries: int, images: int) -> None:
    """Refuse fewer than two queries, and more than the owner has images.

    Raises:
        ConfigError: It is one of the two.
    """
    if queries < 2:
        raise ConfigError(f"scheme.queries must be at least 2, got {queries}")
    if queries > images:
        raise ConfigError(f"scheme.queries={queries} exceeds the owner's {images} images; lower it")


def draw_queries(owner_data: Images, queries: int, *, generator: torch.Generator) -> Tensor:
    """Distinct images of the owner's, uint8 ``(Q, 3, H, W)``.

    Raises:
        ConfigError: There are fewer than ``queries``.
    """
    require_queries(queries, len(owner_data))
    return owner_data.images[torch.randperm(len(owner_data), generator=generator)[:queries]]
