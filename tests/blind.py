"""Owner data that fails whoever looks at its labels."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Blind:
    """Images alone.

    Args:
        images: uint8 ``(N, 3, H, W)``.
    """

    images: Tensor

    @property
    def labels(self) -> Tensor:
        raise AssertionError("labels were read")

    @property
    def classes(self) -> int:
        raise AssertionError("the number of classes was read")

    def __len__(self) -> int:
        return len(self.images)
