"""The task an image-to-image network was trained for."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from hallmark.core.access import HostKind
from hallmark.core.random import generator as generator_for
from hallmark.core.scheme import Images, Trainer
from hallmark.core.task import Measurement, Task
from hallmark.data.pairs import PairLaw, make_pairs, to_bytes
from hallmark.errors import ConfigError
from hallmark.models.inference import Answering

CEILING = 10 * math.log10(12 * 255**2)
"""Largest PSNR that is reported, 58.9 dB: that of rounding to 8 bits, below which equal images cannot be told apart."""


@dataclass
class Restoration(Task):
    """PSNR and SSIM of a network's outputs on held-out pairs.

    Args:
        pairs: What the network undoes.
        patches: Patches cut from each test image; patches and degradations are the same for every model.
    """

    pairs: PairLaw = field(default_factory=PairLaw)
    patches: int = 4

    name: ClassVar[str] = "restoration"
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.IMAGE_TO_IMAGE})
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.patches < 1:
            raise ConfigError(f"restoration needs at least one patch an image, got patches={self.patches}")

    def transfer(self, host: nn.Module, train: Images, *, trainer: Trainer, generator: torch.Generator) -> None:
        """Nothing to build: the host is the model that is used."""

    def measure(self, host: nn.Module, downstream: nn.Module | None, train: Images, test: Images) -> list[Measurement]:
        """``psnr`` (dB, mean over patches) and ``ssim`` against the true images, and ``psnr_input`` before restoring.

        Outputs are rounded to 8 bits first.
        """
        inputs, targets = make_pairs(test.images, self.pairs, self.patches, generator=generator_for(0, "restoration"))
        device = next(host.parameters()).device
        answering = Answering(host)
        with torch.no_grad():
            parts = [answering((part.float() / 255).to(device)) for part in torch.split(inputs, 256)]
        before, after = likeness(inputs, targets), likeness(to_bytes(torch.cat(parts).float()).cpu(), targets)
        figures = {**after, "psnr_input": before["psnr"]}
        return [Measurement(metric, value, n=len(targets)) for metric, value in figures.items()]


def likeness(images: Tensor, reference: Tensor) -> dict[str, float]:
    """How alike images are to others.

    Args:
        images: uint8 ``(N, 3, H, W)``, sides above 10.
        reference: uint8 ``(N, 3, H, W)``.

    Returns:
        ``psnr`` in dB, the mean over images, each at most :data:`CEILING`; and ``ssim`` (Wang et al. 2004: 11×11
        Gaussian of σ 1.5).
    """
    from torchmetrics.functional.image import (  # slow to import, and planning measures nothing
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    a, b = images.float(), reference.float()
    psnr = peak_signal_noise_ratio(a, b, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(a, b, data_range=255.0)
    return {"psnr": float(psnr.clamp(max=CEILING).mean()), "ssim": float(ssim)}
