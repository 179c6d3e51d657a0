"""How a host comes about: plain numbers, no library."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hallmark.components import build
from hallmark.core.access import HostKind
from hallmark.data.augment import ViewRecipe
from hallmark.data.pairs import PairLaw
from hallmark.errors import ConfigError, allowed
from hallmark.models.image_to_image import Architecture
from hallmark.optimisation import Training
from hallmark.restoration_settings import Fit

CONTRASTIVE = {
    "simclr": frozenset({"temperature", "hidden", "projection"}),
    "moco_v2": frozenset({"temperature", "queue", "momentum", "hidden", "projection"}),
    "byol": frozenset({"momentum", "hidden", "projection"}),
}
"""Contrastive methods with the options that each needs."""
SUPERVISED, FOREIGN, DETECTION, RESTORATION = "supervised", "foreign", "detection", "restoration"
METHODS = (*CONTRASTIVE, SUPERVISED, FOREIGN, DETECTION, RESTORATION)
CROP_AND_FLIP = ViewRecipe(scale=(0.6, 1.0), ratio=(1.0, 1.0), jitter=0.0, grey=0.0)
"""What stands for pad-and-crop with flips, the usual augmentation of CIFAR classifiers."""
OPTIMISERS = ("adamw", "sgd", "lars")
UNTRAINED = "untrained"
PREFIX = "torchvision:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class HostRecipe:
    """Architecture of a host encoder.

    Args:
        backbone: A name of :data:`hallmark.models.encoders.BACKBONES`, or ``timm:<model>``.
        width: Base width, or None for the backbone's own.
    """

    backbone: str = "resnet_small"
    width: int | None = None


@dataclass(frozen=True)
class Optimisation:
    """Optimiser and cosine schedule with linear warm-up.

    Args:
        name: ``adamw``, ``sgd`` or ``lars``.
        lr: Learning rate.  For ``sgd`` and ``lars`` it is per 256 images, as in SimCLR §B.6 and BYOL §3.2.
        weight_decay: Not applied to biases and normalisation parameters.
        warmup_epochs: Epochs of linear warm-up.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ConfigError(allowed(self.name, OPTIMISERS, "optimiser"))


@dataclass(frozen=True)
class Recipe:
    """One contrastive pretraining.

    Args:
        method: ``simclr``, ``moco_v2`` or ``byol``.
        epochs: Passes over the owner's images.
        batch: Effective batch over all devices.
        options: The method's own arguments, e.g. ``temperature``.
        optimisation: Optimiser and schedule.
        first_view: Augmentation of the first view.
        second_view: Augmentation of the second view.
    """

    method: str
    epochs: int
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    optimisation: Optimisation = field(default_factory=Optimisation)
    first_view: ViewRecipe = field(default_factory=ViewRecipe)
    second_view: ViewRecipe = field(default_factory=ViewRecipe)
    host_kind: ClassVar[HostKind] = HostKind.ENCODER
    passes: ClassVar[int] = 7
    """Images through the network for one image of the data, a backward pass counting double, for estimates."""

    def __post_init__(self) -> None:
        if self.method not in CONTRASTIVE:
            raise ConfigError(allowed(self.method, METHODS, "pretraining method"))
        if set(self.options) != CONTRASTIVE[self.method]:
            needed = ", ".join(sorted(CONTRASTIVE[self.method]))
            given = ", ".join(sorted(self.options))
            raise ConfigError(f"{self.method} needs exactly the options {needed}; got {given}")
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"pretraining needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")
        if self.options.get("queue", 0) % self.batch:
            raise ConfigError(f"the queue must be a multiple of the batch {self.batch}, got {self.options['queue']}")


@dataclass(frozen=True)
class SupervisedRecipe:
    """Training a classifier with labels, as Uchida 2017 and most watermarks of classifiers assume.

    Args:
        epochs: Passes over the owner's images.
        batch: Effective batch over all devices.
        training: Optimiser and schedule.
        view: Augmentation.
        method: ``supervised``.
    """

    epochs: int
    batch: int
    training: Training = field(default_factory=Training)
    view: ViewRecipe = CROP_AND_FLIP
    method: str = SUPERVISED
    host_kind: ClassVar[HostKind] = HostKind.CLASSIFIER
    passes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.method != SUPERVISED:
            raise ConfigError(allowed(self.method, METHODS, "pretraining method"))
        if self.epochs < 1 or self.batch < 2:
            raise ConfigError(f"training needs epochs ≥ 1 and batch ≥ 2, got {self.epochs} and {self.batch}")


