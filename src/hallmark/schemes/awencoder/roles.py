"""Which of the owner's images does what."""

from typing import NamedTuple

import torch
from torch import Tensor

from hallmark.core.random import generator


class Roles(NamedTuple):
    """Rows of the owner's images by what they are for; no image has two roles."""

    queries: Tensor
    """Asked about at a verification ``(Q,)``."""
    clean: Tensor
    """Perturbations are optimised on these, in this order ``(n,)``."""
    foreign: Tensor
    """Key images of perturbations that the marked encoder must not answer ``(F,)``."""
    pool: Tensor
    """Key images that decoys may draw, all the rest."""
    key: Tensor
    """The true key image ``(1,)``."""


def assign(seed: int, count: int, sizes: tuple[int, int, int], key: int | None) -> Roles:
    """Share out ``count`` images at random.

    Given the other roles, a drawn key image is uniform over all images left, as the images in the pool are.

    Args:
        seed: Of the draw.
        count: Number of images; at least one more than the sizes' sum.
        sizes: Number of queries, of images to optimise on, and of foreign key images.
        key: Row of the key image, or None to draw it.
    """
    order = torch.randperm(count, generator=generator(seed, "roles"))
    if key is not None:
        chosen = order == key
        order = torch.cat([order[~chosen], order[chosen]])
    return Roles(*order.split([*sizes, count - sum(sizes) - 1, 1]))
