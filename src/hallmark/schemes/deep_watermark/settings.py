"""Sizes and schedules of deep_watermark."""

from dataclasses import dataclass, field

from hallmark.errors import ConfigError
from hallmark.models.image_to_image import Architecture
from hallmark.restoration_settings import Fit


@dataclass(frozen=True)
class Networks:
    """Sizes of the networks; the defaults are the paper's.

    Args:
        barrier: H.
        extractor_width: Channels of R.
        extractor_blocks: Residual blocks of R.
        discriminator_width: Channels of D's first layer.
    """

    barrier: Architecture = field(default_factory=lambda: Architecture("unet", 64, 7, residual=False))
    extractor_width: int = 128
    extractor_blocks: int = 9
    discriminator_width: int = 64


@dataclass(frozen=True)
class Embedding:
    """The initial stage.

    Args:
        epochs: Passes over the owner's patches.
        batch: Patches per step, an even number.
        lr: Adam's learning rate; constant for half of the steps, then falling linearly to zero.
        patches: Patches cut from each of the owner's images, once.
    """

    epochs: int = 200
    batch: int = 16
    lr: float = 2e-4
    patches: int = 1

    def __post_init__(self) -> None:
        if self.batch < 2 or self.batch % 2:
            raise ConfigError(
                f"scheme.embedding.batch must be even and at least 2, since its halves are compared; got {self.batch}"
            )
        if self.epochs < 1 or self.patches < 1 or self.lr <= 0:
            raise ConfigError(
                f"scheme.embedding needs epochs ≥ 1, patches ≥ 1 and lr > 0, got {self.epochs}, {self.patches} "
                f"and {self.lr}"
            )


@dataclass(frozen=True)
class Adversarial:
    """The adversarial stage: R learns to read the mark from a surrogate that the owner trains for the purpose.

    Args:
        epochs: Passes of R over the owner's patches; 0 leaves the stage out.
        lr: R's learning rate.
        network: The surrogate.
        fit: Its loss and schedule; ``patches`` is not used, the patches are the embedding's.
    """

    epochs: int = 200
    lr: float = 1e-4
    network: Architecture = field(default_factory=Architecture)
    fit: Fit = field(default_factory=Fit)

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.lr <= 0:
            raise ConfigError(f"scheme.adversarial needs epochs ≥ 0 and lr > 0, got {self.epochs} and {self.lr}")
