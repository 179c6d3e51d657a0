"""The owner's secret."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hallmark.errors import KeyFileError

_FORMAT = "hallmark-key-2"


@dataclass(frozen=True)
class Key:
    """What the owner keeps secret: tensors and plain JSON, saved beside the model, never in it.

    Args:
        scheme: Name of the scheme the key belongs to.
        tensors: Secret tensors by name.
        meta: Secret plain values (JSON types only).
    """

    scheme: str
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def commitment(self) -> str:
        """SHA-256 of the key, to publish before a dispute: it binds the owner to the key without showing it."""
        tensors = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        shapes = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()]
        # the header fixes the length of every part after it, so no two keys give the same bytes
        header = json.dumps([_FORMAT, self.scheme, self.meta, shapes], sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(len(header).to_bytes(8, "big") + header)
        for tensor in tensors.values():
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the key as safetensors with its JSON in the header."""
        header = {
            "format": _FORMAT,
            "scheme": self.scheme,
            "meta": json.dumps(dict(self.meta), sort_keys=True),
            "commitment": self.commitment(),
        }
        path.write_bytes(save({n: t.detach().cpu().contiguous() for n, t in self.tensors.items()}, metadata=header))

    @classmethod
    def load(cls, path: Path, *, scheme: str | None = None) -> "Key":
        """Read a key.

        Args:
            path: File written by :meth:`save`.
            scheme: The scheme that is about to use it, or None for any.

        Raises:
            KeyFileError: The file is no Hallmark key, is damaged, or belongs to another scheme.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise KeyFileError(f"{path} is not a readable key file ({error}); give the file that embed wrote") from None
        if header.get("format") != _FORMAT:
            raise KeyFileError(f"{path} holds no Hallmark key (format {header.get('format')!r}); expected {_FORMAT!r}")
        try:
            key, commitment = cls(header["scheme"], tensors, json.loads(header["meta"])), header["commitment"]
        except (KeyError, json.JSONDecodeError):
            raise KeyFileError(f"{path} is damaged: its header is incomplete; restore a backup") from None
        if key.commitment() != commitment:
            raise KeyFileError(f"{path} was altered: its content does not match its own commitment; restore a backup")
        if scheme is not None and key.scheme != scheme:
            raise KeyFileError(f"{path} is a key of scheme {key.scheme!r}, but scheme {scheme!r} was asked to use it")
        return key
