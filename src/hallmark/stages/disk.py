"""The file system below the store: errors of one line, waiting for the disk, and locks that end with their process."""

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hallmark.errors import StoreError

_log = logging.getLogger(__name__)


class LockedError(StoreError):
    """A lock that another process holds."""


def disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError of one line; ``path`` stands in where the error names no file."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if disk_full(error):
            raise StoreError(
                f"disk full while writing {where}; free some space and run the same command again"
            ) from error
        raise StoreError(
            f"cannot use {where}: {error.strerror or error}; check that it may be read and written"
        ) from error


@contextmanager
def remedy(advice: str) -> Iterator[None]:
    """Add what to do to the message of a StoreError."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{error}; {advice}") from error


def fsync(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk; a rename before that could outlive its content."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _acquire(lock: FileLock, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.2)
    except Timeout:
        return False
    return True


@contextmanager
def hold(path: Path, timeout: float | None) -> Iterator[None]:
    """Hold a lock file; the kernel frees it when the holding process ends, however it ends.

    The file stays: deleting one that another process has just opened would let two processes hold "the" lock.

    Args:
        path: The lock file, made with its folder where it is not there yet.
        timeout: Seconds to wait for another holder; ``None`` waits without limit.

    Raises:
        LockedError: Another process still held the lock when the time was up.
        StoreError: The lock file cannot be made.
    """
    lock = FileLock(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _acquire(lock, 0)
        if not held and timeout != 0:
            _log.warning("waiting for %s held by another process", path.stem)
            held = _acquire(lock, -1 if timeout is None else timeout)
    if not held:
        raise LockedError(f"{path.stem} is held by another process; wait for it to finish or end it, then run again")
    try:
        yield
    finally:
        lock.release()
