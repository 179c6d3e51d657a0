"""What a data set contains, as one SHA-256.

Sets with the same file names may hold different images, so results are stored under the digest of the content.
Planning calls this for every data set: nothing here imports torch, and the digest of unchanged files is remembered.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path, PurePosixPath

from hallmark.data.sources import GENERATOR_VERSION, find_files, find_source, require_root
from hallmark.errors import DataError

FILE = "file:"
"""Before the path of a single file below the data root."""


def fingerprint(name: str, *, root: Path | None = None, cache: Path | None = None) -> str:
    """Return the SHA-256 of what the data set ``name`` contains, as 64 hexadecimal digits.

    For a set of files it covers their names relative to ``root`` and their bytes, for a generated set the name and the
    version of the generator.  The size that images are loaded at and the limit are no part of it.  ``file:<path>`` is
    one file below the root, such as weights.

    Args:
        name: A name of :mod:`hallmark.data.sources`.
        root: Data folder; not needed for generated sets.
        cache: JSON file of digests already computed.  A digest is used again while every file of the set keeps its
            name, size and times.

    Raises:
        ConfigError: If there is no such name.
        DataError: If a file of the set is missing or cannot be read, or the cache cannot be written.
    """
    if name.startswith(FILE):
        folder = require_root(name, root)
        files = [_one_file(name.removeprefix(FILE), folder)]
    else:
        source = find_source(name, root)
        if not source.files:
            return hashlib.sha256(f"{source.name} {GENERATOR_VERSION}".encode()).hexdigest()
        folder = require_root(name, root)
        files = find_files(source, folder)
    try:
        if cache is None:
            return _content(folder, files)
        state = _state(folder, files)
        known = _read(cache).get(state)
        if known is None:
            known = _content(folder, files)
            # Read once more: hashing a large set takes minutes, in which another process may have added its own.
            _write(cache, {**_read(cache), state: known})
    except OSError as error:
        raise DataError(f"data set {name!r} cannot be fingerprinted: {error}") from error
    return known


def _one_file(path: str, root: Path) -> str:
    """The path, if it is that of a file below the root."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or not (root / path).is_file():
        raise DataError(f"file {path!r} not found under {str(root)!r}; put it there, or set HALLMARK_DATA or data_root")
    return path


def _content(root: Path, files: list[str]) -> str:
    """Digest of the names and bytes of ``files``."""
    digest = hashlib.sha256()
    for name in files:
        with (root / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _state(root: Path, files: list[str]) -> str:
    """Digest of all that tells, without reading them, that ``files`` are as they were."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for name in files:
        stat = os.stat(os.path.join(root, name))  # three times as fast as Path, for thousands of files
        # The change time too, because copying and unpacking can keep the modification time of what was there before.
        digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}".encode())
    return digest.hexdigest()


def _read(cache: Path) -> dict[str, str]:
    try:
        entries = json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):  # a damaged cache is an empty one
        return {}
    return entries if isinstance(entries, dict) else {}


def _write(cache: Path, entries: dict[str, str]) -> None:
    """Replace the cache in one step, so that no reader ever sees half of it."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = cache.with_name(f"{cache.name}.{secrets.token_hex(4)}")
    draft.write_text(json.dumps(entries, indent=1, sort_keys=True))
    draft.replace(cache)
