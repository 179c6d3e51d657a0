"""Architectures by name: torchvision's, timm's, Hallmark's own, and those of the user's code."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hallmark.errors import ConfigError, DataError
from hallmark.models import BACKBONES, Classifier, Encoder
from hallmark.models.cifar_resnet import ResNet20Classifier

LIBRARIES = ("torchvision", "timm", "hallmark")
BARE: Mapping[str, Callable[..., nn.Module]] = {"resnet20_a": ResNet20Classifier}
"""Own networks that take normalised images and end in logits, as those of others do."""


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    Args:
        library: One of :data:`LIBRARIES`, or the module of the user's own code.
        name: Name in the library, or the callable of the module.
    """

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    @property
    def known(self) -> bool:
        """Whether it is built without running code that a name brings along."""
        return self.library in LIBRARIES

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """``torchvision:x``, ``timm:x``, ``hallmark:x``, ``module:callable``, or x in the first of them that has it.

        Raises:
            ConfigError: No library has it.
        """
        library, colon, name = text.rpartition(":")
        if colon and library not in LIBRARIES:
            return cls(library, name)
        for one in [library] if library else LIBRARIES:
            if name in _names(one) or (one == "timm" and name.partition(".")[0] in _names(one)):  # a tag may follow
                return cls(one, name)
        known = [known for one in ([library] if library else LIBRARIES) for known in _names(one)]
        close = difflib.get_close_matches(name, known, 3)
        raise ConfigError(
            f"unknown architecture {text!r}; "
            + (f"did you mean {', '.join(close)}?" if close else "give torchvision:<name>, timm:<name>, "
               "hallmark:<name> or module:callable of your own code")
        )  # fmt: skip

    def build(self, classes: int | None, *, pretrained: bool = False) -> nn.Module:
        """The network in evaluation mode.

        Args:
            classes: Number of classes, or None for the architecture's own.
            pretrained: Whether its library shall bring its weights along.

        Raises:
            ConfigError: It cannot be built so.
            DataError: Its weights cannot be had.
        """
        if self.library == "torchvision":
            import torchvision

            given = {} if classes is None else {"num_classes": classes}
            weights = "DEFAULT" if pretrained else None
            return _fetched(lambda: torchvision.models.get_model(self.name, weights=weights, **given), self).eval()
        if self.library == "timm":
            import timm

            given = {} if classes is None else {"num_classes": classes}
            return _fetched(lambda: timm.create_model(self.name, pretrained=pretrained, **given), self).eval()
        if self.library == "hallmark":
            return self._own(classes).eval()
        return _called(self, classes).eval()

    def _own(self, classes: int | None) -> nn.Module:
        if self.name in BARE:
            return BARE[self.name](10 if classes is None else classes)
        encoder = Encoder(self.name)
        return encoder if classes is None else Classifier(encoder, classes)

    def usual(self) -> dict[str, Any]:
        """Image size and normalisation that its library gives it: ``size``, ``mean`` and ``std``, as far as known."""
        if self.library == "torchvision":
            import torchvision

            shown = torchvision.models.get_model_weights(self.name).DEFAULT.transforms()
            return {"size": int(shown.crop_size[0]), "mean": tuple(shown.mean), "std": tuple(shown.std)}
        if self.library == "timm":
            import timm

            shown = timm.get_pretrained_cfg(self.name)
            if shown is not None:
                return {"size": int(shown.input_size[-1]), "mean": tuple(shown.mean), "std": tuple(shown.std)}
        if self.library == "hallmark":
            return {"size": 32} if self.name in BARE else {"size": 32, "mean": (), "std": ()}
        return {}


def _names(library: str) -> list[str]:
    if library == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)
    if library == "timm":
        import timm

        return timm.list_models()
    return list({**BARE, **BACKBONES})


def _fetched(build: Callable[[], nn.Module], what: Architecture) -> nn.Module:
    try:
        return build()
    except Exception as error:  # noqa: BLE001 - a download may fail in many ways
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{what} cannot be had ({line}); give a file with --arch {what}, or try without weights by --random-weights"
        ) from None


def _called(what: Architecture, classes: int | None) -> nn.Module:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        build = getattr(importlib.import_module(what.library), what.name)
        model = build() if classes is None else build(num_classes=classes)
    except Exception as error:  # noqa: BLE001 - it is the user's own code, which may raise anything
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"--arch {what} cannot be built: {type(error).__name__}: {line}") from None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--arch {what} gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model
