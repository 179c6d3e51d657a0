"""What schemes share whose secret is a patch that is pasted on images."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hallmark.core import Access, HostKind, Key, QueryScheme
from hallmark.errors import ConfigError
from hallmark.schemes.queries import require_queries
from hallmark.schemes.trigger import TriggerLaw, Triggers, draw_triggers, paste


@dataclass(frozen=True)
class PatchScheme(QueryScheme):
    """A mark in an encoder that answers a secret patch, asked about with and without it.

    Args:
        trigger: Law of the patch.
        queries: Number Q of the owner's images that a verification asks about.
    """

    trigger: TriggerLaw = field(default_factory=TriggerLaw)
    queries: int = 100

    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.ENCODER})
    access: ClassVar[frozenset[Access]] = frozenset({Access.FEATURES, Access.LOGITS, Access.LABELS})

    def __post_init__(self) -> None:
        if self.queries < 2:
            raise ConfigError(f"scheme.queries must be at least 2, got {self.queries}")

    def check(self, image_size: int, images: int) -> None:
        """The patch must fit into the image, and the queries into the owner's images."""
        if self.trigger.size > image_size:
            raise ConfigError(
                f"scheme.trigger.size={self.trigger.size} does not fit into {image_size}x{image_size} images; lower it"
            )
        require_queries(self.queries, images)

    def triggers(self, count: int, queries: Tensor, *, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """The tensors of ``count`` fresh patches for images of the queries' size, as keys hold them."""
        drawn = draw_triggers(self.trigger, count, (queries.shape[2], queries.shape[3]), generator=generator)
        return [
            {"pattern": pattern, "mask": mask.to(torch.uint8)}
            for pattern, mask in zip(drawn.pattern, drawn.mask, strict=True)
        ]

    def controls(self, key: Key) -> Tensor:
        """The query images."""
        return key.tensors["queries"]

    def questions(self, key: Key) -> Tensor:
        """The query images with the patch pasted in, 8 bits a channel as a user would submit them."""
        return paste(key.tensors["queries"], trigger_of(key))


def trigger_of(key: Key) -> Triggers:
    """The key's patch as one full-size trigger."""
    return Triggers(key.tensors["pattern"][None], key.tensors["mask"][None].bool())
