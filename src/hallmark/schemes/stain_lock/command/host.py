"""A model to edit or to look at, from a name or a file, with how images reach it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hallmark.core import Key
from hallmark.errors import ConfigError
from hallmark.schemes.stain_lock.command import checkpoint
from hallmark.schemes.stain_lock.command.architecture import LIBRARIES, Architecture
from hallmark.schemes.stain_lock.command.checkpoint import Checkpoint
from hallmark.schemes.stain_lock.command.images import Normalise, Triple, normalisation
from hallmark.schemes.stain_lock.trigger import Pipeline


@dataclass(frozen=True)
class Request:
    """Which model is meant, as the options of a command say it.

    Args:
        model: ``torchvision:<name>``, ``timm:<name>``, or a file.
        arch: Architecture of a file.
        classes: Its number of classes.
        entry: Where in the file the weights are.
        prefix: What precedes their names.
        random_weights: Whether a named model shall get random weights instead of a download.
        mean: Means of the normalisation before the network, as text.
        std: Its deviations.
        size: Height and width of its images.
    """

    model: str
    arch: str | None = None
    classes: int | None = None
    entry: str | None = None
    prefix: str | None = None
    random_weights: bool = False
    mean: str | None = None
    std: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Host:
    """A model with everything that is known about it.

    Args:
        model: The network, in evaluation mode.
        arch: Its architecture.
        classes: As it was asked for.
        mean: Means of the normalisation before the network; empty if there is none.
        std: Its deviations.
        size: Height and width of its images.
        file: The file it came from, if it did.
    """

    model: nn.Module
    arch: Architecture
    classes: int | None
    mean: Triple
    std: Triple
    size: int
    file: Checkpoint | None

    @property
    def pipeline(self) -> Pipeline:
        """How images reach the network."""
        return Pipeline(self.model, self.size, Normalise(self.mean, self.std))

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for a key: how to ask a suspect of the same kind."""
        shown = {"mean": list(self.mean), "std": list(self.std), "size": self.size}
        return {"arch": str(self.arch), "classes": self.classes, **shown}

    def state(self, edited: nn.Module) -> dict[str, Tensor]:
        """Weights of an edited model: those that the host's file holds, and all others that are new."""
        state = {name: tensor.detach().contiguous() for name, tensor in edited.state_dict().items()}
        if self.file is None:
            return state
        own = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if name in self.file.state or name not in own}


def load(request: Request, key: Key | None = None) -> Host:
    """Build a model and fill it.

    Args:
        request: What the options say.
        key: A key that remembers the host it was made for; options win over it.

    Raises:
        HallmarkError: One clear line about what does not fit.
    """
    remembered: Mapping[str, Any] = {} if key is None else key.meta.get("host", {})
    named = request.model.partition(":")[0] in LIBRARIES
    if named and request.arch:
        raise ConfigError(f"{request.model} names its architecture; --arch is for files")
    if not named:
        checkpoint.require_file(Path(request.model))
    arch = Architecture.parse(request.model if named else _arch_of(request, remembered))
    classes = remembered.get("classes") if request.classes is None else request.classes
    if classes is not None and classes < 1:
        raise ConfigError(f"--classes must be at least 1, got {classes}")
    pretrained = named and not request.random_weights
    if pretrained and arch.library == "hallmark":
        raise ConfigError(f"{arch} brings no weights along; give a file with --arch {arch}, or add --random-weights")
    if pretrained and request.classes is not None:
        raise ConfigError("--classes does not go with pretrained weights; drop it, or add --random-weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = arch.build(None if pretrained else classes, pretrained=pretrained)
    file = None
    if not named:
        file = checkpoint.read(
            Path(request.model), list(model.state_dict()), entry=request.entry, prefix=request.prefix
        )
        checkpoint.fill(model, file)
    model = model.eval().to(memory_format=torch.channels_last)
    mean, std, size = _images(request, {**arch.usual(), **remembered}, arch)
    host = Host(model, arch, classes, mean, std, size, file)
    _try(host)
    return host


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights: for each, sorted by name, ``name dtype shape`` in a line and then its bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _arch_of(request: Request, remembered: Mapping[str, Any]) -> str:
    if request.arch:
        return request.arch
    text: str = remembered.get("arch", "")
    if not text:
        raise ConfigError(
            f"a file such as {request.model} needs its architecture: give --arch torchvision:<name>, timm:<name>, "
            "resnet20_a, hallmark:<name> or module:callable"
        )
    if text.partition(":")[0] not in LIBRARIES:  # a key may come from anybody; whose code runs is the user's choice
        raise ConfigError(f"the key is for a network of somebody's own code; allow it to run with --arch {text}")
    return text


def _images(request: Request, usual: Mapping[str, Any], arch: Architecture) -> tuple[Triple, Triple, int]:
    given = normalisation(request.mean, request.std)
    if given is None and "mean" not in usual:
        raise ConfigError(
            f"say how images are normalised before they reach {arch}: --mean imagenet, cifar10, none, or three numbers "
            "and --std with three more"
        )
    mean, std = given or (tuple(usual["mean"]), tuple(usual["std"]))
    size = request.size or usual.get("size")
    if not size or size < 1:
        raise ConfigError(f"say how large the images of {arch} are: --size <pixels>")
    return mean, std, int(size)


def _try(host: Host) -> None:
    """Refuse a network that cannot look at images of this size."""
    blank = torch.full((1, 3, host.size, host.size), 0.5)
    try:
        with torch.no_grad():
            host.pipeline.feed(host.model, blank)
    except Exception as error:  # noqa: BLE001 - it is the network's own code, which may raise anything
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{host.arch} cannot look at {host.size}x{host.size} images ({line[:200]}); set --size to what it was "
            "trained on"
        ) from None