@dataclass(frozen=True)
class DetectionRecipe:
    """Training an object detector with boxes, or taking one that torchvision has weights of.

    Args:
        epochs: Passes over the owner's images; 0 with ``weights``, and only then.
        batch: Effective batch over all devices.
        training: Optimiser and schedule.
        weights: Name of torchvision's weights for the host, such as ``COCO_V1``; or ``untrained``, which stands for any
            of them where no file is wanted; empty to train.
        method: ``detection``.
    """

    epochs: int
    batch: int
    training: Training = field(default_factory=Training)
    weights: str = ""
    method: str = DETECTION
    host_kind: ClassVar[HostKind] = HostKind.DETECTOR
    passes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.method != DETECTION:
            raise ConfigError(allowed(self.method, METHODS, "pretraining method"))
        if self.epochs < 0 or self.batch < 1 or bool(self.weights) == bool(self.epochs):
            raise ConfigError(
                "detection needs batch ≥ 1 and either epochs ≥ 1 or weights with epochs=0, got "
                f"batch={self.batch}, epochs={self.epochs} and weights={self.weights!r}"
            )


@dataclass(frozen=True)
class RestorationRecipe:
    """Training an image-to-image network on pairs made from natural images, without labels.

    Args:
        pairs: What the network learns to undo, and the side of the patches it sees.
        fit: Loss and schedule.
        depth: Number of times the network halves the resolution; None for the architecture's own.
        residual: Whether the network adds to its input; otherwise a sigmoid makes its output.
        method: ``restoration``.
    """

    pairs: PairLaw = field(default_factory=PairLaw)
    fit: Fit = field(default_factory=Fit)
    depth: int | None = None
    residual: bool = True
    method: str = RESTORATION
    host_kind: ClassVar[HostKind] = HostKind.IMAGE_TO_IMAGE

    def __post_init__(self) -> None:
        if self.method != RESTORATION:
            raise ConfigError(allowed(self.method, METHODS, "pretraining method"))

    @property
    def epochs(self) -> int:
        """Passes over the owner's patches."""
        return self.fit.epochs

    @property
    def batch(self) -> int:
        """Patches per step, over all devices."""
        return self.fit.batch

    @property
    def passes(self) -> int:
        """Patches through the network for one image of the data, a backward pass counting double, for estimates."""
        return 3 * self.fit.patches

    def architecture(self, host: HostRecipe, image_size: int) -> Architecture:
        """The network of a host.

        Args:
            host: Its name and width.
            image_size: Height and width of the images that patches are cut from.

        Raises:
            ConfigError: There is no such network, it cannot take the patches, or the images are smaller than these.
        """
        if host.width is None:
            raise ConfigError(f"host {host.backbone!r} has no width of its own; set host.width")
        found = Architecture(host.backbone, host.width, self.depth, self.residual)
        side = self.pairs.side
        found.require(side, side)
        if side > image_size:
            raise ConfigError(f"pairs.side={side} does not fit into {image_size}x{image_size} images; lower it")
        return found


@dataclass(frozen=True)
class ForeignRecipe:
    """Taking a classifier that somebody else trained, as it is.

    Args:
        weights: A ``.pth`` file below the data root; or ``torchvision:<weights>``, such as
            ``torchvision:ResNet50_Weights.IMAGENET1K_V1``, which torchvision downloads; or ``untrained``, which stands
            for any of them where no file is wanted.
        classes: Number of classes the file knows.
        entry: Name under which a file keeps its state dict, if it does.
        names: What the beginning of a name in a file stands for; see :func:`hallmark.models.files.adopt`.
        mean: Channel means in [0, 1] that its images were normalised by.
        std: Their standard deviations.
        method: ``foreign``.
    """

    weights: str
    classes: int
    entry: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    method: str = FOREIGN
    host_kind: ClassVar[HostKind] = HostKind.CLASSIFIER

    def __post_init__(self) -> None:
        if self.method != FOREIGN:
            raise ConfigError(allowed(self.method, METHODS, "pretraining method"))
        if not self.weights or self.classes < 2:
            raise ConfigError(f"a foreign host needs weights and classes ≥ 2, got {self.weights!r}, {self.classes}")

    @property
    def file(self) -> str | None:
        """The file below the data root, if it is one."""
        return None if self.weights == UNTRAINED or self.published else self.weights

    @property
    def published(self) -> str | None:
        """Torchvision's name of the weights, if they are its."""
        return self.weights.removeprefix(PREFIX) if self.weights.startswith(PREFIX) else None


AnyRecipe = Recipe | SupervisedRecipe | ForeignRecipe | DetectionRecipe | RestorationRecipe


_OTHER_METHODS: dict[Any, type[AnyRecipe]] = {
    SUPERVISED: SupervisedRecipe,
    FOREIGN: ForeignRecipe,
    DETECTION: DetectionRecipe,
    RESTORATION: RestorationRecipe,
}
"""Recipes by method; every other method is contrastive."""

_BUILT: dict[str, AnyRecipe] = {}
"""Recipes by their configuration: checking one takes milliseconds, and a sweep plans the same few again and again."""


def build_recipe(config: Mapping[str, Any], where: str) -> AnyRecipe:
    """The recipe that a configuration's ``method`` asks for.

    Raises:
        ConfigError: The method is unknown, or a field is unknown, missing or of the wrong type.
    """
    text = repr(config)
    if text not in _BUILT:
        _BUILT[text] = build(_OTHER_METHODS.get(config.get("method"), Recipe), config, where)
    return _BUILT[text]
