"""The content-addressed store: one folder of files for every finished stage.

Layout below the root, all of it made on first use:

* ``objects/<key>/`` finished stages, each with its ``manifest.json``; one appears by one rename and never changes;
* ``work/<key>/`` stages at work or interrupted, with the checkpoints they go on from;
* ``locks/`` empty files that carry kernel locks and stay;
* ``scratch/`` what is being deleted or imported.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hallmark.errors import BudgetExhausted, HallmarkError, StoreError
from hallmark.stages import manifest
from hallmark.stages.archive import pack, unpack
from hallmark.stages.disk import LockedError, disk_errors, disk_full, fsync, hold, remedy
from hallmark.stages.manifest import CHECKPOINTS, MANIFEST, Manifest, canonical, digest

__all__ = ["LockedError", "Store", "canonical", "digest"]

_KEY = re.compile(r"[0-9a-f]{64}")
_ARCHIVED = re.compile(r"(objects|work)/[0-9a-f]{64}/.+", re.DOTALL)
_log = logging.getLogger(__name__)


def _keys_in(folder: Path) -> set[str]:
    with disk_errors(folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if _KEY.fullmatch(entry.name)}
    return set()


def _drop_all_but_checkpoints(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir() and path.name != CHECKPOINTS:
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)
    if not (work / CHECKPOINTS).is_dir():
        shutil.rmtree(work, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


class Store:
    """Finished and interrupted stages below one folder, safe for many processes at once.

    Args:
        root: The store's folder; nothing is made before something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._verified: set[str] = set()

    def _place(self, kind: str, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key!r} is no key of the store; a key is 64 lowercase hexadecimal characters")
        return self.root / kind / key

    def _folders(self, key: str, kinds: tuple[str, ...] = ("objects", "work")) -> list[Path]:
        return [folder for kind in kinds if (folder := self._place(kind, key)).is_dir()]

    def keys(self) -> set[str]:
        """Keys of all finished stages, from one scan of one folder."""
        return _keys_in(self.root / "objects")

    def unfinished(self) -> set[str]:
        """Keys of all work folders: stages at work in some process, or interrupted."""
        return _keys_in(self.root / "work")

    def has(self, key: str) -> bool:
        """Whether the stage is finished; its files are not looked at."""
        return self._place("objects", key).is_dir()

    def _finished(self, key: str) -> Path:
        folder = self._place("objects", key)
        if not folder.is_dir():
            raise StoreError(f"no finished stage {key} in {self.root}; run the command that makes it")
        return folder

    def manifest(self, key: str) -> Manifest:
        """What is recorded of a finished stage; its files are not looked at.

        Raises:
            StoreError: No such stage, or no manifest in it.
        """
        folder = self._finished(key)
        with disk_errors(folder), remedy(f"delete it with `hallmark-store rm {key}` and run again"):
            return manifest.read(folder)

    def identity(self, key: str) -> dict[str, Any]:
        """The identity document of a finished stage; see :meth:`manifest` for what it raises."""
        return self.manifest(key).identity

    def open(self, key: str) -> Path:
        """Folder of a finished stage, all its files compared with the manifest when this store first opens the key.

        Raises:
            StoreError: No such stage, or a file is missing, truncated, altered or not in the manifest.
        """
        folder = self._finished(key)
        if key not in self._verified:
            with disk_errors(folder), remedy(f"delete it with `hallmark-store rm {key}` and run again"):
                manifest.verify(folder, key)
            self._verified.add(key)
        return folder

    @contextmanager
    def lock(self, key: str, timeout: float | None = None) -> Iterator[None]:
        """Hold a key; the kernel frees it when the holding process ends, however it ends.

        Args:
            key: The key; it need not be in the store.
            timeout: Seconds to wait for another holder; ``None`` waits without limit.

        Raises:
            LockedError: Another process still held the key when the time was up.
        """
        with hold(self._place("locks", key).with_suffix(".lock"), timeout):
            yield

    @contextmanager
    def writing(self, key: str, identity: dict[str, Any], *, timeout: float | None = None) -> Iterator[Path | None]:
        """Make a stage: hold its key, give its work folder, and store the folder when the block ends well.

        The block gets ``None`` if the stage is finished already, perhaps by the process this one waited for.  Otherwise
        it gets the work folder with all that an interrupted run left there.  Whatever lies in the folder at the end is
        the result, except the subfolder ``checkpoints``, which is dropped.

        A block that ends in BudgetExhausted, KeyboardInterrupt or SystemExit, or is killed, leaves its work folder for
        the next run.  A HallmarkError removes the whole folder, checkpoints and all: a state that led into it is not
        one to go on from.  Any other exception, such as a full disk or a device that ran out of memory, leaves the
        subfolder ``checkpoints`` alone, so that the same command goes on once the cause is mended.

        Args:
            key: Digest of the identity.
            identity: The document that names the stage.
            timeout: Seconds to wait for another process at the same key; ``None`` waits without limit.

        Raises:
            StoreError: The key is not the identity's, another process held it too long, or the disk is full or
                cannot be written.
        """
        if digest(identity) != key:
            raise StoreError(f"{key!r} is not the digest of the identity given with it; use digest(identity)")
        if self.has(key):  # without the lock, so that hits need no right to write
            yield None
            return
        with self.lock(key, timeout):
            if self.has(key):
                yield None
                return
            started = time.monotonic()
            work = self._place("work", key)
            with disk_errors(work):
                work.mkdir(parents=True, exist_ok=True)
                (work / MANIFEST).unlink(missing_ok=True)  # of a run killed between manifest and rename
            try:
                yield work
                with disk_errors(work):
                    manifest.write(work, identity, time.monotonic() - started)
                    if (work / CHECKPOINTS).is_dir():
                        shutil.rmtree(work / CHECKPOINTS)
                    if not self._publish(work, key):
                        shutil.rmtree(work)
            except BudgetExhausted:
                raise
            except HallmarkError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            except Exception as error:
                _drop_all_but_checkpoints(work)
                with disk_errors(work) if disk_full(error) else nullcontext():
                    raise

    def _publish(self, folder: Path, key: str) -> bool:
        """Rename a complete folder into the finished stages; False where the stage is there already."""
        target = self._place("objects", key)
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync([*folder.rglob("*"), folder])
        try:
            os.replace(folder, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        fsync([target.parent])
        return True

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """An empty folder on the store's disk, this process's alone; it also clears what a killed one left there."""
        folder = self.root / "scratch"
        with hold(self.root / "locks" / "scratch.lock", None), disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, key: str, folders: Iterable[Path]) -> None:
        """Take folders out of sight by one rename each, so that a kill leaves none half deleted, and delete them."""
        with self._scratch() as scratch:
            for number, folder in enumerate(folders):
                os.replace(folder, scratch / str(number))
        self._verified.discard(key)

    def remove(self, key: str) -> None:
        """Delete a stage, finished or interrupted.

        Raises:
            LockedError: A process is at work on it.
            StoreError: No such stage.
        """
        folders = self._folders(key)
        if not folders:
            raise StoreError(f"no stage {key} in {self.root}; `hallmark-store ls` lists them")
        with self.lock(key, timeout=0):
            self._discard(key, folders)

    def gc(self, keep: set[str], *, dry_run: bool) -> list[tuple[str, int]]:
        """Delete every stage, finished or interrupted, that is not to be kept and that no process is at work on.

        Interrupted work on a stage that was finished elsewhere and imported is deleted too.

        Args:
            keep: Keys to keep.
            dry_run: Only say what would be deleted.

        Returns:
            Key and size in bytes of each stage deleted, by key.
        """
        finished, unfinished = self.keys(), self.unfinished()
        removed = []
        for key in sorted(((finished | unfinished) - keep) | (finished & unfinished)):
            try:
                with self.lock(key, timeout=0):
                    folders = self._folders(key, ("work",) if key in keep else ("objects", "work"))
                    removed.append((key, sum(_size(folder) for folder in folders)))
                    if not dry_run:
                        self._discard(key, folders)
            except LockedError:
                _log.warning("kept %s: held by another process", key)
        return removed

    def export(self, destination: Path, *, keys: set[str] | None = None, part_bytes: int) -> list[Path]:
        """Write stages, finished and interrupted, into archive parts for another machine.

        Args:
            destination: Folder of the parts, empty or not there yet.
            keys: Stages to export; ``None`` for all.
            part_bytes: Size of every part but the last.

        Returns:
            The parts in order; ``parts.json``, which import needs too, lies beside them.

        Raises:
            StoreError: An unknown key, a damaged stage, a destination in use or that cannot be written.
        """
        finished, interrupted = self.keys(), self.unfinished() - self.keys()
        chosen = finished | interrupted if keys is None else keys
        if unknown := chosen - finished - interrupted:
            raise StoreError(f"no stage {min(unknown)} in {self.root}; `hallmark-store ls` lists them")
        for key in sorted(chosen & finished):
            self.open(key)
        with disk_errors(destination):
            return pack(
                self._archived(sorted(chosen & finished), sorted(chosen & interrupted)), destination, part_bytes
            )

    def _archived(self, finished: list[str], interrupted: list[str]) -> Iterator[tuple[str, Path]]:
        for key in finished:
            folder = self._place("objects", key)
            yield from ((f"objects/{key}/{name}", folder / name) for name in manifest.files(folder))
        for key in interrupted:
            folder = self._place("work", key)
            try:
                with self.lock(key, timeout=0):
                    yield from ((f"work/{key}/{name}", folder / name) for name in manifest.files(folder))
            except LockedError:
                _log.warning("left out %s: held by another process", key)

    def import_(self, source: Path) -> list[str]:
        """Take in the stages of an export; one that is here already is kept as it is.

        All parts and all stages in them are checked before the first is taken in, each by one rename.

        Args:
            source: Folder of the parts and ``parts.json``.

        Returns:
            Keys of the stages taken in, finished and interrupted, sorted.

        Raises:
            StoreError: A part is missing or damaged, the archive holds what no export writes, or the store cannot be
                written.
        """
        with self._scratch() as scratch:
            unpack(Path(source), scratch, _ARCHIVED)
            finished, interrupted = (sorted(_keys_in(scratch / kind)) for kind in ("objects", "work"))
            for key in finished:
                with remedy("export it again"):
                    manifest.verify(scratch / "objects" / key, key)
            taken = [key for key in finished if self._take_finished(scratch / "objects" / key, key)]
            taken += [key for key in interrupted if self._take_interrupted(scratch / "work" / key, key)]
        return sorted(taken)

    def _take_finished(self, folder: Path, key: str) -> bool:
        incoming = manifest.read(folder).files
        if self._publish(folder, key):
            return True
        if self.manifest(key).files != incoming:
            _log.warning("kept %s as it is here; the imported one has other files", key)
        return False

    def _take_interrupted(self, folder: Path, key: str) -> bool:
        work = self._place("work", key)
        try:
            with self.lock(key, timeout=0):
                if self.has(key) or work.exists():
                    _log.warning("kept %s as it is here; the imported work on it is left out", key)
                    return False
                work.parent.mkdir(exist_ok=True)
                os.replace(folder, work)
        except LockedError:
            _log.warning("kept %s as it is here: held by another process", key)
            return False
        return True
