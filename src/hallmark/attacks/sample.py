"""The few images that an attack of a small budget makes do with."""

import torch
from torch import Tensor

from hallmark.core.scheme import Images
from hallmark.errors import ConfigError


def draw_images(data: Images, count: int, what: str, *, generator: torch.Generator) -> Tensor:
    """Places ``(count,)`` of different images of the attacker, at random.

    Args:
        data: The attacker's images.
        count: How many.
        what: The setting that asks for them, for the error message.
        generator: Draws them.

    Raises:
        ConfigError: The attacker has fewer.
    """
    if count > len(data):
        raise ConfigError(f"{what}={count} exceeds the attacker's {len(data)} images; lower it")
    return torch.randperm(len(data), generator=generator)[:count]
