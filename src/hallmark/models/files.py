"""Models on disk: safetensors beside a JSON description, never a pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from hallmark.errors import ConfigError, StoreError, allowed
from hallmark.models.classifier import Classifier
from hallmark.models.detectors import ObjectDetector
from hallmark.models.encoders import Encoder
from hallmark.models.image_to_image import Barriered, ImageToImage, from_spec
from hallmark.models.wrapping import Wrapper, bare, is_wrapped, rewrap

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def describe(model: nn.Module) -> dict[str, Any]:
    """Plain JSON from which :func:`build` makes the same architecture."""
    if isinstance(model, Wrapper):
        return {"kind": describe(bare(model))["kind"], **model.spec}
    if isinstance(model, Encoder):
        return {"kind": "encoder", **model.spec}
    if isinstance(model, Classifier):
        return {"kind": "classifier", **model.spec}
    if isinstance(model, ImageToImage | Barriered):
        return {"kind": "image_to_image", **model.spec}
    if isinstance(model, ObjectDetector):
        return {"kind": "detector", **model.spec}
    raise ConfigError(f"cannot describe a {type(model).__name__}; allowed: {', '.join(_KINDS)}")


def build(description: dict[str, Any]) -> nn.Module:
    """An untrained model of a description."""
    fields = dict(description)
    kind = fields.pop("kind", None)
    if is_wrapped(fields):
        return rewrap(fields, lambda inside: build({"kind": kind, **inside}))
    if kind == "encoder":
        mean, std = tuple(fields["mean"]), tuple(fields["std"])
        return Encoder(fields["backbone"], fields["width"], mean, std, fields.get("widths"), fields.get("added"))
    if kind == "classifier":
        encoder = build({"kind": "encoder", **fields["encoder"]})
        return Classifier(encoder, fields["classes"], fields["hidden"])  # type: ignore[arg-type]
    if kind == "image_to_image":
        return from_spec(fields)
    if kind == "detector":
        return ObjectDetector(**fields)
    raise ConfigError(allowed(kind, sorted(set(_KINDS.values())), "model kind"))


_KINDS = {
    "Encoder": "encoder",
    "Classifier": "classifier",
    "ImageToImage": "image_to_image",
    "Barriered": "image_to_image",
    "ObjectDetector": "detector",
}


def save(model: nn.Module, folder: Path) -> None:
    """Write a model into a folder as :data:`WEIGHTS` and :data:`DESCRIPTION`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(serialise(state))  # an OSError of ours says more than safetensors' own
    (folder / DESCRIPTION).write_text(json.dumps(describe(model), indent=1, sort_keys=True) + "\n")


def load(folder: Path) -> nn.Module:
    """Read a model, in evaluation mode.

    Raises:
        StoreError: A file is missing, is no safetensors file (such as a pickle), or does not fit its description.
    """
    weights = folder / WEIGHTS
    try:
        model = build(json.loads((folder / DESCRIPTION).read_text()))
        state = load_file(weights)
        model.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{weights} is not a readable safetensors file ({error}); pickles are never loaded, "
            "convert a foreign checkpoint with hallmark.models.files.adopt"
        ) from None
    except (RuntimeError, KeyError, TypeError, ValueError) as error:  # a description may hold any JSON
        line = str(error).splitlines()[0]
        raise StoreError(f"{weights} does not fit its description {DESCRIPTION} ({line}); make it again") from None
    return model.eval()


def adopt(
    path: Path, model: nn.Module, *, names: Mapping[str, str] | None = None, entry: str | None = None
) -> nn.Module:
    """Fill a model from somebody else's ``.pth`` file, read by ``torch.load(weights_only=True)``.

    Args:
        path: The file.
        model: An architecture with the same parameters under the same names, or those that ``names`` makes of them.
        names: What the beginning of a name in the file stands for, e.g. ``{"module.": ""}``; the longest one that
            fits counts.
        entry: Name under which the file keeps its state dict, if it does.

    Raises:
        StoreError: The file holds anything but tensors and plain values, or does not fit the model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        fill(model, content if entry is None else content[entry], names or {})
    except Exception as error:  # noqa: BLE001 - torch raises half a dozen unrelated types for a bad file
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path} cannot be adopted ({line}); only tensors of the same names are accepted") from None
    return model.eval()


def fill(model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Load a foreign state dict into a model, its names changed as :func:`adopt` says."""

    def renamed(name: str) -> str:
        first = max((start for start in names if name.startswith(start)), key=len, default=None)
        return name if first is None else names[first] + name.removeprefix(first)

    model.load_state_dict({renamed(name): tensor for name, tensor in state.items()})


HEAD = "head.safetensors"


def save_downstream(classifier: Classifier, host: nn.Module, folder: Path) -> None:
    """Write a downstream classifier; of one that stands on the very host, the head alone."""
    if classifier.encoder is not host:
        save(classifier, folder)
        return
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.head.state_dict().items()}
    (folder / HEAD).write_bytes(serialise(state))
    description = {"kind": "head", "classes": classifier.classes, "hidden": list(classifier.hidden)}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


def load_downstream(folder: Path, host: nn.Module) -> Classifier:
    """Read what :func:`save_downstream` wrote, on the host it was built on.

    Raises:
        StoreError: A file is missing, damaged, or does not fit the host.
    """
    if not (folder / HEAD).exists():
        model = load(folder)
        if not isinstance(model, Classifier):
            raise StoreError(f"{folder} holds a {type(model).__name__} where a downstream classifier belongs")
        return model
    if not isinstance(bare(host), Encoder):
        raise StoreError(f"{folder} holds a head for an Encoder, but its host is a {type(host).__name__}")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        classifier = Classifier(host, description["classes"], description["hidden"])
        classifier.head.load_state_dict(load_file(folder / HEAD))
    except (OSError, SafetensorError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise StoreError(f"{folder / HEAD} cannot be read ({str(error).splitlines()[0]}); make it again") from None
    return classifier.eval()
