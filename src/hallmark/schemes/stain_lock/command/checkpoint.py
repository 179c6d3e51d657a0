"""Weights in files: found in whatever dictionary holds them, and written back into the same one."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hallmark.errors import ConfigError, DataError
from hallmark.models.excite import append

_SHOWN = 3
_GATES = ".gates.squeeze.weight"

State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Args:
        path: The file.
        content: All that it holds.
        entry: Where in it the weights are; empty if they are all of it.
        prefix: What precedes the model's own name of each weight.
        state: The weights by the model's own names.
    """

    path: Path
    content: Mapping[str, Any]
    entry: str
    prefix: str
    state: State

    @property
    def pickled(self) -> bool:
        """Whether the file is torch's own kind, not safetensors."""
        return self.path.suffix != ".safetensors"

    def named(self, state: Mapping[str, Tensor]) -> State:
        """All weights of the file under their names there, with those of ``state`` (the model's names) put in."""
        before: Mapping[str, Tensor] = self.content[self.entry] if self.entry else self.content
        return {**before, **{f"{self.prefix}{name}": tensor for name, tensor in state.items()}}

    def replaced(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The file's content with other weights in it."""
        named = self.named(state)
        return {**self.content, self.entry: named} if self.entry else named


def read(path: Path, names: Collection[str], *, entry: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Find a model's weights in a file.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote; of that, only tensors and plain values are read
            and no code is run.
        names: The model's own names of its weights.
        entry: Name under which the file keeps them; found where only one entry can be meant.
        prefix: What precedes the model's own names; found by comparing names.

    Raises:
        DataError: The file is missing, damaged, or holds code.
        ConfigError: It has no such entry, or it is not clear where its weights are.
    """
    content = _content(path)
    places = {name: value for name, value in content.items() if _is_state(value)}
    if entry is None and not _is_state(content):
        fitting = [name for name, value in places.items() if _fit(value, names, prefix)]
        if len(fitting or places) != 1:
            found = (
                f"weights under {', '.join(places)}" if places else f"no weights, but {', '.join(list(content)[:8])}"
            )
            raise ConfigError(f"{path} holds {found}; say where the model's are with --entry")
        (entry,) = fitting or places
    if entry and entry not in places:
        raise ConfigError(f"{path} has no weights under --entry {entry!r}; there are: {', '.join(places) or 'none'}")
    named: State = places[entry] if entry else dict(content)
    prefix = _best_prefix(named, names) if prefix is None else prefix
    state = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
    return Checkpoint(path, content, entry or "", prefix, state)


def fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a file, in place; gates that a lock appended are appended first.

    Raises:
        ConfigError: Names or shapes do not fit; the first of them are shown.
    """
    _append_gates(model, checkpoint.state)
    wanted, given = model.state_dict(), checkpoint.state
    wrong = [name for name in given if name in wanted and given[name].shape != wanted[name].shape]
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    faults = {
        "lacks": missing,
        "also holds": [name for name in given if name not in wanted],
        "has in other shapes": [f"{n} {tuple(given[n].shape)} for {tuple(wanted[n].shape)}" for n in wrong],
    }
    told = [f"{what} {_few(names)}" for what, names in faults.items() if names]
    if told:
        raise ConfigError(
            f"{checkpoint.path} does not fit the architecture: it {'; it '.join(told)}; check --arch, --classes and "
            "--prefix"
        )
    odd = [name for name, tensor in given.items() if tensor.is_floating_point() and tensor.dtype != torch.float32]
    if odd:
        raise ConfigError(
            f"{checkpoint.path} holds {given[odd[0]].dtype} in {_few(odd)}; convert the weights to float32 first"
        )
    model.load_state_dict(given, strict=False, assign=True)


def require_file(path: Path) -> None:
    """Refuse a file that is not there.

    Raises:
        DataError: It is not.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; name a model as torchvision:<name>, timm:<name> or an existing file")


def _content(path: Path) -> dict[str, Any]:
    require_file(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"{path} is not a readable safetensors file ({error}); restore a backup") from None
    except Exception as error:  # noqa: BLE001 - torch raises half a dozen unrelated types for a bad file
        reason = next((line for line in str(error).splitlines() if "nsupported" in line), type(error).__name__)
        raise DataError(
            f"{path} is damaged or holds more than tensors and plain values ({reason.strip()[:120]}); code in a file "
            "is never run, so save the model's state_dict() and give that"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where a dictionary of weights belongs")
    return dict(content)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _best_prefix(named: Mapping[str, Tensor], names: Collection[str]) -> str:
    """The prefix under which most of the model's names are found."""
    first = next(iter(names), "")
    candidates = ["", *sorted({key.removesuffix(first) for key in named if key.endswith(f".{first}")})]
    return max(candidates, key=lambda prefix: sum(f"{prefix}{name}" in named for name in names))


def _fit(named: Mapping[str, Tensor], names: Collection[str], prefix: str | None) -> bool:
    prefix = _best_prefix(named, names) if prefix is None else prefix
    return all(f"{prefix}{name}" in named for name in names if not name.endswith("num_batches_tracked"))


def _append_gates(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    present = model.state_dict()
    found = [name.removesuffix(_GATES) for name in state if name.endswith(_GATES) and name not in present]
    for name in sorted(found, key=lambda name: name.count(".")):
        append(model, name, state[f"{name}{_GATES}"].shape[1])


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
