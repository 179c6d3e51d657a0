"""Images that stay in their files because memory does not hold them: rows are read when they are taken."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hallmark.errors import DataError


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Stands in for a uint8 tensor ``(N, 3, size, size)``: what indexing and splitting give is a tensor, read anew.

    Pixels are those of the resident path: each file is cut to its central square and resized when it is decoded, so a
    view is a crop of that square and not, as in recipes that crop while decoding, of the whole file at full resolution.

    Args:
        read: From indices, int64 ``(n,)``, and a size to uint8 ``(n, 1 or 3, size, size)``; must be picklable.
        rows: What of it is here, int64 ``(N,)``.
        size: Height and width.
        workers: Processes that read training batches ahead; with 0 the training process reads them itself.
    """

    read: Callable[[Tensor, int], Tensor]
    rows: Tensor = field(repr=False)
    size: int
    workers: int = 0
    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 4

    @property
    def shape(self) -> torch.Size:
        """``(N, 3, size, size)``."""
        return torch.Size((len(self.rows), 3, self.size, self.size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read some rows."""
        return self.read(self.rows[rows], self.size).expand(-1, 3, -1, -1).contiguous()

    def __getitems__(self, rows: Sequence[int]) -> Tensor:
        """Read a batch, as torch's loader asks for it."""
        return self[torch.as_tensor(rows)]

    def take(self, rows: Tensor) -> "StoredImages":
        """Part of the images, unread."""
        return replace(self, rows=self.rows[rows])

    def split(self, size: int, dim: int = 0) -> Iterator[Tensor]:
        """Read all, ``size`` at a time; ``torch.split`` calls it."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def batches(self, rows: Sequence[Tensor], *, pin: bool = False) -> Iterator[Tensor]:
        """Read batches in order, some of them ahead.

        Args:
            rows: Rows of each batch.
            pin: Whether they go to pinned memory, from which a GPU copies without waiting.

        Raises:
            DataError: A file cannot be read.
        """
        loader: DataLoader[Tensor] = DataLoader(
            self,  # type: ignore[arg-type]  # a dataset by its methods
            batch_sampler=[batch.tolist() for batch in rows],
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            generator=torch.Generator(),  # else every epoch would draw from the global one
        )
        try:
            yield from loader
        except DataError as error:  # a worker's comes with its traceback as text
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.removeprefix(f"{DataError.__module__}.{DataError.__qualname__}: ")) from None


def _as_it_is(batch: Tensor) -> Tensor:
    return batch
