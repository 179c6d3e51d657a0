"""What a stored stage is: the canonical JSON that names it and the manifest that its files are checked against."""

import hashlib
import json
import math
import stat
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hallmark.errors import ConfigError, StoreError

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
PACKAGES = ("hallmark", "torch", "torchvision", "lightly", "pytorch-lightning")
"""What the manifest names with its version: other versions may give other numbers."""


@dataclass(frozen=True)
class Stamp:
    """Digest (hex) and size of one stored file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says of a finished stage.

    Attributes:
        identity: The document whose digest is the key.
        files: Stamps by POSIX path relative to the stage's folder, the manifest itself left out.
        seconds: Wall time of the run that finished the stage.
        created_by: Versions of :data:`PACKAGES`.
    """

    identity: dict[str, Any]
    files: dict[str, Stamp]
    seconds: float
    created_by: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(stamp.bytes for stamp in self.files.values())


def _check_json(value: object, path: str) -> None:
    """Raise a ConfigError that names the path of the first thing inside ``value`` that JSON cannot say."""
    where = path or "the document"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where} has the key {key!r}, which is no string; JSON allows no other keys")
            _check_json(key, f"a key of {where}")
            _check_json(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_json(item, f"{path}[{position}]")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(f"{where} is {value!r}, which is no valid Unicode; correct the text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}, which JSON cannot hold; give a finite number")
    elif value is not None and not isinstance(value, int):
        types = "string, number, boolean, null, list, mapping"
        raise ConfigError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; allowed: {types}")


def _is_json(value: object) -> bool:
    """Whether JSON can say a value without doubt; quick where :func:`_check_json`, which says what is wrong, is not."""
    if isinstance(value, str):
        return value.isascii()
    if isinstance(value, dict):
        return all(isinstance(name, str) and name.isascii() and _is_json(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or (math.isfinite(value) if isinstance(value, float) else isinstance(value, int))


def canonical(document: object) -> str:
    """The one JSON text of a document: sorted keys, no white space, non-ASCII letters as they are.

    A tuple and a list of the same items are the same document; ``1``, ``1.0`` and ``True`` are three.

    Raises:
        ConfigError: Not a JSON document (NaN, infinity, another type, a key that is no string); names the path.
    """
    if not _is_json(document):
        _check_json(document, "")
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(document: object) -> str:
    """SHA-256 (64 hex characters) of the canonical JSON of a document, which is its key in the store."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def files(folder: Path, *, but: str | None = None) -> dict[str, int]:
    """Sizes of all files below a folder, except those below its subfolder ``but``, by relative POSIX path, sorted.

    Raises:
        StoreError: A link or special file is among them.
    """
    sizes = {}
    for path in sorted(folder.rglob("*")):
        relative, status = path.relative_to(folder), path.lstat()
        if relative.parts[0] == but:
            continue
        if stat.S_ISREG(status.st_mode):
            sizes[relative.as_posix()] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{path} is a link or special file; a stage holds only plain files and folders")
    return sizes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Versions of :data:`PACKAGES`; looking for one among all that is installed takes milliseconds."""
    return {name: metadata.version(name) for name in PACKAGES}


def write(folder: Path, identity: dict[str, Any], seconds: float) -> None:
    """Write the manifest of all files in a folder but those below ``checkpoints``.

    Raises:
        StoreError: The folder holds a link, a special file or a ``manifest.json`` of the stage's own.
    """
    sizes = files(folder, but=CHECKPOINTS)
    if MANIFEST in sizes:
        raise StoreError(f"{folder / MANIFEST} was written by the stage; the store keeps that name for itself")
    stamps = {name: Stamp(_sha256(folder / name), size) for name, size in sizes.items()}
    manifest = Manifest(identity, stamps, round(seconds, 3), dict(_versions()))
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        StoreError: It is missing or no manifest.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["files"] = {name: Stamp(**stamp) for name, stamp in document["files"].items()}
        return Manifest(**document)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{path} is damaged") from None


def verify(folder: Path, key: str) -> None:
    """Compare a finished stage with its key and every file with the manifest.

    Raises:
        StoreError: The first file that is missing, truncated, altered or not in the manifest.
    """
    manifest = read(folder)
    if digest(manifest.identity) != key:
        raise StoreError(f"{folder / MANIFEST} is altered: its identity belongs to another key")
    sizes = files(folder)
    del sizes[MANIFEST]
    for name in sorted(sizes.keys() | manifest.files.keys()):
        path, stamp = folder / name, manifest.files.get(name)
        if stamp is None:
            raise StoreError(f"{path} is not in the manifest")
        if name not in sizes:
            raise StoreError(f"{path} is missing")
        if sizes[name] != stamp.bytes:
            raise StoreError(f"{path} has {sizes[name]} bytes instead of {stamp.bytes}")
        if _sha256(path) != stamp.sha256:
            raise StoreError(f"{path} is altered: its SHA-256 is not the one in the manifest")
