"""Files to archive parts of bounded size and back.

The archive is one deterministic tar stream (in the caller's order, without times and owners), cut every ``part_bytes``
bytes: ``cat hallmark-store-*.tar | tar x`` unpacks it without Hallmark.  ``parts.json``, written last, lists the parts
in order with their SHA-256 and that of the whole, so a missing, damaged or swapped part is noticed before unpacking.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from hallmark.errors import StoreError

INDEX = "parts.json"
_PART = re.compile(r"hallmark-store-\d{4,}\.tar")
_BLOCK = 1 << 20


class _PartWriter:
    """The writing end of the tar stream: cuts it into part files and hashes each part and the whole.

    Args:
        destination: Existing folder of the parts.
        part_bytes: Size of every part but the last, which may be smaller.
    """

    def __init__(self, destination: Path, part_bytes: int) -> None:
        self._destination = destination
        self._part_bytes = part_bytes
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._whole = hashlib.sha256()
        self._parts: list[dict[str, str | int]] = []

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        self._whole.update(rest)
        while rest:
            if self._file is None:
                self._digest = hashlib.sha256()
                self._file = (self._destination / f"hallmark-store-{len(self._parts) + 1:04d}.tar").open("wb")
            chunk = rest[: self._part_bytes - self._file.tell()]
            self._file.write(chunk)
            self._digest.update(chunk)
            rest = rest[len(chunk) :]
            if self._file.tell() == self._part_bytes:
                self.end_part()
        return len(data)

    def end_part(self) -> None:
        if self._file is not None:
            size = self._file.tell()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            name = Path(self._file.name).name
            self._parts.append({"name": name, "bytes": size, "sha256": self._digest.hexdigest()})
            self._file = None

    def index(self) -> dict[str, object]:
        return {"parts": self._parts, "sha256": self._whole.hexdigest()}

    def paths(self) -> list[Path]:
        return [self._destination / str(part["name"]) for part in self._parts]


class _PartReader(io.RawIOBase):
    """The parts read one after the other, as the one stream they were cut from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while self._file is not None or self._paths:
            if self._file is None:
                self._file = self._paths.pop(0).open("rb")
            if count := self._file.readinto(buffer):  # type: ignore[attr-defined]
                return int(count)
            self._file.close()
            self._file = None
        return 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def pack(files: Iterable[tuple[str, Path]], destination: Path, part_bytes: int) -> list[Path]:
    """Write files into archive parts.

    Args:
        files: Pairs (name in the archive, plain file); drawn one at a time, so a generator may hold a lock around one.
        destination: Folder of the parts, made if it does not exist.
        part_bytes: Size of every part but the last; a file larger than a part goes on in the next one.

    Returns:
        The parts in order; ``parts.json`` lies beside them.

    Raises:
        StoreError: ``part_bytes`` is not positive, or the destination already holds a finished archive.
        OSError: The destination cannot be written.
    """
    if part_bytes < 1:
        raise StoreError(f"a part of {part_bytes} bytes cannot be; give a positive size")
    destination.mkdir(parents=True, exist_ok=True)
    index = destination / INDEX
    if index.exists():
        raise StoreError(f"{destination} already holds an export; give an empty folder")
    writer = _PartWriter(destination, part_bytes)
    try:
        stream = cast(BinaryIO, writer)  # tarfile calls nothing but write() in this mode
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK) as tar:
            for name, path in files:
                info = tarfile.TarInfo(name)  # its defaults (mode 0644, time 0, owner 0) make equal stores equal bytes
                info.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(info, file)
    finally:
        writer.end_part()
    unfinished = destination / f"{INDEX}.tmp"
    unfinished.write_text(json.dumps(writer.index(), indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, index)
    return writer.paths()


def _checked_parts(source: Path) -> list[Path]:
    """The parts that ``parts.json`` lists, each of the recorded size and digest, and so the whole."""
    index = source / INDEX
    if not index.is_file():
        raise StoreError(
            f"{source} has no {INDEX}: no export, or one that was not finished; copy it whole or export again"
        )
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        parts = [(str(part["name"]), int(part["bytes"]), str(part["sha256"])) for part in document["parts"]]
        expected_whole = str(document["sha256"])
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{index} is damaged; copy it again") from None
    whole = hashlib.sha256()
    for name, size, expected in parts:
        path = source / name
        if not _PART.fullmatch(name):
            raise StoreError(f"{index} lists {name!r}, which is no part of an export; copy it again")
        if not path.is_file():
            raise StoreError(f"{path} is missing; copy it from where the export was made")
        if path.stat().st_size != size:
            raise StoreError(f"{path} has {path.stat().st_size} bytes instead of {size}; copy it again")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                whole.update(block)
        if digest.hexdigest() != expected:
            raise StoreError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}; copy it again")
    if whole.hexdigest() != expected_whole:
        raise StoreError(f"{index} is damaged: its parts do not make the recorded whole; copy it again")
    return [source / name for name, _, _ in parts]


def unpack(source: Path, into: Path, names: re.Pattern[str]) -> None:
    """Check every part of an archive, then unpack it.

    Args:
        source: Folder of the parts and ``parts.json``.
        into: Existing folder to unpack into.
        names: What the whole name of every file in the archive has to match.

    Raises:
        StoreError: A part is missing or damaged (nothing is unpacked then), or the archive holds anything but plain
            files with allowed names inside the folder (what was unpacked before it stays in ``into``).
        OSError: ``into`` cannot be written.
    """
    parts = _checked_parts(source)
    try:
        with _PartReader(parts) as reader, tarfile.open(fileobj=reader, mode="r|", bufsize=_BLOCK) as tar:
            for member in tar:
                if not member.isreg() or not names.fullmatch(member.name) or ".." in member.name.split("/"):
                    raise StoreError(
                        f"{source} holds {member.name!r}, which no export writes; do not trust this archive"
                    )
                tar.extract(member, into, set_attrs=False, filter="data")
    except tarfile.TarError as error:
        raise StoreError(f"{source} cannot be unpacked: {error}; export it again") from None
