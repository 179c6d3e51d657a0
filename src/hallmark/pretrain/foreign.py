"""Hosts that somebody else trained."""

from pathlib import Path

import torch
from torch import nn

from hallmark.core.random import derive_seed
from hallmark.data.sources import require_root
from hallmark.errors import ConfigError, DataError
from hallmark.models import files
from hallmark.models.classifier import Classifier
from hallmark.models.encoders import Encoder
from hallmark.models.torchvision_nets import PREFIX, last_linear
from hallmark.pretrain.recipe import ForeignRecipe, HostRecipe


def adopt_foreign(host: HostRecipe, recipe: ForeignRecipe, *, root: Path | None, seed: int) -> Classifier:
    """A classifier with foreign weights, in evaluation mode; its input normalisation is inside.

    Args:
        host: Its architecture.
        recipe: Which weights.
        root: Folder below which files are.
        seed: Seeds the weights of a network that stays untrained.

    Raises:
        StoreError: A file does not fit the architecture.
        DataError: torchvision cannot download the weights.
        ConfigError: torchvision has no such weights, or they are for another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        classifier = Classifier(Encoder(host.backbone, host.width, recipe.mean, recipe.std), recipe.classes)
    if recipe.file:
        folder = require_root(recipe.file, root)
        files.adopt(folder / recipe.file, classifier, names=recipe.names, entry=recipe.entry)
    elif recipe.published:
        _fill_published(classifier, host.backbone, recipe.published)
    return classifier.eval()


def require_published(name: str) -> None:
    """Refuse a name that is not one of torchvision's weights.

    Raises:
        ConfigError: It is not.
    """
    from torchvision import models  # slow to import, and only these weights need it

    try:
        models.get_weight(name)
    except (AttributeError, KeyError, ValueError):
        raise ConfigError(
            f"torchvision has no weights {name!r}; write e.g. {PREFIX}ResNet50_Weights.IMAGENET1K_V1"
        ) from None


def _fill_published(classifier: nn.Module, backbone: str, name: str) -> None:
    from torchvision import models

    require_published(name)
    if not backbone.startswith(PREFIX):
        raise ConfigError(f"torchvision's weights fit torchvision's networks; set host.backbone={PREFIX}<model>")
    try:
        state = models.get_weight(name).get_state_dict(check_hash=True, progress=False)
    except (OSError, RuntimeError) as error:  # no network, a bad digest
        reason = " ".join(str(error).split())
        raise DataError(
            f"weights {name!r} cannot be downloaded ({reason}); put the file into {torch.hub.get_dir()}/checkpoints"
        ) from None
    with torch.device("meta"):
        last = last_linear(models.get_model(backbone.removeprefix(PREFIX), weights=None))
    try:
        files.fill(classifier, state, {"": "encoder.backbone.", f"{last}.": "head.0."})
    except RuntimeError:
        raise ConfigError(f"weights {name!r} do not fit host.backbone={backbone!r}; give the weights' own") from None
