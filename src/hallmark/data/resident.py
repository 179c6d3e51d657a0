"""Training batches from data that stays on the device: no files, no worker processes, no copies but the batch itself.

Images that memory does not hold (:class:`~hallmark.data.stored.StoredImages`) are read by worker processes instead, in
the same order and to the same batches.

Randomness is stateless.  The order of epoch ``e`` depends on ``(seed, "order", e)`` alone and the views of step ``s``
on ``(seed, "views", s)`` alone, so a run resumed at an epoch's start goes on exactly as if it had never stopped, and a
batch divided among several ranks holds the same images and the same views as on one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hallmark.core.random import generator
from hallmark.data.augment import ViewRecipe, two_views
from hallmark.data.stored import StoredImages
from hallmark.errors import ConfigError, DataError


class Batch(NamedTuple):
    """One rank's share of a batch.

    Attributes:
        images: uint8 ``(b, 3, H, W)``.
        labels: ``(b, ...)``, or None where the data have none.
        indices: Rows of the data, int64 ``(b,)``.
        step: Number of the batch since the first epoch began.
        start: First row of the whole batch that is in this share.
        total: Rows of the whole batch.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor
    step: int
    start: int
    total: int


class ResidentBatches:
    """Batches of one epoch in its own random order; :meth:`set_epoch` before each epoch selects it.

    Args:
        images: uint8 ``(N, 3, H, W)``; moved to ``device``, unless they are stored images.
        batch: Rows of a whole batch, over all ranks.
        seed: Seed of the orders.
        labels: ``(N, ...)``.
        drop_last: Whether to leave out the rows that fill no whole batch.
        device: Where the data live; where they are if absent.
        rank: This process among ``world``; it gets a contiguous share of every batch.
        world: Number of processes.

    Raises:
        DataError: If the images are not uint8 ``(N, 3, H, W)``, fewer than ``batch`` or not as many as the labels.
        ConfigError: If the batch cannot be shared equally among the ranks.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        batch: int,
        seed: int,
        labels: Tensor | None = None,
        drop_last: bool = True,
        device: torch.device | str | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"images are {images.dtype} {tuple(images.shape)}; needed: torch.uint8 (N, 3, H, W)")
        if labels is not None and len(labels) != len(images):
            raise DataError(f"{len(labels)} labels for {len(images)} images; needed: one label an image")
        if batch > len(images):
            raise DataError(f"a batch of {batch} is larger than the data of {len(images)} images; use a smaller batch")
        self.images, self.labels = images, labels
        self.batch, self.seed, self.drop_last = batch, seed, drop_last
        self.epoch = 0
        self.place(images.device if device is None else device, rank=rank, world=world)

    def place(self, device: torch.device | str, *, rank: int = 0, world: int = 1) -> None:
        """Move the data to a device and take a rank's share of every batch from now on.

        Raises:
            ConfigError: If the batch cannot be shared equally among the ranks.
        """
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of a world of {world}; allowed: 0 to world - 1")
        if self.batch < 1 or self.batch % world:
            raise ConfigError(f"a batch of {self.batch} cannot be shared among {world} ranks; use a positive multiple")
        if world > 1 and not self.drop_last:
            raise ConfigError(f"drop_last=False gives {world} ranks unequal shares; use drop_last=True or one rank")
        self.device = torch.device(device)
        if not isinstance(self.images, StoredImages):
            self.images = self.images.to(device)
        self.labels = None if self.labels is None else self.labels.to(device)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.images) // self.batch if self.drop_last else -(-len(self.images) // self.batch)

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch that the next iteration yields, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator(self.seed, "order", self.epoch))
        first_step = self.epoch * len(self)
        wholes = torch.split(order.to(self.device), self.batch)[: len(self)]
        starts = [self.rank * len(whole) // self.world for whole in wholes]
        shares = [
            whole[start : (self.rank + 1) * len(whole) // self.world]
            for whole, start in zip(wholes, starts, strict=True)
        ]
        for number, images in enumerate(self._read(shares)):
            indices, whole = shares[number], wholes[number]
            labels = None if self.labels is None else self.labels[indices]
            yield Batch(images, labels, indices, first_step + number, starts[number], len(whole))

    def _read(self, shares: list[Tensor]) -> Iterator[Tensor]:
        """The images of each share, on the device."""
        if isinstance(self.images, StoredImages):
            pin = self.device.type == "cuda"
            read = self.images.batches([share.cpu() for share in shares], pin=pin)
            return (images.to(self.device, non_blocking=pin) for images in read)
        return (self.images[share] for share in shares)


@dataclass(frozen=True)
class TwoViews:
    """Two random views of a batch; a batch's views depend on the seed and its step alone.

    Attributes:
        recipes: One recipe a view.
        seed: Seed of the views.
        size: Side of the square views; the images' own height and width if absent.
    """

    recipes: tuple[ViewRecipe, ViewRecipe]
    seed: int
    size: int | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Draw the parameters of the whole batch and make the views of this share.

        Args:
            batch: ``b`` images.

        Returns:
            float32 in [0, 1], ``(2 b, 3, H', W')``, channels last: rows 0 to b - 1 are view one, the rest view two.
        """
        return two_views(
            batch.images,
            self.recipes,
            generator=generator(self.seed, "views", batch.step),
            size=self.size,
            total=batch.total,
            start=batch.start,
        )
